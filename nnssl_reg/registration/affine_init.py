"""Initial alignment: candidates for where the moving patient lies, an affine refinement, and the choice by cost."""

import logging
from dataclasses import dataclass

import numpy as np
import torch

from nnssl_reg.geometry.affine import AffineTransform
from nnssl_reg.geometry.grid import Grid
from nnssl_reg.geometry.image import FeatureMap, Image
from nnssl_reg.geometry.sampling import inside, resample, sample_voxels, to_voxels
from nnssl_reg.registration.cells import comparable_cells, feature_scale
from nnssl_reg.registration.convex_adam import blocks_and_radius, cell_to_cell, kernels_for
from nnssl_reg.registration.coupled_convex import match_blocks

MODES = ("auto", "identity", "center", "moments", "affine")
_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])  # RAS <-> LPS
MINIMUM_OVERLAP = 0.2  # share of an image that a transform must bring to overlap to be considered
OUTSIDE_COST = 0.1  # of a fixed image that the moving one does not overlap at all, in units of unrelated cells
MINIMUM_MATCHES = 16
ENOUGH_CELLS = 48  # per axis, from which on the first affine fit is as good on half of them
INTENSITY_CELLS = 64  # longest edge, in voxels, of the images given to the intensity-based affine registration


@dataclass(frozen=True)
class InitialAlignment:
    """The chosen transform, its name, and the cost of every candidate (0 perfect, 1 as unrelated images)."""

    transform: AffineTransform
    name: str
    costs: dict[str, float]


def initial_alignment(mode: str, fixed: Image, moving: Image, fixed_features: FeatureMap, moving_features: FeatureMap):
    """The initial transform, fixed world -> moving world.

    mode: identity; center (of the fields of view); moments (centres of mass); affine (from the best translation); auto: the
    candidate of all these with the least feature cost. Returns an InitialAlignment. Raises ValueError for another mode.
    """
    if mode not in MODES:
        raise ValueError(f"Initial alignment '{mode}' is not one of {', '.join(MODES)}.")
    features = (fixed_features, moving_features)
    candidates = {"identity": AffineTransform.identity()}
    if mode in ("center", "affine", "auto"):
        candidates["center"] = AffineTransform.translation(moving.grid.center_mm - fixed.grid.center_mm)
    if mode in ("moments", "affine", "auto"):
        candidates["moments"] = AffineTransform.translation(center_of_mass_mm(moving) - center_of_mass_mm(fixed))
    costs = {name: alignment_cost(*features, transform) for name, transform in candidates.items()}
    if mode in ("affine", "auto"):
        candidates["translation"] = best_translation(*features)
        costs["translation"] = alignment_cost(*features, candidates["translation"])
        start = candidates[min(costs, key=costs.get)]
        candidates["affine"] = min(
            _affine_candidates(fixed, moving, *features, start), key=lambda a: alignment_cost(*features, a)
        )
        costs["affine"] = alignment_cost(*features, candidates["affine"])
    name = min(costs, key=costs.get) if mode == "auto" else mode
    return InitialAlignment(candidates[name], name, costs)


def _affine_candidates(fixed, moving, fixed_features, moving_features, start) -> list[AffineTransform]:
    """Two affine transforms: from feature matches alone, and from intensities (mutual information), then feature matches."""
    extent = max(fixed_features.grid.extent_mm)
    coarse = [_halved(features) for features in (fixed_features, moving_features)]
    by_matches = refine_affine(*coarse, start, extent / 16, 3, iterations=4)
    by_intensities = mutual_information_affine(fixed, moving, start)
    return [
        refine_affine(fixed_features, moving_features, a, extent / 32, 2, iterations=2) for a in (by_matches, by_intensities)
    ]


def _halved(features: FeatureMap) -> FeatureMap:
    """Features averaged over 2 x 2 x 2 cells where there are enough cells to spare."""
    factor = [2 if n >= ENOUGH_CELLS else 1 for n in features.grid.shape]
    values = torch.nn.functional.avg_pool3d(features.values[None], factor, stride=factor)[0]
    return FeatureMap(values, features.grid.coarsened(factor))


