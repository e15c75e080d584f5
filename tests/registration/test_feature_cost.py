"""Feature agreement: nothing for equal maps, one for unrelated ones, and only where the moving image is."""

import math

import pytest
import torch

from nnssl_reg.geometry.affine import AffineTransform
from nnssl_reg.geometry.displacement import DisplacementField
from nnssl_reg.geometry.image import FeatureMap
from nnssl_reg.registration.feature_cost import mean_difference, warped_features

SHIFT_MM = (4.0, 0.0, -2.0)


def noise(grid, seed: int) -> FeatureMap:
    return FeatureMap(torch.randn(6, *grid.shape, generator=torch.Generator().manual_seed(seed)), grid)


def test_equal_maps_differ_by_nothing_and_unrelated_ones_by_one(turned_grid):
    grid = turned_grid((20, 18, 16), 2.0)
    everywhere = torch.ones(grid.shape, dtype=torch.bool)
    assert mean_difference(noise(grid, 0), noise(grid, 0), everywhere) == 0
    assert mean_difference(noise(grid, 0), noise(grid, 1), everywhere) == pytest.approx(1, abs=0.02)
    assert math.isnan(mean_difference(noise(grid, 0), noise(grid, 1), ~everywhere))


@pytest.mark.parametrize("by", ["initial", "deformation"])
def test_moving_features_are_fetched_from_where_the_transform_leads(turned_grid, by):
    grid = turned_grid((12, 10, 8), 2.0)
    moving, shift = noise(grid, 0), AffineTransform.translation(SHIFT_MM)
    if by == "initial":
        warped, covered = warped_features(moving, moving, shift)
    else:
        vectors = torch.tensor(SHIFT_MM).view(3, 1, 1, 1).expand(3, *grid.shape)
        warped, covered = warped_features(moving, moving, AffineTransform.identity(), DisplacementField(vectors, grid))
    assert torch.allclose(warped.values[:, :10, :, 1:], moving.values[:, 2:, :, :7], atol=1e-4)
    assert covered[:10, :, 1:].all() and covered.sum() == 10 * 10 * 7
