"""The refinement of a field at every voxel by local intensity alone: for which pairs, how, and by what masks."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from nnssl_reg.commands.image_kind import body_cells
from nnssl_reg.commands.pair_start import seen_from
from nnssl_reg.commands.pair_types import DeformedPair, ImagePair, Side
from nnssl_reg.features.local_intensity import RADIUS, TELLS_MORE, WIDE
from nnssl_reg.geometry.affine import AffineTransform
from nnssl_reg.geometry.displacement import DisplacementField
from nnssl_reg.geometry.grid import Grid
from nnssl_reg.geometry.image import FeatureMap
from nnssl_reg.geometry.sampling import gather_nearest
from nnssl_reg.planning.plans import RegistrationPlan
from nnssl_reg.registration.convex_adam import refine
from nnssl_reg.registration.feature_cost import mean_difference, warped_features

ONE_PATIENT = 0.15  # of the features' difference is left, at most, between images of one; two patients had 0.25 and more
FIRMER, LONGER = 4.0, 2  # the regulariser and the steps there: what differs between such images is noise more than shape
CUT = 0.2  # of a body's largest cross-section, at an end of the field of view, from which on it is cut there
BY_NEAR = 2.0  # times the regulariser where surroundings are not wide


@dataclass(frozen=True)
class VoxelRefinement:
    """How a field is refined at the voxels. settings: of Adam, see convex_adam.refine; radius: of voxel_intensity."""

    settings: dict[str, Any]
    radius: int
    one_patient: bool


def voxel_refinement(plan: RegistrationPlan, stride, found: DeformedPair) -> VoxelRefinement | None:
    """How a field found on cells of `stride` voxels, which it is on, is refined at the voxels; None: it is not.

    Only with local intensity among the features. Where it tells more than MIND, the field is refined as planned; where hardly
    any difference of features is left in the fixed body, as between images of one patient, more firmly. Surroundings are wide
    only where no body is cut: at a cut they end, while in the other image they go on.
    """
    if found.contrast is None or not found.contrast.used or plan.voxel_iterations == 0 or max(stride) == 1:
        return None
    (fixed, moving), images = found.features, found.images
    warped, covered = warped_features(fixed, moving, found.alignment.transform, found.deformation)
    body = body_cells(images[0], fixed.grid, found.counted, covered.device)  # backgrounds are alike in all patients
    steps = {"learning_rate": plan.learning_rate / 2, "smoothing_passes": plan.smoothing_passes}
    if mean_difference(fixed, warped, covered & body) <= ONE_PATIENT:
        firmly = {"iterations": LONGER * plan.voxel_iterations, "smoothness": FIRMER * plan.voxel_smoothness}
        return VoxelRefinement(steps | firmly, RADIUS, True)
    if found.contrast.agreement < TELLS_MORE:
        return None
    near = is_cut(body) or is_cut(body_cells(images[1], moving.grid, None, covered.device))
    steps |= {"iterations": plan.voxel_iterations, "smoothness": plan.voxel_smoothness * (BY_NEAR if near else 1)}
    return VoxelRefinement(steps, RADIUS if near else WIDE, False)


def is_cut(body: torch.Tensor) -> bool:
    """Whether a body (X, Y, Z) bool goes on beyond its field of view."""
    areas = [body.sum(dim=[a for a in range(3) if a != axis]) for axis in range(3)]
    return any(int(max(area[0], area[-1])) >= CUT * int(area.max()) for area in areas)


def refined_at_voxels(
    pair: ImagePair, voxels: tuple[FeatureMap, FeatureMap], found: DeformedPair, settings: dict[str, Any]
) -> DisplacementField:
    """The field found of a pair refined on features of its voxels; settings: of a VoxelRefinement."""
    centre, field = pair.fixed.image.grid.center_mm, found.deformation
    masks = [mask_of_cells(side, fine) for side, fine in zip((pair.fixed, pair.moving), voxels)]
    near = []
    for fine, cells in zip(voxels, found.features):  # rounded as the cells are, or they would part
        there = AffineTransform.translation((cells.grid.seen_from(centre).affine - cells.grid.affine)[:3, 3])
        near.append(FeatureMap(fine.values, Grid(fine.grid.shape, there.matrix @ fine.grid.affine)))
    start = DisplacementField(field.vectors_mm, field.grid.seen_from(centre))
    initial = seen_from(centre, found.alignment).transform
    finer = refine(*near, start, initial=initial, fixed_mask=masks[0], moving_mask=masks[1], **settings)
    return DisplacementField(finer.vectors_mm, voxels[0].grid)


def mask_of_cells(side: Side, cells: FeatureMap) -> torch.Tensor | None:
    """The mask of a Side's image as bool at the centres of feature cells (X, Y, Z)."""
    if side.mask is None:
        return None
    values = gather_nearest((side.mask.array > 0).astype(np.uint8), side.mask.grid, cells.grid.points_mm(), 0)[0]
    if not values.any():
        raise ValueError(f"{side.name}: its mask holds the centre of no feature cell ({cells.grid}), so nothing could be "
                         "registered; give a larger one or none.")  # fmt: skip
    return torch.from_numpy(values > 0).to(cells.values.device)
