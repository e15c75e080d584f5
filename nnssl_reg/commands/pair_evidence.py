"""What a registered pair tells about itself without labels, for its confidence."""

from dataclasses import dataclass

import numpy as np
import torch

from nnssl_reg.commands.image_kind import body_cells
from nnssl_reg.commands.pair_types import RegisteredPair
from nnssl_reg.evaluation.confidence import Evidence
from nnssl_reg.geometry.image import FeatureMap
from nnssl_reg.registration.feature_cost import mean_difference, warped_features


@dataclass(frozen=True, eq=False)
class MetFeatures:
    """Features of fixed and moving at the fixed cells: fixed, moving after the initial alignment, moving after registration.

    meets, covered: where the moving image is after the initial alignment, and after registration, (X, Y, Z) bool.
    """

    features: tuple[FeatureMap, FeatureMap, FeatureMap]
    meets: torch.Tensor
    covered: torch.Tensor


def met_features(done: RegisteredPair) -> MetFeatures:
    """The features of a registered pair where they meet."""
    (fixed, moving), start = done.features, done.alignment.transform
    aligned, meets = warped_features(fixed, moving, start)
    warped, covered = warped_features(fixed, moving, start, done.deformation)
    return MetFeatures((fixed, aligned, warped), meets, covered)


def evidence_of(done: RegisteredPair, met: MetFeatures, folding_percent: float) -> Evidence:
    """The measures over the fixed body, within its mask if there is one, at the cells of the fixed features."""
    fixed, aligned, warped = met.features
    body = body_cells(done.fixed, fixed.grid, done.counted, fixed.values.device)
    apart = float("nan") if done.apart_mm is None else _mean(done.apart_mm, body & met.covered)
    return Evidence(
        inconsistency_mm=apart,
        body_mm=float((int(body.sum()) * np.prod(fixed.grid.spacing_mm)) ** (1 / 3)),
        feature_cost_initial=mean_difference(fixed, aligned, body & met.meets),
        feature_cost=mean_difference(fixed, warped, body & met.covered),
        folding_percent=folding_percent,
        overlap_percent=100 * _mean(met.covered.float(), body),
    )


def _mean(values: torch.Tensor, where: torch.Tensor) -> float:
    return float(values[where].mean()) if where.any() else float("nan")
