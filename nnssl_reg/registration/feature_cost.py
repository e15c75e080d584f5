"""How well the features of a registered pair agree, cell by cell, and which cells the moving image covers."""

import torch

from nnssl_reg.geometry.affine import AffineTransform
from nnssl_reg.geometry.displacement import DisplacementField
from nnssl_reg.geometry.image import FeatureMap
from nnssl_reg.geometry.sampling import inside, sample_voxels, to_voxels
from nnssl_reg.registration.cells import feature_scale


def warped_features(
    fixed: FeatureMap, moving: FeatureMap, initial: AffineTransform, deformation: DisplacementField | None = None
) -> tuple[FeatureMap, torch.Tensor]:
    """The moving features at the fixed cells, and whether the moving image covers the cell, (X, Y, Z) bool.

    deformation: before the initial transform, as convex_adam gives it; None: the initial transform alone.
    """
    points = fixed.grid.points_mm(device=moving.values.device)
    if deformation is not None:
        points = points + deformation.on(fixed.grid).vectors_mm
    position = to_voxels(initial.apply_dense(points), moving.grid)
    values = sample_voxels(moving.values.float(), position)
    return FeatureMap(values, fixed.grid), inside(position, moving.grid.shape)


def mean_difference(fixed: FeatureMap, warped: FeatureMap, where: torch.Tensor) -> float:
    """Mean squared feature difference of the cells `where` (X, Y, Z) bool: 0 equal, 1 unrelated; NaN of no cells."""
    if not where.any():
        return float("nan")
    a, b = fixed.values.float()[:, where], warped.values[:, where]
    return float((a - b).square().sum(0).mean()) / feature_scale(a, b) ** 2
