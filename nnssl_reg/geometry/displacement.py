"""DisplacementField: which moving point each fixed point corresponds to, in millimetres."""

from dataclasses import dataclass

import numpy as np
import torch

from nnssl_reg.geometry.grid import Grid
from nnssl_reg.geometry.image import Image
from nnssl_reg.geometry.lattice_cpu import invert_lattice, jacobian_lattice
from nnssl_reg.geometry.sampling import sample_displaced, sample_grid, sample_points, slabs, to_voxels, warp_nearest
from nnssl_reg.geometry.threads import on_threads
from nnssl_reg.geometry.triton_devices import runs_triton

_INVERTED_MM = 1e-4  # an inverse that misses by less is done
_FLOAT32_MM = 1e-3  # to which positions in float32 are good


@dataclass(frozen=True, eq=False)
class DisplacementField:
    """Fixed point p corresponds to moving point p + vectors_mm(p).

    vectors_mm: (3, X, Y, Z) float32 torch, along world x, y, z (RAS), mm; grid: of the fixed image.
    """

    vectors_mm: torch.Tensor
    grid: Grid

    def __post_init__(self):
        if tuple(self.vectors_mm.shape) != (3, *self.grid.shape):
            raise ValueError(f"A field needs vectors (3, {self.grid.shape}), got {tuple(self.vectors_mm.shape)}.")

    def on(self, grid: Grid) -> "DisplacementField":
        """The same field on another grid: linear between voxels, the edge value outside."""
        return DisplacementField(sample_grid(self.vectors_mm, self.grid, grid), grid)

    def warp(self, moving: Image, fill: float | None = None) -> Image:
        """The moving image on this field's grid: intensities linear, labels nearest.

        fill: value outside the moving field of view; None: the minimum of intensities, 0 of labels.
        """
        fill = (0 if moving.is_label else float(moving.array.min())) if fill is None else fill
        device = self.vectors_mm.device
        if moving.is_label:
            return Image(warp_nearest(moving.array, moving.grid, self.vectors_mm, self.grid, fill), self.grid)
        values = torch.as_tensor(np.ascontiguousarray(moving.array), device=device)
        return Image(sample_displaced(values, moving.grid, self.vectors_mm, self.grid, fill).cpu().numpy(), self.grid)

    def apply_to_points(self, points_mm) -> np.ndarray:
        """Fixed points (N, 3) RAS mm -> the moving points they correspond to, (N, 3) float64."""
        points = torch.as_tensor(np.asarray(points_mm, dtype=np.float64).T)
        shift = sample_points(self.vectors_mm.cpu().double(), self.grid, points)  # some devices know no double
        return (points + shift).T.numpy()

    def compose(self, after: "DisplacementField") -> "DisplacementField":
        """p -> after(self(p)), on this field's grid: first this field, then `after` where it has led."""
        beyond = sample_displaced(after.vectors_mm, after.grid, self.vectors_mm, self.grid)
        return DisplacementField(beyond.add_(self.vectors_mm), self.grid)

    def inverse(self, grid: Grid, iterations: int = 30, within_mm: float = _INVERTED_MM) -> "DisplacementField":
        """The field on the moving image's grid that leads back, by fixed-point iteration around the field's affine part.

        After Chen et al. 2008, whose full steps converge where the rest without the affine part has a slope below 1; steps that
        overshoot are halved, which stronger fields need. It ends where it misses by less than within_mm along each axis. A fold
        has no inverse.
        """
        vectors = torch.empty(3, *grid.shape, dtype=self.vectors_mm.dtype, device=self.vectors_mm.device)
        way = np.linalg.inv(self.grid.affine), np.array(grid.affine), self._way_back()
        if vectors.device.type == "cpu":
            own, out = self.vectors_mm.contiguous().numpy(), vectors.numpy()
            on_threads(invert_lattice, grid.shape[0], own, *way, within_mm, iterations, out)
            return DisplacementField(vectors, grid)
        if runs_triton(vectors.device) and vectors.dtype == torch.float32:
            from nnssl_reg.geometry import inverse_triton

            found = inverse_triton.invert_lattice(self.vectors_mm, *way, within_mm, iterations, grid.shape)
            return DisplacementField(found, grid)
        for start, stop in slabs(grid.shape):
            points = grid.points_mm(start, stop, vectors.device)
            vectors[:, start:stop] = self._inverse_of(points, iterations, max(within_mm, _FLOAT32_MM)) - points
        return DisplacementField(vectors, grid)

    def inverse_points(self, points_mm, iterations: int = 50) -> np.ndarray:
        """Moving points (N, 3) RAS mm -> the fixed points they correspond to, (N, 3) float64; the way of `inverse`."""
        points = torch.as_tensor(np.asarray(points_mm, dtype=np.float64).T)
        field = DisplacementField(self.vectors_mm.cpu().double(), self.grid)
        return field._inverse_of(points, iterations, 1e-9).T.numpy()

    def affine_part(self) -> np.ndarray:
        """The affine map nearest to p -> p + vectors_mm(p) over the grid (least squares), (4, 4) float64."""
        steps = [max(1, n // 16) for n in self.grid.shape]
        some = tuple(slice(None, None, step) for step in steps)
        index = np.stack(np.meshgrid(*[np.arange(0, n, s) for n, s in zip(self.grid.shape, steps)], indexing="ij"), axis=-1)
        points = self.grid.index_to_world(index).reshape(-1, 3)
        shift = self.vectors_mm[(slice(None), *some)].reshape(3, -1).T.cpu().double().numpy()
        centre = points.mean(axis=0)  # far-off origins would cost digits
        linear = np.linalg.lstsq(points - centre, shift - shift.mean(axis=0), rcond=None)[0].T
        out = np.eye(4)  # and so would whole points: of no displacement this is exactly the identity
        out[:3, :3] += linear
        out[:3, 3] = shift.mean(axis=0) - linear @ centre
        return out

    def _way_back(self) -> np.ndarray:
        """The inverse of the affine part, (4, 4)."""
        affine = self.affine_part()
        if abs(np.linalg.det(affine[:3, :3])) < 1e-3:  # a single slice tells nothing across it
            return np.eye(4)
        back = np.linalg.inv(affine)
        return np.where(np.abs(back - np.eye(4)) < 1e-9, np.eye(4), back)  # no motion has no rounding either

    def _inverse_of(self, points_mm: torch.Tensor, iterations: int, within_mm: float) -> torch.Tensor:
        """The fixed points (3, ...) that this field leads to points_mm (3, ...)."""
        back = torch.as_tensor(self._way_back()).to(points_mm)
        guess = torch.einsum("ij,j...->i...", back[:3, :3], points_mm) + back[:3, 3].view(3, *[1] * (points_mm.ndim - 1))
        kept, off = guess, points_mm - guess - sample_points(self.vectors_mm, self.grid, guess)
        step = torch.ones_like(points_mm[0])  # of each point
        for _ in range(iterations):
            guess = kept + step * torch.einsum("ij,j...->i...", back[:3, :3], off)
            if off.abs().max() < within_mm:
                break
            missing = points_mm - guess - sample_points(self.vectors_mm, self.grid, guess)
            better = missing.square().sum(0) < off.square().sum(0)
            turned = (missing * off).sum(0) < 0  # a full step overshoots where the field stretches
            step = torch.where(better & ~turned, (1.2 * step).clamp(max=1.0), 0.5 * step)
            kept, off = torch.where(better, guess, kept), torch.where(better, missing, off)
        return guess

    def jacobian_determinant(self) -> torch.Tensor:
        """Local change of volume det(d(p + u)/dp), (X, Y, Z): 1 keeps volume, <= 0 folds. Central differences."""
        linear = np.linalg.inv(self.grid.affine[:3, :3])
        out = torch.empty(self.grid.shape, dtype=self.vectors_mm.dtype, device=self.vectors_mm.device)
        if out.device.type == "cpu" and out.dtype == torch.float32:
            own = self.vectors_mm.contiguous().numpy()
            on_threads(jacobian_lattice, len(out), own, linear.astype(np.float32), out.numpy())
            return out
        to_index = torch.as_tensor(linear, dtype=self.vectors_mm.dtype, device=self.vectors_mm.device)
        for start, stop in slabs(self.grid.shape):
            low, high = max(0, start - 1), min(self.grid.shape[0], stop + 1)  # one neighbour for the differences
            u = torch.einsum("ij,jxyz->ixyz", to_index, self.vectors_mm[:, low:high])
            rows = [[_difference(u[i], axis) + (i == axis) for axis in range(3)] for i in range(3)]
            out[start:stop] = _determinant(rows)[start - low : start - low + stop - start]
        return out

    def in_voxels(self, moving_grid: Grid) -> torch.Tensor:
        """Displacement in voxels, (3, X, Y, Z): moving index of the corresponding point less the fixed index."""
        vectors = torch.empty_like(self.vectors_mm)
        for start, stop in slabs(self.grid.shape):
            points = self.grid.points_mm(start, stop).double()  # on the CPU: some devices know no double
            moved = to_voxels(points + self.vectors_mm[:, start:stop].cpu(), moving_grid)
            vectors[:, start:stop] = (moved - to_voxels(points, self.grid)).to(vectors.dtype)
        return vectors


def _difference(values: torch.Tensor, axis: int) -> torch.Tensor:
    """Central differences along an axis, one-sided at the ends, 0 where the axis has a single voxel."""
    return torch.zeros_like(values) if values.shape[axis] == 1 else torch.gradient(values, dim=axis)[0]


def _determinant(rows) -> torch.Tensor:
    """Determinant of a 3 x 3 matrix of tensors."""
    (a, b, c), (d, e, f), (g, h, i) = rows
    return a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g)
