"""How well the features of a registered pair agree, cell by cell, and which cells the moving image covers."""

import torch

from nnssl_reg.geometry.affine import AffineTransform
from nnssl_reg.geometry.displacement import DisplacementField
from nnssl_reg.geometry.grid import Grid
from nnssl_reg.geometry.image import FeatureMap
from nnssl_reg.geometry.sampling import sample_displaced, sample_grid
from nnssl_reg.registration.cells import feature_scale


def warped_features(
    fixed: FeatureMap, moving: FeatureMap, initial: AffineTransform, deformation: DisplacementField | None = None
) -> tuple[FeatureMap, torch.Tensor]:
    """The moving features at the fixed cells, and whether the moving image covers the cell, (X, Y, Z) bool.

    deformation: before the initial transform, as convex_adam gives it; None: the initial transform alone.
    """
    values = moving.values.float()
    everywhere = values.new_ones(1, *moving.grid.shape)
    placed = Grid(fixed.grid.shape, initial.matrix @ fixed.grid.affine)  # the fixed cells in the moving world
    if deformation is None:
        warped, covered = (sample_grid(v, moving.grid, placed, fill) for v, fill in ((values, None), (everywhere, 0.0)))
    else:
        linear = torch.as_tensor(initial.matrix[:3, :3].copy(), dtype=torch.float32, device=values.device)
        vectors = torch.einsum("ij,jxyz->ixyz", linear, deformation.on(fixed.grid).vectors_mm)
        warped, covered = (
            sample_displaced(v, moving.grid, vectors, placed, fill) for v, fill in ((values, None), (everywhere, 0.0))
        )
    return FeatureMap(warped, fixed.grid), covered[0] > 0.5


def mean_difference(fixed: FeatureMap, warped: FeatureMap, where: torch.Tensor) -> float:
    """Mean squared feature difference of the cells `where` (X, Y, Z) bool: 0 equal, 1 unrelated; NaN of no cells."""
    if not where.any():
        return float("nan")
    a, b = fixed.values.float()[:, where], warped.values[:, where]
    return float((a - b).square().sum(0).mean()) / feature_scale(a, b) ** 2
