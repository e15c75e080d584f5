"""Numbers that judge a registration: overlap, surface distances in mm, regularity of the field, landmark errors in mm."""

from collections.abc import Iterable

import numpy as np
import torch
from scipy import ndimage
from scipy.spatial import cKDTree

from nnssl_reg.geometry.displacement import DisplacementField


def label_ids(labels: np.ndarray) -> list[int]:
    """The label ids in an integer array, without the background 0, ascending."""
    return [int(i) for i in np.unique(labels) if i != 0]


def dice(fixed: np.ndarray, warped: np.ndarray, labels: Iterable[int]) -> dict[int, float]:
    """2 |A and B| / (|A| + |B|) of each label of two integer arrays (X, Y, Z).

    A label that is in one array only scores 0 (it was lost or invented), one that is in neither is NaN. Raises ValueError
    where the shapes differ.
    """
    _check_shapes(fixed, warped)
    labels = sorted(labels)
    a, b = _numbered(fixed, labels), _numbered(warped, labels)
    n = len(labels) + 1
    joint = np.zeros((n, n), dtype=np.int64)
    for plane_a, plane_b in zip(a, b):  # one at a time, for indices take eight bytes each
        joint += np.bincount(plane_a.ravel().astype(np.int64) * n + plane_b.ravel(), minlength=n * n).reshape(n, n)
    sizes = joint.sum(axis=0) + joint.sum(axis=1)
    return {label: float(2 * joint[i, i] / sizes[i]) if sizes[i] else float("nan") for i, label in enumerate(labels, 1)}


def surface_distances_mm(fixed: np.ndarray, warped: np.ndarray, spacing_mm, labels: Iterable[int]) -> dict[int, np.ndarray]:
    """Per label the distances from each surface voxel of either array to the nearest of the other, both directions joined.

    A surface voxel has a face neighbour outside the label (or the array's border). spacing_mm: along the array axes. The
    array of a label that is absent from either is empty.
    """
    _check_shapes(fixed, warped)
    labels = sorted(labels)
    a, b = _numbered(fixed, labels), _numbered(warped, labels)
    boxes = zip(ndimage.find_objects(a, len(labels)), ndimage.find_objects(b, len(labels)))
    out = {}
    for i, (label, (box_a, box_b)) in enumerate(zip(labels, boxes), 1):
        if box_a is None or box_b is None:
            out[label] = np.zeros(0)
            continue
        points_a, points_b = _surface_mm(a, box_a, i, spacing_mm), _surface_mm(b, box_b, i, spacing_mm)
        out[label] = np.concatenate([_tree(points_b).query(points_a)[0], _tree(points_a).query(points_b)[0]])
    return out


def hd95_mm(fixed: np.ndarray, warped: np.ndarray, spacing_mm, label: int = 1) -> float:
    """95th percentile of the surface distances of one label, both directions joined, mm. NaN where it is absent."""
    return hd95_of(surface_distances_mm(fixed, warped, spacing_mm, [label])[label])


def mean_surface_distance_mm(fixed: np.ndarray, warped: np.ndarray, spacing_mm, label: int = 1) -> float:
    """Mean of the surface distances of one label, both directions joined, mm. NaN where it is absent."""
    return mean_of(surface_distances_mm(fixed, warped, spacing_mm, [label])[label])


def hd95_of(distances_mm: np.ndarray) -> float:
    """95th percentile of surface distances, NaN of none."""
    return float(np.percentile(distances_mm, 95)) if len(distances_mm) else float("nan")


def mean_of(values) -> float:
    """Mean without the NaN among the values, NaN if nothing is left."""
    values = np.asarray(list(values), dtype=np.float64)
    values = values[~np.isnan(values)]
    return float(values.mean()) if len(values) else float("nan")


def sd_log_jacobian(jacobian, border: int = 2) -> float:
    """Standard deviation of log(clip(J, 1e-9, 1e9)) without the outer `border` voxels: SDlogJ as Learn2Reg describes it.

    jacobian: (X, Y, Z) determinants, numpy or torch. An axis too short for the border keeps all its voxels.
    """
    total, squares, planes = 0.0, 0.0, np.asarray(inner_voxels(jacobian, border))
    first = np.log(np.clip(planes[0, 0, 0], 1e-9, 1e9))  # subtracted, because far from 0 the squares would cost digits
    for plane in planes:  # one at a time, in the cache
        logs = np.log(np.clip(plane, 1e-9, 1e9)) - first
        total, squares = total + logs.sum(dtype=np.float64), squares + np.einsum("yz,yz->", logs, logs, dtype=np.float64)
    mean = total / planes.size
    return float(max(squares / planes.size - mean * mean, 0.0) ** 0.5)


