"""Values at world points and resampling between grids: the only home of grid_sample."""

import math

import numpy as np
import torch
import torch.nn.functional as F

from nnssl_reg.geometry.filters_cpu import convolve, weighted_sums
from nnssl_reg.geometry.grid import Grid
from nnssl_reg.geometry.image import Image
from nnssl_reg.geometry.lattice_cpu import warp_lattice, warp_lattice_nearest
from nnssl_reg.geometry.threads import on_threads
from nnssl_reg.geometry.triton_devices import runs_triton

_MODES = {"linear": "bilinear", "nearest": "nearest"}  # torch says bilinear for trilinear too


def to_voxels(points_mm: torch.Tensor, grid: Grid) -> torch.Tensor:
    """World RAS mm (3, ...) -> continuous voxel indices of grid (3, ...), in the dtype of the points."""
    inverse = torch.as_tensor(np.linalg.inv(grid.affine), dtype=points_mm.dtype, device=points_mm.device)
    return torch.einsum("ij,j...->i...", inverse[:3, :3], points_mm) + inverse[:3, 3].view(3, *[1] * (points_mm.ndim - 1))


def inside(points_vox: torch.Tensor, shape) -> torch.Tensor:
    """Whether continuous voxel indices (3, ...) lie within the outer voxel faces of an array of `shape`; (...) bool."""
    limits = [(p >= -0.5) & (p <= n - 0.5) for p, n in zip(points_vox, shape)]
    return limits[0] & limits[1] & limits[2]


def sample_voxels(values: torch.Tensor, points_vox: torch.Tensor, mode: str = "linear") -> torch.Tensor:
    """Values (C, X, Y, Z) at continuous voxel indices (3, ...); points outside take the nearest edge value.

    mode: linear or nearest. Returns (C, ...) in the dtype of `values` if it is floating point, else float32.
    """
    values = values if values.is_floating_point() else values.float()
    scale = [2.0 / max(n - 1, 1) for n in values.shape[1:]]
    flat = points_vox.reshape(3, -1)
    normalised = torch.stack([flat[a] * scale[a] - 1 for a in (2, 1, 0)], dim=-1)  # grid_sample wants (z, y, x)
    out = F.grid_sample(values[None], normalised[None, None, None].to(values.dtype), mode=_MODES[mode],
                        padding_mode="border", align_corners=True)  # fmt: skip
    return out.reshape(values.shape[0], *points_vox.shape[1:])


def sample_points(values: torch.Tensor, grid: Grid, points_mm: torch.Tensor, mode: str = "linear",
                  fill: float | None = None) -> torch.Tensor:  # fmt: skip
    """Values (C, X, Y, Z) on grid at world points (3, ...) RAS mm -> (C, ...); outside: `fill`, or the edge value if None."""
    points_vox = to_voxels(points_mm, grid)
    out = sample_voxels(values, points_vox, mode)
    return out if fill is None else torch.where(inside(points_vox, grid.shape), out, fill)


def sample_grid(values: torch.Tensor, grid: Grid, target: Grid, fill: float | None = None) -> torch.Tensor:
    """Values (C, X, Y, Z) on grid at the voxels of another grid, linearly -> (C, *target.shape); outside as sample_points."""
    if runs_triton(values.device) and values.dtype == torch.float32:
        from nnssl_reg.geometry import lattice_triton

        return lattice_triton.warp_lattice(values, None, *_linear_and_matrix(target, grid), fill, target.shape)
    compiled = values.device.type == "cpu" and values.dtype == torch.float32
    if compiled and _share_axes(grid, target):
        return torch.from_numpy(_sampled_by_axes(values.contiguous().numpy(), grid, target, (0.0, 0.0, 0.0), fill))
    out = torch.empty(values.shape[0], *target.shape, dtype=values.dtype, device=values.device)
    if compiled:
        nowhere, fills = np.empty((3, 0, 0, 0), np.float32), np.full(len(out), np.nan if fill is None else fill, np.float32)
        maps = _linear_and_matrix(target, grid)
        on_threads(warp_lattice, out.shape[1], values.contiguous().numpy(), nowhere, *maps, fills, out.numpy())
        return out
    for start, stop in slabs(target.shape):
        out[:, start:stop] = sample_points(values, grid, target.points_mm(start, stop, values.device), fill=fill)
    return out


def _share_axes(grid: Grid, target: Grid) -> bool:
    """Whether the axes of two grids run alike, to a thousandth of a voxel over all of target."""
    steps = np.linalg.solve(grid.affine[:3, :3], target.affine[:3, :3])
    return np.abs(steps - np.diag(np.diag(steps))).max() * max(target.shape) < 1e-3


