"""Regions of the fixed image, bones or a tumour, that move as rigid bodies: each by a rotation and a translation."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy import ndimage

from nnssl_reg.geometry.affine import AffineTransform
from nnssl_reg.geometry.displacement import DisplacementField
from nnssl_reg.geometry.grid import Grid
from nnssl_reg.registration.convex_adam import kernels_for
from nnssl_reg.registration.unfolding import folded_cells, unfolded

LEAST_BAND_MM = 5.0
LEAST_BAND_VOXELS = 3
BAND_PER_MM = 3.0  # mm of band per mm that a region's motion differs from the field: the blend then slopes by at most 0.5
MOST_BAND_MM = 50.0  # before it is widened
WIDENINGS = 2  # of the bands, each by half, where folds stay
FOLD_MARGIN = 12  # voxels around folds that are looked at while they are smoothed away, of which the outer ones stay fixed


@dataclass(frozen=True, eq=False)
class RigidRegion:
    """One region and its motion. id: in the mask, or the number of the connected component; matrix: (4, 4) float64, fixed world
    -> moving world, RAS mm, a rotation and a translation; misfit_mm: root mean square distance, over the region's voxels, from
    where the deformable field led them; band_mm: how far around the region the field was changed."""

    id: int
    voxels: int
    matrix: np.ndarray
    misfit_mm: float
    band_mm: float

    @property
    def rotation_degrees(self) -> float:
        return float(np.degrees(np.arccos(np.clip((np.trace(self.matrix[:3, :3]) - 1) / 2, -1, 1))))


@dataclass(frozen=True, eq=False)
class RigidField:
    """A deformation with rigid regions, on the grid of their mask. folded_voxels: that still turn inside out."""

    deformation: DisplacementField
    regions: tuple[RigidRegion, ...]
    folded_voxels: int


def with_rigid_regions(deformation: DisplacementField, mask: np.ndarray, grid: Grid, initial: AffineTransform) -> RigidField:
    """The deformation u on `grid` such that p -> initial(p + u(p)) is a rotation and a translation in each region.

    mask: (X, Y, Z) integers on grid; several ids: each is a region; one: each of its connected components. A region's motion
    is the rigid one nearest to the field over its voxels (least squares). It also holds one voxel around the region, so that
    points between voxels move alike; from there it fades into the field over a band of a few mm. Folds in the bands are
    smoothed away. Beyond the bands nothing changes. Raises ValueError for a mask of another shape or without a region.
    """
    if tuple(mask.shape) != grid.shape:
        raise ValueError(f"The rigid mask has {tuple(mask.shape)} voxels, its grid {grid.shape}: they must agree.")
    regions, ids = numbered_regions(mask)
    if not ids:
        raise ValueError("The rigid mask is empty, so there is no region to keep rigid; give another one or none.")
    found = (deformation if deformation.grid == grid else deformation.on(grid)).vectors_mm.cpu()
    motions = _motions(found.numpy(), regions, grid, initial)
    owners = np.where(regions > 0, regions, ndimage.grey_dilation(regions, size=3))
    for widening in range(WIDENINGS + 1):
        wider = [(motion, motion.band_mm * 1.5**widening) for motion in motions]
        vectors, free = _blended(found.numpy(), owners, grid, initial, wider)
        vectors, folds = _without_folds(torch.from_numpy(vectors), torch.from_numpy(free), grid)
        if not folds:
            break
    kept = tuple(replace(motion, id=number, band_mm=band) for number, (motion, band) in zip(ids, wider))
    device = deformation.vectors_mm.device
    return RigidField(DisplacementField(vectors.to(device), grid), kept, folds)


def numbered_regions(mask: np.ndarray) -> tuple[np.ndarray, list[int]]:
    """The regions of an integer mask as 1, 2, ... in (X, Y, Z) int32, and how each is called.

    They are the mask's ids above 0, or, if there is only one, its connected components (also over edges and corners).
    """
    ids = np.unique(mask[mask > 0])
    if len(ids) == 1:
        regions, count = ndimage.label(mask > 0, structure=np.ones((3, 3, 3)))
        return regions.astype(np.int32), list(range(1, count + 1))
    numbers = np.where(mask > 0, np.searchsorted(ids, mask) + 1, 0)
    return numbers.astype(np.int32), [int(i) for i in ids]


def nearest_rigid(points_mm: np.ndarray, moved_mm: np.ndarray, otherwise: np.ndarray) -> np.ndarray:
    """The rotation and translation (4, 4) with the least squared distance from points to moved points, (N, 3) each.

    Kabsch 1976. otherwise: (3, 3), the linear map whose rotation is taken where the points leave it open (one point, a line).
    """
    middle, moved_middle = points_mm.mean(0), moved_mm.mean(0)
    covariance = (moved_mm - moved_middle).T @ (points_mm - middle)
    covariance = covariance + (1e-9 * np.abs(np.trace(covariance)) + 1e-9) * otherwise
    u, _, vt = np.linalg.svd(covariance)
    rotation = u @ np.diag([1, 1, np.linalg.det(u @ vt)]) @ vt
    out = np.eye(4)
    out[:3, :3], out[:3, 3] = rotation, moved_middle - rotation @ middle
    return out


def _motions(found: np.ndarray, regions: np.ndarray, grid: Grid, initial: AffineTransform) -> list[RigidRegion]:
    """Each region with the rigid motion nearest to the total map, and the band that their difference asks for."""
    motions = []
    least = max(LEAST_BAND_MM, LEAST_BAND_VOXELS * max(grid.spacing_mm))
    for number, box in enumerate(ndimage.find_objects(regions), 1):
        if box is None:
            continue
        inside = np.argwhere(regions[box] == number) + [part.start for part in box]
        points = grid.index_to_world(inside)
        moved = initial.apply(points + found[:, inside[:, 0], inside[:, 1], inside[:, 2]].T)
        matrix = nearest_rigid(points, moved, initial.matrix[:3, :3])
        off = np.linalg.norm(AffineTransform(matrix).apply(points) - moved, axis=1)
        band = max(least, min(MOST_BAND_MM, BAND_PER_MM * float(off.max())))
        motions.append(RigidRegion(number, len(inside), matrix, float(np.sqrt(np.mean(off**2))), band))
    return motions


def _blended(found: np.ndarray, owners: np.ndarray, grid: Grid, initial: AffineTransform,
             motions: list[tuple[RigidRegion, float]]) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """The field (3, X, Y, Z) with the motions inside their regions, faded into it around them; and where it was faded, bool.

    Where bands overlap, regions count by the inverse square of their distance.
    """
    change = np.zeros_like(found)
    weights, most = np.zeros(grid.shape, np.float32), np.zeros(grid.shape, np.float32)
    boxes = ndimage.find_objects(owners)
    for region, band_mm in motions:
        box = _grown(boxes[region.id - 1], band_mm, grid)
        distance = ndimage.distance_transform_edt(owners[box] != region.id, sampling=grid.spacing_mm)
        fade = np.clip(1 - distance / band_mm, 0, 1)
        fade = (fade * fade * (3 - 2 * fade)).astype(np.float32)
        weight = (fade / np.maximum(distance, 1e-3) ** 2).astype(np.float32)
        change[(slice(None), *box)] += weight * (_led_by(region, grid, box, initial) - found[(slice(None), *box)])
        weights[box] += weight
        most[box] = np.maximum(most[box], fade)
    vectors = found + change * (most / np.maximum(weights, 1e-30))
    for region, _ in motions:  # to the last digit
        box = boxes[region.id - 1]
        vectors[(slice(None), *box)] = np.where(
            owners[box] == region.id, _led_by(region, grid, box, initial), vectors[(slice(None), *box)]
        )
    return vectors, (most > 0) & (owners == 0)


def _led_by(region: RigidRegion, grid: Grid, box, initial: AffineTransform) -> np.ndarray:
    """The deformation (3, ...) at the voxels of a box that, before the initial transform, makes the region's motion."""
    inner = grid.cropped([[part.start, part.stop] for part in box])
    index = np.moveaxis(np.indices(inner.shape), 0, -1)
    points = inner.index_to_world(index)
    led = AffineTransform(np.linalg.inv(initial.matrix) @ region.matrix).apply(points)
    return np.moveaxis(led - points, -1, 0).astype(np.float32)


