"""Grid: where the voxels of an array are, in world RAS millimetres."""

import math
from dataclasses import dataclass
from itertools import permutations

import numpy as np
import torch

MOST_VOXELS = 2**31 - 1  # compiled code counts them in 32 bits


@dataclass(frozen=True, eq=False)
class Grid:
    """A regular lattice of voxel centres.

    shape: (X, Y, Z) voxels. affine: (4, 4) float64, index of a voxel's centre -> world RAS mm (nibabel's convention).
    Raises ValueError for a shape that is not three positive integers or more than MOST_VOXELS, or an affine without an inverse.
    """

    shape: tuple[int, int, int]
    affine: np.ndarray

    def __post_init__(self):
        shape = tuple(int(n) for n in self.shape)
        affine = np.array(self.affine, dtype=np.float64)
        if len(shape) != 3 or min(shape) < 1:
            raise ValueError(f"A grid needs three axes of at least one voxel, got shape {shape}.")
        if math.prod(shape) > MOST_VOXELS:
            raise ValueError(f"A grid of {shape} has {math.prod(shape):,} voxels, more than {MOST_VOXELS:,}.")
        if affine.shape != (4, 4) or not np.isfinite(affine).all():
            raise ValueError(f"A grid needs a finite (4, 4) affine, got {affine.tolist()}.")
        if abs(np.linalg.det(affine[:3, :3])) < 1e-12:
            raise ValueError(f"The affine is singular, so voxels have no volume: {affine[:3, :3].tolist()}.")
        affine.setflags(write=False)
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "affine", affine)

    def __eq__(self, other) -> bool:
        return isinstance(other, Grid) and self.matches(other, tolerance_mm=0.0)

    __hash__ = None

    def __repr__(self) -> str:
        spacing = " x ".join(f"{s:.3g}" for s in self.spacing_mm)
        origin = ", ".join(f"{o:.1f}" for o in self.affine[:3, 3])
        return f"Grid({' x '.join(map(str, self.shape))} voxels of {spacing} mm, first centre at ({origin}) RAS mm)"

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Distance between neighbouring voxel centres along each array axis, mm."""
        return tuple(float(s) for s in np.linalg.norm(self.affine[:3, :3], axis=0))

    @property
    def extent_mm(self) -> tuple[float, float, float]:
        """Edge lengths of the field of view (outer voxel faces), mm along each array axis."""
        return tuple(n * s for n, s in zip(self.shape, self.spacing_mm))

    @property
    def center_mm(self) -> np.ndarray:
        """World position of the middle of the field of view, (3,) RAS mm."""
        return self.index_to_world((np.array(self.shape) - 1) / 2)

    def matches(self, other: "Grid", tolerance_mm: float = 1e-3) -> bool:
        """Whether all corners of both grids agree within tolerance_mm and the shapes are equal."""
        if self.shape != other.shape:
            return False
        return bool(np.abs(self.corners_mm() - other.corners_mm()).max() <= tolerance_mm)

    def corners_mm(self) -> np.ndarray:
        """World positions of the eight outermost voxel centres, (8, 3) RAS mm."""
        corners = np.array(np.meshgrid(*[(0, n - 1) for n in self.shape], indexing="ij")).reshape(3, -1).T
        return self.index_to_world(corners)

    def index_to_world(self, index) -> np.ndarray:
        """Voxel indices (..., 3) -> world RAS mm (..., 3), float64."""
        return np.asarray(index, dtype=np.float64) @ self.affine[:3, :3].T + self.affine[:3, 3]

    def world_to_index(self, points_mm) -> np.ndarray:
        """World RAS mm (..., 3) -> continuous voxel indices (..., 3), float64."""
        inverse = np.linalg.inv(self.affine)
        return np.asarray(points_mm, dtype=np.float64) @ inverse[:3, :3].T + inverse[:3, 3]

    def points_mm(self, start: int = 0, stop: int | None = None, device: torch.device | str = "cpu") -> torch.Tensor:
        """World positions of the voxel centres of slabs start..stop along the first axis, (3, X', Y, Z) float32 RAS mm."""
        stop = self.shape[0] if stop is None else stop
        affine = torch.as_tensor(np.array(self.affine))
        axes = [torch.arange(start, stop), torch.arange(self.shape[1]), torch.arange(self.shape[2])]
        parts = [affine[:3, a].view(3, 1, 1, 1) * index.double().view([-1 if a == b else 1 for b in range(3)])
                 for a, index in enumerate(axes)]  # fmt: skip
        points = (parts[0] + affine[:3, 3].view(3, 1, 1, 1)).float() + parts[1].float() + parts[2].float()
        return points.to(device)

    def coarsened(self, factor) -> "Grid":
        """The grid of blocks of `factor` voxels (one int or three); an incomplete last block is dropped."""
        factor = np.broadcast_to(np.asarray(factor, dtype=int), 3)
        shape = tuple(n // f for n, f in zip(self.shape, factor))
        block = np.diag([*factor, 1.0])
        block[:3, 3] = (factor - 1) / 2  # a block's centre lies half a block, less half a voxel, from its first voxel
        return Grid(shape, self.affine @ block)

    def cropped(self, box) -> "Grid":
        """The grid of voxels box = [[start, stop], ...] (half open); starts below 0 or stops past the end pad."""
        box = np.asarray(box, dtype=int)
        shift = np.eye(4)
        shift[:3, 3] = box[:, 0]
        return Grid(tuple(box[:, 1] - box[:, 0]), self.affine @ shift)

    def with_spacing(self, spacing_mm) -> "Grid":
        """The same field of view (same centre, edges to the nearest voxel) at another spacing, mm."""
        old = np.array(self.spacing_mm)
        new = np.broadcast_to(np.asarray(spacing_mm, dtype=np.float64), 3)
        shape = np.maximum(1, np.round(np.array(self.shape) * old / new + 1e-6).astype(int))
        affine = np.eye(4)
        affine[:3, :3] = self.affine[:3, :3] * (new / old)
        affine[:3, 3] = self.center_mm - affine[:3, :3] @ ((shape - 1) / 2)
        return Grid(tuple(shape), affine)

    def canonical_axes(self) -> tuple[tuple[int, int, int], tuple[bool, bool, bool]]:
        """How to permute, then flip, the array axes so that they run closest to right, anterior, superior.

        Returns (permutation, flips): new axis i is old axis permutation[i], reversed where flips[i].
        """
        directions = self.affine[:3, :3] / np.array(self.spacing_mm)
        best = max(permutations(range(3)), key=lambda p: sum(abs(directions[i, p[i]]) for i in range(3)))
        return best, tuple(bool(directions[i, best[i]] < 0) for i in range(3))

    def canonical(self) -> "Grid":
        """The same voxels with their axes in canonical (closest to RAS) order and direction."""
        permutation, flips = self.canonical_axes()
        affine = np.array(self.affine)[:, [*permutation, 3]]
        shape = tuple(self.shape[p] for p in permutation)
        for axis, flip in enumerate(flips):
            if flip:
                affine[:3, 3] += affine[:3, axis] * (shape[axis] - 1)
                affine[:3, axis] *= -1
        return Grid(shape, affine)

    def rounded(self) -> "Grid":
        """This grid to about 0.001 mm, so that what float32 headers of the same image in other orders say becomes the same."""
        affine = np.array(self.affine)
        affine[:3, :3] = np.round(affine[:3, :3] * 2**17) / 2**17  # binary, because spacings such as 500 / 512 are
        affine[:3, 3] = self.center_mm - affine[:3, :3] @ ((np.array(self.shape) - 1) / 2)
        return Grid(self.shape, affine)

    def seen_from(self, point_mm) -> "Grid":
        """This grid in a world whose origin is a point of this one, to about 0.001 mm."""
        affine = np.array(self.affine)
        affine[:3, 3] = np.round((affine[:3, 3] - point_mm) * 2**10) / 2**10
        return Grid(self.shape, affine)

    def obliqueness_degrees(self) -> float:
        """Largest angle between a canonical array axis and the world axis it runs along, degrees."""
        canonical = self.canonical()
        cosines = np.diag(canonical.affine[:3, :3]) / np.array(canonical.spacing_mm)
        return float(np.degrees(np.arccos(np.clip(cosines.min(), -1, 1))))

    def world_aligned(self) -> "Grid":
        """The smallest grid along the world axes that holds all voxel centres, cubic voxels of the finest spacing."""
        spacing = min(self.spacing_mm)
        corners = self.corners_mm()
        low, high = corners.min(axis=0), corners.max(axis=0)
        affine = np.diag([spacing, spacing, spacing, 1.0])
        affine[:3, 3] = low
        return Grid(tuple(np.ceil((high - low) / spacing - 1e-6).astype(int) + 1), affine)