def _sampled_by_axes(values: np.ndarray, grid: Grid, target: Grid, sigma, fill: float | None) -> np.ndarray:
    """What smooth_gaussian and sample_grid make of float32 (C, X, Y, Z), axis by axis: first those that become shorter, so that
    the others need not compute what is left out."""
    matrix, given = np.linalg.inv(grid.affine) @ target.affine, values
    places = [matrix[axis, axis] * np.arange(count) + matrix[axis, 3] for axis, count in enumerate(target.shape)]
    shorter = [axis for axis in range(3) if target.shape[axis] <= grid.shape[axis]]
    for axis in shorter + [axis for axis in (2, 1, 0) if axis not in shorter]:
        size, width = grid.shape[axis], sigma[axis]
        position = np.clip(places[axis], 0, size - 1)
        if width == 0 and len(position) == size and np.abs(position - np.arange(size)).max() < 1e-4:
            continue
        before = np.floor(position)
        after, taps = (position - before)[:, None], np.array([1.0]) if width == 0 else gaussian_taps(width).numpy()
        weights = np.pad(taps, (0, 1)) * (1 - after) + np.pad(taps, (1, 0)) * after
        values = weighted_sums(values, axis + 1, before - len(taps) // 2, weights)
    values = values.copy() if values is given else values
    if fill is not None:
        for axis, position in enumerate(places):
            outside = (position < -0.5) | (position > grid.shape[axis] - 0.5)
            values[(slice(None), *(outside if a == axis else slice(None) for a in range(3)))] = fill
    return values


def sample_displaced(values: torch.Tensor, grid: Grid, vectors_mm: torch.Tensor, target: Grid,
                     fill: float | None = None) -> torch.Tensor:  # fmt: skip
    """As sample_grid at the voxels of target moved by vectors_mm (3, *target.shape), on the same device."""
    if runs_triton(values.device) and values.dtype == vectors_mm.dtype == torch.float32:
        from nnssl_reg.geometry import lattice_triton

        return lattice_triton.warp_lattice(values, vectors_mm, *_linear_and_matrix(target, grid), fill, target.shape)
    out = torch.empty(values.shape[0], *target.shape, dtype=values.dtype, device=values.device)
    if values.device.type == "cpu" and values.dtype == vectors_mm.dtype == torch.float32:
        fills = np.full(len(out), np.nan if fill is None else fill, np.float32)
        maps = _linear_and_matrix(target, grid)
        on_threads(
            warp_lattice, out.shape[1], values.contiguous().numpy(), vectors_mm.contiguous().numpy(), *maps, fills, out.numpy()
        )
        return out
    for start, stop in slabs(target.shape):
        points = target.points_mm(start, stop, values.device) + vectors_mm[:, start:stop]
        out[:, start:stop] = sample_points(values, grid, points, fill=fill)
    return out


def warp_nearest(labels: np.ndarray, grid: Grid, vectors_mm: torch.Tensor | None, target: Grid, fill: int) -> np.ndarray:
    """Labels (1, X, Y, Z) of any integer type at the voxels of target, moved by vectors_mm if there are any; nearest, fill
    outside."""
    out = np.empty((1, *target.shape), dtype=labels.dtype)
    if vectors_mm is None or (vectors_mm.device.type == "cpu" and vectors_mm.dtype == torch.float32):
        vectors = np.empty((3, 0, 0, 0), np.float32) if vectors_mm is None else vectors_mm.contiguous().numpy()
        values, maps = np.ascontiguousarray(labels[0]), _linear_and_matrix(target, grid)
        on_threads(warp_lattice_nearest, target.shape[0], values, vectors, *maps, labels.dtype.type(fill), out[0])
        return out
    for start, stop in slabs(target.shape):
        points = target.points_mm(start, stop, vectors_mm.device) + vectors_mm[:, start:stop]
        out[:, start:stop] = gather_nearest(labels, grid, points, fill)
    return out


def _linear_and_matrix(target: Grid, grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    """mm -> voxels of target (3, 3), and voxels of target -> voxels of grid (3, 4), float32."""
    linear = np.linalg.inv(target.affine[:3, :3]).astype(np.float32)
    if target is grid:  # small fields are sampled so often on their own grid that the time for a matrix counts
        return linear, np.eye(3, 4, dtype=np.float32)
    return linear, (np.linalg.inv(grid.affine) @ target.affine)[:3].astype(np.float32)


def resample_batch(values: torch.Tensor, matrices: torch.Tensor, shape) -> torch.Tensor:
    """Each sample of (B, C, X, Y, Z) through its own affine map of voxel indices, linearly; edge values outside.

    matrices: (B, 3, 4), index in the result -> index in the sample. Returns (B, C, *shape).
    """
    device, dtype = values.device, values.dtype
    axes = [torch.arange(n, device=device, dtype=dtype) for n in shape]
    index = torch.stack(torch.meshgrid(*axes, indexing="ij")).reshape(3, -1)  # (3, N)
    matrices = matrices.to(device, dtype)
    points = matrices[:, :, :3] @ index + matrices[:, :, 3:]  # (B, 3, N)
    last = torch.tensor(values.shape[2:], device=device, dtype=dtype).sub(1).clamp(min=1)
    normalised = (points * (2 / last[:, None]) - 1).flip(1).transpose(1, 2)  # grid_sample wants (z, y, x)
    out = F.grid_sample(values, normalised[:, None, None], mode="bilinear", padding_mode="border", align_corners=True)
    return out.reshape(*values.shape[:2], *shape)


def gather_nearest(array: np.ndarray, grid: Grid, points_mm: torch.Tensor, fill) -> np.ndarray:
    """Integer labels (C, X, Y, Z) at world points (3, ...) -> (C, ...) of the same dtype, exact for ids of any size."""
    points_vox = to_voxels(points_mm, grid)
    keep = inside(points_vox, grid.shape).cpu().numpy()
    index = [np.clip(torch.floor(p + 0.5).long().cpu().numpy(), 0, n - 1) for p, n in zip(points_vox, grid.shape)]
    return np.where(keep, array[:, index[0], index[1], index[2]], np.asarray(fill, dtype=array.dtype))


def smooth_gaussian(values: torch.Tensor, sigma_vox) -> torch.Tensor:
    """Separable Gaussian smoothing of (C, X, Y, Z), edges replicated; sigma_vox: one number per axis, 0 leaves an axis."""
    compiled = values.device.type == "cpu" and values.dtype == torch.float32
    values = values.clone(memory_format=torch.contiguous_format) if compiled else values
    for axis, sigma in enumerate(sigma_vox, start=1):
        if sigma <= 0:
            continue
        taps = gaussian_taps(sigma)
        if compiled:
            convolve(values.numpy(), axis, taps.numpy(), mirror=False)
        else:
            values = _convolved(values, axis, taps.tolist())
    return values


def gaussian_taps(sigma: float) -> torch.Tensor:
    """The filter of a Gaussian of `sigma` voxels, float32, its ends at 3 sigma."""
    radius = max(1, math.ceil(3 * sigma))
    taps = torch.exp(-0.5 * (torch.arange(-radius, radius + 1) / sigma) ** 2)
    return taps / taps.sum()


def _convolved(values: torch.Tensor, axis: int, taps: list[float]) -> torch.Tensor:
    """(C, X, Y, Z) convolved along an axis: a sum of shifted copies, as conv3d with one channel is 20 times slower."""
    pad = [0] * 6
    pad[2 * (3 - axis)] = pad[2 * (3 - axis) + 1] = len(taps) // 2  # F.pad counts from the last axis
    padded, size = F.pad(values[:, None], pad, mode="replicate")[:, 0], values.shape[axis]
    out = padded.narrow(axis, 0, size) * taps[0]
    for shift, weight in enumerate(taps[1:], start=1):
        out.add_(padded.narrow(axis, shift, size), alpha=weight)
    return out


def resample(image: Image, grid: Grid, fill: float | None = None) -> Image:
    """Bring an image onto another grid: intensities linear, anti-aliased where the grid is coarser; labels nearest.

    fill: value outside the image's field of view (None: the nearest edge value). Returns an Image on `grid`.
    """
    if image.is_label:
        return Image(warp_nearest(image.array, image.grid, None, grid, fill or 0), grid)
    step_vox = np.abs(np.linalg.solve(image.grid.affine[:3, :3], grid.affine[:3, :3])).max(axis=1)
    sigma = [0.5 * math.sqrt(s * s - 1) if s > 1.01 else 0.0 for s in step_vox]  # FWHM close to the new voxel
    values = np.ascontiguousarray(image.array)
    if _share_axes(image.grid, grid):
        return Image(_sampled_by_axes(values, image.grid, grid, sigma, fill), grid)
    return Image(sample_grid(smooth_gaussian(torch.from_numpy(values), sigma), image.grid, grid, fill).numpy(), grid)


def slabs(shape, voxels: int = 2**20):
    """Ranges (start, stop) along the first axis, each of about `voxels` voxels, so that work on slabs has bounded memory."""
    step = max(1, voxels // (shape[1] * shape[2]))
    return [(start, min(start + step, shape[0])) for start in range(0, shape[0], step)]