def _grown(box: tuple[slice, ...], margin_mm: float, grid: Grid) -> tuple[slice, ...]:
    """A box with a margin around it, within the grid."""
    margins = [int(np.ceil(margin_mm / spacing)) for spacing in grid.spacing_mm]
    return tuple(slice(max(0, part.start - m), min(n, part.stop + m)) for part, m, n in zip(box, margins, grid.shape))


def _without_folds(vectors: torch.Tensor, free: torch.Tensor, grid: Grid) -> tuple[torch.Tensor, int]:
    """The field in mm (3, X, Y, Z) with folds smoothed away where it is free, and how many voxels stay folded there."""
    linear = torch.as_tensor(grid.affine[:3, :3].copy(), dtype=torch.float32)
    cells = torch.einsum("ij,jxyz->ixyz", torch.linalg.inv(linear), vectors)
    folds = folded_cells(cells) & free
    if not folds.any():
        return vectors, 0
    box = ndimage.find_objects(folds.numpy().astype(np.uint8))[0]
    box = tuple(slice(max(0, part.start - FOLD_MARGIN), part.stop + FOLD_MARGIN) for part in box)
    inner = torch.zeros_like(free)
    inner[
        tuple(slice(part.start + 4 * (part.start > 0), part.stop - 4 * (part.stop < n)) for part, n in zip(box, free.shape))
    ] = True
    free = free & inner
    boxed = (slice(None), *box)
    cells[boxed] = unfolded(cells[boxed].contiguous(), kernels_for(cells.device), free[box])
    smoothed = torch.einsum("ij,jxyz->ixyz", linear, cells)
    return torch.where(free, smoothed, vectors).contiguous(), int((folded_cells(cells, 0.0) & free).sum())
