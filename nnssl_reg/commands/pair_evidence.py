"""What a registered pair tells about itself without labels, for its confidence."""

import numpy as np
import torch

from nnssl_reg.commands.register_pair import RegisteredPair
from nnssl_reg.evaluation.confidence import Evidence
from nnssl_reg.geometry.grid import Grid
from nnssl_reg.geometry.image import Image
from nnssl_reg.geometry.sampling import gather_nearest
from nnssl_reg.imageio.modality import guess_modality
from nnssl_reg.planning.foreground import foreground_mask
from nnssl_reg.registration.feature_cost import mean_difference, warped_features


def evidence_of(done: RegisteredPair, folding_percent: float) -> Evidence:
    """The measures over the fixed body, within its mask if there is one, at the cells of the fixed features."""
    fixed, moving = done.features
    body = _body(done.fixed, fixed.grid).to(fixed.values.device)
    if done.counted is not None:
        body = body & done.counted if (body & done.counted).any() else done.counted
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


def _body(image: Image, cells: Grid) -> torch.Tensor:
    """Which cells lie in the body, (X, Y, Z) bool; all of them if none does."""
    mask = foreground_mask(image.array[0], guess_modality(image)).astype(np.uint8)[None]
    inside = torch.from_numpy(gather_nearest(mask, image.grid, cells.points_mm(), 0)[0] > 0)
    return inside if inside.any() else torch.ones_like(inside)


def _mean(values: torch.Tensor, where: torch.Tensor) -> float:
    return float(values[where].mean()) if where.any() else float("nan")
