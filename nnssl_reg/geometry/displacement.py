"""DisplacementField: which moving point each fixed point corresponds to, in millimetres."""

from dataclasses import dataclass

import numpy as np
import torch

from nnssl_reg.geometry.grid import Grid
from nnssl_reg.geometry.image import Image
from nnssl_reg.geometry.inverse_cpu import invert_lattice, invert_points
from nnssl_reg.geometry.lattice_cpu import jacobian_lattice
from nnssl_reg.geometry.sampling import sample_displaced, sample_grid, sample_points, slabs, to_voxels, warp_nearest
from nnssl_reg.geometry.threads import on_threads
from nnssl_reg.geometry.triton_devices import runs_triton

_INVERTED_MM = 1e-4  # an inverse that misses by less is done


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

    def inverse(self, grid: Grid, iterations: int = 30) -> "DisplacementField":
        """The field on the moving image's grid that leads back, by Newton's method.

        The search for a point begins where the field's affine part leads back, or beside its neighbour's, and ends where it
        misses by less than 0.0001 mm along each axis; steps that do not come nearer are halved. A fold has no inverse.
        """
        vectors, way = self.vectors_mm, (*self._ways(), np.array(grid.affine), _INVERTED_MM, iterations)
        if runs_triton(vectors.device) and vectors.dtype == torch.float32:
            from nnssl_reg.geometry import inverse_triton

            return DisplacementField(inverse_triton.invert_lattice(vectors, *way, grid.shape), grid)
        out = torch.empty(3, *grid.shape, dtype=vectors.dtype)
        on_threads(invert_lattice, grid.shape[0], vectors.cpu().contiguous().numpy(), *way, out.numpy())
        return DisplacementField(out.to(vectors.device), grid)

    def inverse_points(self, points_mm, iterations: int = 50) -> np.ndarray:
        """Moving points (N, 3) RAS mm -> the fixed points they correspond to, (N, 3) float64; the way of `inverse`."""
        points = np.array(points_mm, dtype=np.float64)
        out, vectors = np.empty_like(points), self.vectors_mm.cpu().contiguous().numpy()
        on_threads(invert_points, len(points), vectors, *self._ways(), points, 1e-9, iterations, out)
        return out

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

    def _ways(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Cell -> world, world -> cell, and the inverse of the affine part, (4, 4) each."""
        own, affine = np.array(self.grid.affine), self.affine_part()
        if abs(np.linalg.det(affine[:3, :3])) < 1e-3:  # a single slice tells nothing across it
            return own, np.linalg.inv(own), np.eye(4)
        back = np.linalg.inv(affine)
        return own, np.linalg.inv(own), np.where(np.abs(back - np.eye(4)) < 1e-9, np.eye(4), back)  # no motion, no rounding

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
