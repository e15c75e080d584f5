"""Metrics as the Learn2Reg challenge computes them, where that differs from ours; each has its name with _l2r at the end."""

import math
from itertools import product

import numpy as np
from scipy import ndimage
from scipy.spatial import cKDTree

from nnssl_reg.evaluation.metrics import inner_voxels
from nnssl_reg.geometry.displacement import DisplacementField
from nnssl_reg.geometry.grid import Grid

_CUT = math.sqrt(3) / 8  # area of the triangle that cuts one corner off a unit cube, through the middles of three edges
_ROOF = math.sqrt(0.5)  # the rectangle that cuts one edge off
_SQUARED_DISTANCES = (1, 2, 3)  # between corners of a cube: along an edge, a face diagonal, the space diagonal
_AREAS = {  # (corners inside, edges, face diagonals, space diagonals between them) -> area of the marching cubes surface
    (1, 0, 0, 0): _CUT,
    (2, 1, 0, 0): _ROOF,
    (2, 0, 1, 0): 2 * _CUT,
    (2, 0, 0, 1): 2 * _CUT,
    (3, 2, 1, 0): 0.5 + 3 * _CUT,
    (3, 1, 1, 1): _ROOF + _CUT,
    (3, 0, 3, 0): 3 * _CUT,
    (4, 4, 2, 0): 1.0,
    (4, 3, 3, 0): 6 * _CUT,
    (4, 3, 2, 1): _ROOF + 4 * _CUT,
    (4, 2, 3, 1): 0.5 + 4 * _CUT,
    (4, 2, 2, 2): 2 * _ROOF,
    (4, 0, 6, 0): 4 * _CUT,
}


def sd_log_jacobian_l2r(jacobian) -> float:
    """Standard deviation of log(clip(J + 3, 1e-9, 1e9)) without the outer two voxels, (X, Y, Z) determinants.

    The 3 is added by Learn2Reg's evaluation; with it a fold down to J = -3 is no outlier, and none is counted.
    """
    return float(np.log(np.clip(inner_voxels(jacobian).astype(np.float64) + 3, 1e-9, 1e9)).std())


def hd95_l2r(fixed: np.ndarray, warped: np.ndarray, labels) -> dict[int, float]:
    """Robust Hausdorff distance (95 %) of each label of two integer arrays (X, Y, Z), in voxels of 1 whatever the spacing.

    Surfaces are elements at voxel corners, weighted by their area in marching cubes; the larger of both directions counts.
    NaN where a label is absent from `fixed`, infinite where it is lost in `warped`.
    """
    return {label: _robust_hausdorff(fixed == label, warped == label) for label in labels}


def tre_l2r(fixed_points_mm, moving_points_mm, field: DisplacementField, moving_grid: Grid) -> np.ndarray:
    """Landmark errors (N,) mm: displacements in voxels by cubic splines between voxels, times the moving image's spacing."""
    fixed_vox, moving_vox = field.grid.world_to_index(fixed_points_mm), moving_grid.world_to_index(moving_points_mm)
    displacement = field.in_voxels(moving_grid).cpu().numpy()
    shift = np.stack([ndimage.map_coordinates(component, fixed_vox.T) for component in displacement], axis=1)
    return np.linalg.norm((fixed_vox + shift - moving_vox) * np.array(moving_grid.spacing_mm), axis=1)


def surface_element_area(corners: np.ndarray) -> float:
    """Area of the marching cubes surface in a unit cube, (2, 2, 2) bool: which corners lie inside."""
    inside = np.argwhere(corners if corners.sum() <= 4 else ~corners)  # the surface has two sides
    between = [int(((a - b) ** 2).sum()) for i, a in enumerate(inside) for b in inside[:i]]
    return _AREAS.get((len(inside), *(between.count(squared) for squared in _SQUARED_DISTANCES)), 0.0)


_AREA_OF_CODE = np.array([surface_element_area(np.reshape(bits, (2, 2, 2)) > 0) for bits in product((0, 1), repeat=8)])


def _robust_hausdorff(fixed: np.ndarray, warped: np.ndarray) -> float:
    if not fixed.any():
        return math.nan
    if not warped.any():
        return math.inf
    surfaces = [_surface_elements(mask) for mask in (fixed, warped)]
    trees = [cKDTree(points, leafsize=32, compact_nodes=False, balanced_tree=False) for points, _ in surfaces]
    one_way = (_weighted_percentile(trees[1 - i].query(points)[0], areas) for i, (points, areas) in enumerate(surfaces))
    return max(one_way)


def _surface_elements(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Corners of voxels where inside and outside meet, (N, 3), and the area of the surface around each, (N,)."""
    box = ndimage.find_objects(mask.astype(np.uint8))[0]
    inside = np.pad(mask[box], 1)
    shape = [n - 1 for n in inside.shape]
    code = np.zeros(shape, dtype=np.uint8)
    for corner in product((0, 1), repeat=3):
        code = 2 * code + inside[tuple(slice(c, c + n) for c, n in zip(corner, shape))]
    surface = (code > 0) & (code < 255)
    return np.argwhere(surface) + [part.start for part in box], _AREA_OF_CODE[code[surface]]


def _weighted_percentile(distances: np.ndarray, areas: np.ndarray, share: float = 0.95) -> float:
    """The distance below which `share` of the area lies."""
    order = np.argsort(distances)
    covered = np.cumsum(areas[order]) / areas.sum()
    return float(distances[order][min(np.searchsorted(covered, share), len(order) - 1)])
