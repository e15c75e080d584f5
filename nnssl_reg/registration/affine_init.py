"""Initial alignment: where the moving patient may lie, affine refinements of the likeliest places, and the choice by cost."""

from dataclasses import dataclass

import numpy as np

from nnssl_reg.geometry.affine import AffineTransform
from nnssl_reg.geometry.image import FeatureMap, Image
from nnssl_reg.registration.affine_fit import refine_affine
from nnssl_reg.registration.shift_search import likely_shifts
from nnssl_reg.registration.structure import NO_OVERLAP_COST, alignment_cost, in_cells, structure

MODES = ("auto", "identity", "center", "moments", "affine")
CELLS = (32, 64)  # along the fixed image's longest edge: for the search of starts, for what is fitted last
SIZES = (1.0, 0.8, 0.9, 1.12, 1.25)  # of the moving patient relative to the fixed one, that shifts are searched for
PEAKS = 3  # shifts of each size
STARTS = 5  # that are refined in coarse cells
FINALISTS = 2  # that are refined in finer cells
LAST_STEPS = 6  # of fits in finer cells; after 2, the right place of one pair in 16 of 3 x 3 x 5 mm CT was not the best yet
MASS_VOXELS = 128  # along each axis, of which a centre of mass is taken


@dataclass(frozen=True)
class InitialAlignment:
    """The chosen transform, its name, and the cost of every candidate (0 perfect, 1 as unrelated images)."""

    transform: AffineTransform
    name: str
    costs: dict[str, float]


def initial_alignment(mode: str, fixed: Image, moving: Image, fixed_features: FeatureMap, moving_features: FeatureMap):
    """The initial transform, fixed world -> moving world.

    mode: identity; center (of the fields of view); moments (centres of mass); affine (the best refined start); auto: the
    candidate of all these with the least cost. Features: MIND. Returns an InitialAlignment. Raises ValueError for another mode.
    """
    if mode not in MODES:
        raise ValueError(f"Initial alignment '{mode}' is not one of {', '.join(MODES)}.")
    extent = max(*fixed_features.grid.extent_mm, max(moving_features.grid.extent_mm) / 2)  # a moving atlas may be much larger
    averaged = [in_cells(f, extent / CELLS[1]) for f in (fixed_features, moving_features)]
    fine = [structure(f) for f in averaged]
    candidates = {"identity": AffineTransform.identity()}
    if mode in ("center", "affine", "auto"):
        candidates["center"] = AffineTransform.translation(moving.grid.center_mm - fixed.grid.center_mm)
    if mode in ("moments", "affine", "auto"):
        candidates["moments"] = AffineTransform.translation(center_of_mass_mm(moving) - center_of_mass_mm(fixed))
    if mode in ("affine", "auto"):
        coarse = [structure(in_cells(f, extent / CELLS[0])) for f in averaged]
        candidates |= _searched(coarse, fine, list(candidates.values()))
    costs = {name: alignment_cost(*fine, transform) for name, transform in candidates.items()}
    name = min(costs, key=costs.get) if mode == "auto" else mode
    return InitialAlignment(candidates[name], name, costs)


def _searched(coarse, fine, guesses: list[AffineTransform]) -> dict[str, AffineTransform]:
    """The best shift, and the best affine transform: from several starts in coarse cells, the best of them in fine ones.

    coarse, fine: structures of the fixed and of the moving image in cells of either size.
    """
    coarse_mm, fine_mm = (max(s for f in maps for s in f.grid.spacing_mm) for maps in (coarse, fine))
    shifts = likely_shifts(coarse[0], {size: (coarse[1], size) for size in SIZES}, coarse_mm, PEAKS)
    starts = _best(coarse, guesses + [s for found in shifts.values() for s in found], STARTS, 2 * coarse_mm)
    fitted = [refine_affine(*coarse, start, 2 * coarse_mm, 3, iterations=4) for start in starts]
    finalists = []
    for transform in _best(coarse, fitted, FINALISTS, coarse_mm):
        transform = refine_affine(*fine, transform, 4 * fine_mm, 2, iterations=2)
        finalists.append(refine_affine(*fine, transform, 2 * fine_mm, 2, iterations=LAST_STEPS))
    best = _best(fine, finalists, 1, 0.0) or guesses[:1]
    return {"translation": (shifts[1.0] or guesses)[0], "affine": best[0]}


def _best(features, transforms: list[AffineTransform], count: int, apart_mm: float) -> list[AffineTransform]:
    """The `count` transforms with the least cost of which no two are alike: apart_mm in the mean over the corners."""
    costs = [alignment_cost(*features, transform) for transform in transforms]
    corners, chosen = features[0].grid.corners_mm(), []
    for i in np.argsort(costs, kind="stable"):
        others = [np.linalg.norm(transforms[i].apply(corners) - t.apply(corners), axis=1).mean() for t in chosen]
        if costs[i] < NO_OVERLAP_COST and len(chosen) < count and min(others, default=np.inf) >= apart_mm:
            chosen.append(transforms[i])
    return chosen


def center_of_mass_mm(image: Image) -> np.ndarray:
    """Centre of mass of the intensities above the image's minimum, (3,) RAS mm; of large images, of evenly spread voxels."""
    every = [max(1, n // MASS_VOXELS) for n in image.grid.shape]
    values = image.array[(0, *(slice(step // 2, None, step) for step in every))]
    weight = np.clip(values, *np.percentile(values, (1, 99))).astype(np.float64)
    weight -= weight.min()
    total = weight.sum()
    sums = [weight.sum(axis=tuple(a for a in range(3) if a != axis)) for axis in range(3)]
    index = [step // 2 + step * float((np.arange(len(s)) * s).sum() / max(total, 1e-12)) for s, step in zip(sums, every)]
    return image.grid.index_to_world(index) if total > 0 else image.grid.center_mm
