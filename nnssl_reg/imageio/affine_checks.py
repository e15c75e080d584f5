"""Whether an affine can stand for a grid of boxes: spacing, singularity and shear, with repair where that is harmless."""

import logging
import math
from pathlib import Path

import numpy as np

from nnssl_reg.geometry.grid import MOST_VOXELS, Grid

MAX_REPAIRED_SHEAR_DEGREES = 0.5  # rounded direction cosines stay far below, a tilted gantry far above
SPACINGS_MM = (1e-4, 1e4)  # what lies outside is a broken header, not a scanner's
_SILENT_MM = 0.01

log = logging.getLogger("nnssl_reg")


def is_spacing(spacing_mm: np.ndarray) -> bool:
    """Whether three numbers can be distances between voxels, mm."""
    return bool(np.isfinite(spacing_mm).all() and SPACINGS_MM[0] <= min(spacing_mm) and max(spacing_mm) <= SPACINGS_MM[1])


def is_usable(affine: np.ndarray) -> bool:
    """Whether an affine (4, 4) is finite and its three axes span a volume."""
    spacing = _spacing(affine)
    if not np.isfinite(affine).all() or not is_spacing(spacing):
        return False
    return bool(abs(np.linalg.det(affine[:3, :3] / spacing)) > 1e-6)


def grid_from_affine(shape: tuple[int, int, int], affine: np.ndarray, path: Path) -> Grid:
    """The grid of an image file, its axes made exactly perpendicular (polar decomposition) where they nearly are.

    A repair that moves a corner by more than 0.01 mm is logged. Raises ValueError for too many voxels, impossible
    spacings, a singular affine, and a shear of more than 0.5 degrees.
    """
    if math.prod(shape) > MOST_VOXELS:
        raise ValueError(f"{path}: {' x '.join(map(str, shape))} are {math.prod(shape):,} voxels, more than {MOST_VOXELS:,}, "
                         "which is as many as can be addressed; crop it, or resample it to larger voxels.")  # fmt: skip
    spacing = _spacing(affine)
    if not np.isfinite(affine).all() or not is_spacing(spacing):
        values = ", ".join(f"{s:g}" for s in spacing)
        raise ValueError(f"{path}: the spacing ({values}) mm is not within {SPACINGS_MM[0]:g} ... {SPACINGS_MM[1]:g} mm; "
                         "write the right affine into its header, e.g. with nibabel: image.set_sform(affine, 1).")  # fmt: skip
    directions = affine[:3, :3] / spacing
    if not is_usable(affine):
        raise ValueError(f"{path}: the affine is singular (determinant of the directions {np.linalg.det(directions):.2g}), its "
                         f"axes {directions.T.round(3).tolist()} lie in one plane; write the right affine into its header, "
                         "e.g. with nibabel: image.set_sform(affine, 1).")  # fmt: skip
    if np.abs(directions.T @ directions - np.eye(3)).max() < 1e-6:
        return Grid(shape, affine)
    return _straightened(Grid(shape, affine), directions, path)


def _spacing(affine: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):  # a broken header may hold numbers whose squares overflow
        return np.linalg.norm(affine[:3, :3], axis=0)


def _straightened(grid: Grid, directions: np.ndarray, path: Path) -> Grid:
    """The nearest grid with perpendicular axes: same spacing, same centre."""
    cosines = np.abs((directions.T @ directions)[np.triu_indices(3, 1)])
    shear = float(np.degrees(np.arcsin(np.clip(cosines.max(), 0, 1))))
    if shear > MAX_REPAIRED_SHEAR_DEGREES:
        raise ValueError(f"{path}: its axes are {shear:.2f} degrees off perpendicular (a shear; up to "
                         f"{MAX_REPAIRED_SHEAR_DEGREES} is repaired). Resample it onto perpendicular axes first, e.g. with "
                         "nibabel.processing.resample_to_output or Slicer's Resample Scalar Volume.")  # fmt: skip
    left, _, right = np.linalg.svd(directions)
    affine = np.eye(4)
    affine[:3, :3] = left @ right * np.array(grid.spacing_mm)
    affine[:3, 3] = grid.center_mm - affine[:3, :3] @ ((np.array(grid.shape) - 1) / 2)
    straight = Grid(grid.shape, affine)
    moved = float(np.linalg.norm(straight.corners_mm() - grid.corners_mm(), axis=1).max())
    if moved > _SILENT_MM:
        log.warning("%s: its axes are %.3f degrees off perpendicular; they were straightened, which moves its corners by up to "
                    "%.2f mm.", path, shear, moved)  # fmt: skip
    return straight