def mutual_information_affine(fixed: Image, moving: Image, start: AffineTransform) -> AffineTransform:
    """SimpleITK's affine registration by Mattes mutual information, on images of at most 64 voxels an edge."""
    import SimpleITK as sitk  # here, because most of the package works without it

    spacing = max(*fixed.grid.extent_mm, *moving.grid.extent_mm) / INTENSITY_CELLS
    spacing = max(spacing, *fixed.grid.spacing_mm[:2])
    images = [_as_sitk(resample(i, i.grid.with_spacing(np.maximum(spacing, i.grid.spacing_mm)))) for i in (fixed, moving)]
    matrix = _LPS @ start.matrix @ _LPS
    center = _LPS[:3, :3] @ fixed.grid.center_mm
    transform = sitk.AffineTransform(3)
    transform.SetCenter(center.tolist())
    transform.SetMatrix(matrix[:3, :3].ravel().tolist())
    transform.SetTranslation((matrix[:3, :3] @ center + matrix[:3, 3] - center).tolist())
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(32)
    method.SetMetricSamplingStrategy(method.REGULAR)
    method.SetMetricSamplingPercentage(0.25, 1)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsGradientDescent(1.0, 100, 1e-6, 10)
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel([2, 1])
    method.SetSmoothingSigmasPerLevel([1, 0])
    method.SetInitialTransform(transform, True)
    try:
        method.Execute(*images)
    except RuntimeError as error:  # ITK throws when the images stop overlapping: the start is then as good as it gets
        logging.getLogger(__name__).info("Intensity-based affine registration gave up: %s", str(error).splitlines()[-1])
        return start
    linear = np.array(transform.GetMatrix()).reshape(3, 3)
    result = np.eye(4)
    result[:3, :3] = linear
    result[:3, 3] = np.array(transform.GetTranslation()) + center - linear @ center
    return AffineTransform(_LPS @ result @ _LPS)


def _as_sitk(image: Image):
    import SimpleITK as sitk  # here, because most of the package works without it

    out = sitk.GetImageFromArray(np.ascontiguousarray(image.array[0].T))
    affine = _LPS @ image.grid.affine
    out.SetSpacing(image.grid.spacing_mm)
    out.SetOrigin(affine[:3, 3].tolist())
    out.SetDirection((affine[:3, :3] / np.array(image.grid.spacing_mm)).ravel().tolist())
    return out


def alignment_cost(fixed: FeatureMap, moving: FeatureMap, transform: AffineTransform) -> float:
    """Mean squared feature difference where the images overlap (1: as unrelated cells), plus what lacks of overlap cost.

    Cells outside the moving image say nothing, so they do not count as differences; OUTSIDE_COST only keeps the overlap from
    shrinking to where it happens to fit. 1 + OUTSIDE_COST where less than MINIMUM_OVERLAP of the smaller image overlaps.
    """
    position = to_voxels(transform.apply_dense(fixed.grid.points_mm(device=fixed.values.device)), moving.grid)
    valid = inside(position, moving.grid.shape)
    overlap = float(valid.sum()) * _cell_volume(fixed) / min(_volume(fixed), _volume(moving))
    if overlap < MINIMUM_OVERLAP:
        return 1.0 + OUTSIDE_COST
    difference = (sample_voxels(moving.values, position) - fixed.values).square().sum(0)[valid].mean()
    return float(difference) / feature_scale(fixed.values, moving.values) ** 2 + OUTSIDE_COST * max(0.0, 1 - overlap)


def _cell_volume(features: FeatureMap) -> float:
    return float(np.prod(features.grid.spacing_mm))


def _volume(features: FeatureMap) -> float:
    return float(np.prod(features.grid.extent_mm))


def center_of_mass_mm(image: Image) -> np.ndarray:
    """Centre of mass of the intensities above the image's minimum, (3,) RAS mm."""
    weight = np.clip(image.array[0], *np.percentile(image.array[0], (1, 99))).astype(np.float64)
    weight -= weight.min()
    total = weight.sum()
    sums = [weight.sum(axis=tuple(a for a in range(3) if a != axis)) for axis in range(3)]
    index = [float((np.arange(len(s)) * s).sum() / max(total, 1e-12)) for s in sums]
    return image.grid.index_to_world(index) if total > 0 else image.grid.center_mm