def folding_percent(jacobian, border: int = 2) -> float:
    """Share of voxels with J <= 0 without the outer `border` voxels, percent."""
    return float(100 * (inner_voxels(jacobian, border) <= 0).mean())


def tre_mm(fixed_points_mm, moving_points_mm, field: DisplacementField) -> np.ndarray:
    """Distance of each fixed landmark, carried to the moving image by the field, from its moving landmark: (N,) mm."""
    fixed_points_mm, moving_points_mm = np.asarray(fixed_points_mm), np.asarray(moving_points_mm)
    if fixed_points_mm.shape != moving_points_mm.shape:
        raise ValueError(f"Landmarks come in pairs, got {fixed_points_mm.shape} fixed and {moving_points_mm.shape} moving.")
    return np.linalg.norm(field.apply_to_points(fixed_points_mm) - moving_points_mm, axis=1)


def inverse_error_mm(forward: DisplacementField, backward: DisplacementField, points: int = 50_000) -> np.ndarray:
    """|p - backward(forward(p))| at about `points` voxel centres of forward's grid that land inside backward's grid, mm."""
    shape, target = forward.grid.shape, backward.grid
    stride = max(1, round((np.prod(shape) / points) ** (1 / 3)))
    index = np.stack(np.meshgrid(*[np.arange(0, n, stride) for n in shape], indexing="ij"), axis=-1).reshape(-1, 3)
    start = forward.grid.index_to_world(index)
    there = forward.apply_to_points(start)
    landed = target.world_to_index(there)
    inside = ((landed >= -0.5) & (landed <= np.array(target.shape) - 0.5)).all(axis=1)
    if not inside.any():
        return np.zeros(0)
    return np.linalg.norm(backward.apply_to_points(there[inside]) - start[inside], axis=1)


def _check_shapes(fixed: np.ndarray, warped: np.ndarray) -> None:
    if fixed.shape != warped.shape:
        raise ValueError(f"Labels are compared on one grid, got arrays of shape {fixed.shape} and {warped.shape}.")


def _numbered(array: np.ndarray, labels: list[int]) -> np.ndarray:
    """Ids replaced by 1, 2, ... in the order of `labels` (sorted), everything else by 0: small numbers for any ids."""
    ids, small = np.asarray(labels or [0], dtype=np.int64), np.min_scalar_type(len(labels))
    if min(int(array.min()), ids[0]) >= 0 and max(int(array.max()), ids[-1]) < 2**16:
        table = np.zeros(2**16, dtype=small)  # a look-up is several times faster than a search
        table[labels] = np.arange(1, len(labels) + 1)
        return table[array]
    index = np.minimum(np.searchsorted(ids, array), len(ids) - 1)
    return np.where((ids[index] == array) & bool(labels), index + 1, 0).astype(small)


def _surface_mm(numbered: np.ndarray, box, number: int, spacing_mm) -> np.ndarray:
    """Positions of the surface voxels of one label inside its box, (N, 3) mm along the array axes."""
    mask = numbered[box] == number
    surface = mask & ~ndimage.binary_erosion(mask)  # the box ends where the label does, so its border is surface
    return (np.argwhere(surface) + [part.start for part in box]) * np.asarray(spacing_mm, dtype=np.float64)


def _tree(points_mm: np.ndarray) -> cKDTree:
    """A search tree for surfaces: in this form it answers about twice as fast as by default, and faster than two
    distance transforms of the label's box."""
    return cKDTree(points_mm, leafsize=32, compact_nodes=False, balanced_tree=False)


def inner_voxels(jacobian, border: int = 2) -> np.ndarray:
    """Values (X, Y, Z), numpy or torch, without the outer `border` voxels; an axis too short for that keeps all of its own."""
    values = jacobian.cpu().numpy() if isinstance(jacobian, torch.Tensor) else np.asarray(jacobian)
    return values[tuple(slice(border, -border) if n > 2 * border else slice(None) for n in values.shape)]
