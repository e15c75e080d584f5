"""AffineTransform between the worlds of two images, and its composition with a displacement field."""

from dataclasses import dataclass
from itertools import permutations, product

import numpy as np
import torch

from nnssl_reg.geometry.displacement import DisplacementField
from nnssl_reg.geometry.grid import Grid
from nnssl_reg.geometry.image import Image
from nnssl_reg.geometry.sampling import sample_grid, warp_nearest


@dataclass(frozen=True, eq=False)
class AffineTransform:
    """Fixed world -> moving world. matrix: (4, 4) float64 on homogeneous RAS mm. Raises ValueError if not invertible."""

    matrix: np.ndarray

    def __post_init__(self):
        matrix = np.array(self.matrix, dtype=np.float64)
        if matrix.shape != (4, 4) or not np.isfinite(matrix).all() or abs(np.linalg.det(matrix[:3, :3])) < 1e-12:
            raise ValueError(f"An affine transform needs an invertible (4, 4) matrix, got {matrix.tolist()}.")
        matrix.setflags(write=False)
        object.__setattr__(self, "matrix", matrix)

    @staticmethod
    def identity() -> "AffineTransform":
        """The transform that leaves every point where it is."""
        return AffineTransform(np.eye(4))

    @staticmethod
    def translation(offset_mm) -> "AffineTransform":
        """p -> p + offset_mm, (3,) RAS mm."""
        matrix = np.eye(4)
        matrix[:3, 3] = offset_mm
        return AffineTransform(matrix)

    @staticmethod
    def about(linear, point_mm) -> "AffineTransform":
        """p -> linear (p - point_mm) + point_mm, linear (3, 3)."""
        matrix, point = np.eye(4), np.asarray(point_mm, dtype=np.float64)
        matrix[:3, :3] = linear
        matrix[:3, 3] = point - matrix[:3, :3] @ point
        return AffineTransform(matrix)

    @property
    def is_identity(self) -> bool:
        return bool(np.array_equal(self.matrix, np.eye(4)))

    def apply(self, points_mm) -> np.ndarray:
        """Points (..., 3) RAS mm of the fixed world -> the moving world, float64."""
        return np.asarray(points_mm, dtype=np.float64) @ self.matrix[:3, :3].T + self.matrix[:3, 3]

    def apply_dense(self, points_mm: torch.Tensor) -> torch.Tensor:
        """Points (3, ...) RAS mm of the fixed world -> the moving world, in their dtype."""
        m = torch.as_tensor(np.array(self.matrix), dtype=points_mm.dtype, device=points_mm.device)
        return torch.einsum("ij,j...->i...", m[:3, :3], points_mm) + m[:3, 3].view(3, *[1] * (points_mm.ndim - 1))

    def inverse(self) -> "AffineTransform":
        """Moving world -> fixed world."""
        return AffineTransform(np.linalg.inv(self.matrix))

    def then(self, other: "AffineTransform") -> "AffineTransform":
        """p -> other(self(p))."""
        return AffineTransform(other.matrix @ self.matrix)

    def warp(self, moving: Image, grid: Grid) -> Image:
        """The moving image on a (fixed) grid: what `as_field(grid).warp(moving)` gives, without the field."""
        placed = Grid(grid.shape, self.matrix @ grid.affine)  # in the moving world
        if moving.is_label:
            return Image(warp_nearest(moving.array, moving.grid, None, placed, 0), grid)
        values = torch.from_numpy(np.ascontiguousarray(moving.array))
        return Image(sample_grid(values, moving.grid, placed, fill=float(moving.array.min())).numpy(), grid)

    def as_field(self, grid: Grid) -> DisplacementField:
        """This transform as a displacement field on a (fixed) grid."""
        return self.after(DisplacementField(torch.zeros(3, *grid.shape), grid))

    def after(self, deformation: DisplacementField, grid: Grid | None = None) -> DisplacementField:
        """The total field p -> self(p + deformation(p)), on the deformation's grid or as seen on another one."""
        found = deformation.vectors_mm
        linear = torch.as_tensor(self.matrix[:3, :3].copy(), dtype=found.dtype, device=found.device)
        total = DisplacementField(torch.einsum("ij,jxyz->ixyz", linear, found), deformation.grid)
        total = total if grid is None else total.on(grid)
        # at voxel (i, j, k) the transform itself moves a point by start + i * along[0] + j * along[1] + k * along[2]
        moved = (self.matrix - np.eye(4)) @ total.grid.affine
        x, y, z = (np.outer(moved[:3, axis], np.arange(count)) for axis, count in enumerate(total.grid.shape))
        x += moved[:3, 3:]
        for steps in ((x[:, :, None] + y[:, None])[..., None], z[:, None, None]):
            total.vectors_mm.add_(torch.as_tensor(steps, dtype=found.dtype, device=found.device))
        return total


def right_angled_rotations() -> list[np.ndarray]:
    """The 24 rotations (3, 3) that bring the axes onto each other, first the one that does nothing."""
    turned = [np.diag(signs)[:, order] for order in permutations(range(3)) for signs in product((1.0, -1.0), repeat=3)]
    return [rotation for rotation in turned if np.linalg.det(rotation) > 0]