def best_translation(fixed: FeatureMap, moving: FeatureMap) -> AffineTransform:
    """The translation with the least feature difference over the overlap, searched over all overlaps by FFT.

    Both maps are brought to cubic cells of one size; the cost of a shift is the mean squared difference over the overlap,
    and 1 (that of unrelated cells) where the fixed image is not overlapped.
    """
    spacing = max(max(fixed.grid.spacing_mm), max(moving.grid.spacing_mm), max(fixed.grid.extent_mm) / 48)
    directions = fixed.grid.affine[:3, :3] / np.array(fixed.grid.spacing_mm)
    a, b = (_on_lattice(f, spacing, directions) for f in (fixed, moving))
    shape = [n + m for n, m in zip(a.values.shape[1:], b.values.shape[1:])]
    ones_a, ones_b = (torch.ones(1, *f.values.shape[1:], device=f.values.device) for f in (a, b))

    def correlate(p, q):  # sum over x of p(x) q(x + s) for every shift s
        return torch.fft.irfftn(torch.fft.rfftn(p, shape).conj() * torch.fft.rfftn(q, shape), shape).sum(0)

    overlap = correlate(ones_a, ones_b).round()
    squared = correlate(a.values.square(), ones_b) + correlate(ones_a, b.values.square())
    difference = (squared - 2 * correlate(a.values, b.values)) / feature_scale(a.values, b.values) ** 2
    count = ones_a.numel()
    cost = (difference.clamp(min=0) + (count - overlap).clamp(min=0)) / count
    cost[overlap < MINIMUM_OVERLAP * min(count, ones_b.numel())] = float("inf")
    best = np.unravel_index(int(cost.argmin()), cost.shape)
    shift = [s if s < m else s - n for s, m, n in zip(best, b.values.shape[1:], shape)]
    return AffineTransform.translation(b.grid.index_to_world(shift) - a.grid.index_to_world((0, 0, 0)))


def refine_affine(fixed, moving, start: AffineTransform, block_mm: float, radius_blocks: int, iterations: int):
    """An affine transform fitted, by least trimmed squares, to block matches found around the current one; repeated."""
    kernels = kernels_for(fixed.values.device)
    cells = comparable_cells(fixed, moving, (None, None), kernels)
    factor, radius = blocks_and_radius(fixed.grid.spacing_mm, fixed.grid.shape, block_mm, block_mm * radius_blocks)
    still = torch.zeros(3, *fixed.grid.shape, device=fixed.values.device)
    blocks = fixed.grid.coarsened(factor)
    points = blocks.points_mm().reshape(3, -1).T.double().numpy()
    transform = start
    for _ in range(iterations):
        matrix = cell_to_cell(fixed, moving, transform)
        step = match_blocks(*cells, matrix, still, factor, radius, kernels)
        step = step[(slice(None), *(slice(n) for n in blocks.shape))].reshape(3, -1).T.double().cpu().numpy()
        moved = points + step @ blocks.affine[:3, :3].T
        keep = inside(to_voxels(torch.as_tensor(transform.apply(moved).T), moving.grid), moving.grid.shape).numpy()
        if keep.sum() < MINIMUM_MATCHES:
            break
        transform = least_trimmed_squares(points[keep], moved[keep]).then(transform)
    return transform


def least_trimmed_squares(points, moved, keep: float = 0.6, iterations: int = 10) -> AffineTransform:
    """The affine transform from points to moved (N, 3) fitted to the `keep` share of pairs that it fits best."""
    centre, step = points.mean(axis=0), moved - points
    homogeneous = np.c_[points - centre, np.ones(len(points))]
    chosen = np.arange(len(points))
    for _ in range(iterations):
        # of all solutions lstsq takes the smallest: across matches in one plane (a thin image) nothing is stretched
        solution, *_ = np.linalg.lstsq(homogeneous[chosen], step[chosen], rcond=None)
        residual = np.linalg.norm(homogeneous @ solution - step, axis=1)
        chosen = np.argsort(residual, kind="stable")[: max(8, int(keep * len(points)))]
    matrix = np.eye(4)
    matrix[:3, :3] += solution[:3].T
    matrix[:3, 3] = solution[3] - solution[:3].T @ centre
    return AffineTransform(matrix)


def _on_lattice(features: FeatureMap, spacing: float, directions) -> FeatureMap:
    """Features on cubic cells along `directions`, (near) the same field of view, less their mean (shifts stay the same)."""
    corners = features.grid.corners_mm() @ directions
    low = corners.min(axis=0)
    shape = np.maximum(1, np.round((corners.max(axis=0) - low) / spacing).astype(int) + 1)
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = directions * spacing, directions @ low
    grid = Grid(tuple(shape), affine)
    position = to_voxels(grid.points_mm(device=features.values.device), features.grid)
    return FeatureMap(sample_voxels(features.values.float(), position), grid)
