"""What a registered pair tells about itself without labels, for its confidence."""

import numpy as np
import torch

from nnssl_reg.commands.image_kind import body_cells
from nnssl_reg.commands.register_pair import RegisteredPair
from nnssl_reg.evaluation.confidence import Evidence
from nnssl_reg.registration.feature_cost import mean_difference, warped_features


def evidence_of(done: RegisteredPair, folding_percent: float) -> Evidence:
    """The measures over the fixed body, within its mask if there is one, at the cells of the fixed features."""
    fixed, moving = done.features
    body = body_cells(done.fixed, fixed.grid, done.counted, fixed.values.device)
    aligned, meets = warped_features(fixed, moving, done.alignment.transform)
    warped, covered = warped_features(fixed, moving, done.alignment.transform, done.deformation)
    apart = float("nan") if done.apart_mm is None else _mean(done.apart_mm, body & covered)
    return Evidence(
        inconsistency_mm=apart,
        body_mm=float((int(body.sum()) * np.prod(fixed.grid.spacing_mm)) ** (1 / 3)),
        feature_cost_initial=mean_difference(fixed, aligned, body & meets),
        feature_cost=mean_difference(fixed, warped, body & covered),
        folding_percent=folding_percent,
        overlap_percent=100 * _mean(covered.float(), body),
    )


def _mean(values: torch.Tensor, where: torch.Tensor) -> float:
    return float(values[where].mean()) if where.any() else float("nan")
