"""Principal components of both images together, and joined feature maps: distances are what they should be."""

import numpy as np
import pytest
import torch

from nnssl_reg.features.pca import joined, joint_pca
from nnssl_reg.geometry.grid import Grid
from nnssl_reg.geometry.image import FeatureMap

SHAPES = (5, 6, 4), (4, 4, 7)


def feature_map(values: torch.Tensor) -> FeatureMap:
    return FeatureMap(values, Grid(tuple(values.shape[1:]), np.eye(4)))


def of_rank(rank: int, channels: int = 10, noise: float = 0.0) -> tuple[FeatureMap, FeatureMap]:
    """Two maps whose cells lie in one subspace of `rank` dimensions, away from the origin."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(channels, rank, generator=generator)
    weights = torch.arange(rank, 0, -1.0)[:, None]
    cells = [directions @ (weights * torch.randn(rank, a * b * c, generator=generator)) for a, b, c in SHAPES]
    offset = torch.full((channels, 1), 30.0)
    return tuple(feature_map((c + offset + noise * torch.randn(c.shape, generator=generator)).reshape(-1, *s))
                 for c, s in zip(cells, SHAPES))  # fmt: skip


def distances(a: FeatureMap, b: FeatureMap) -> torch.Tensor:
    """Between every cell of a and every cell of b."""
    return torch.cdist(a.values.flatten(1).T.double(), b.values.flatten(1).T.double())


def test_as_many_components_as_dimensions_keep_all_distances():
    maps = of_rank(3)
    projected = joint_pca(*maps, 3)
    assert projected[0].values.shape == (3, 5, 6, 4) and projected[1].grid == maps[1].grid
    assert torch.allclose(distances(*projected), distances(*maps), atol=1e-3)


def test_the_low_rank_structure_is_found_under_noise():
    clean, noisy = of_rank(3), of_rank(3, noise=0.1)
    error = (distances(*joint_pca(*noisy, 3)) - distances(*clean)).abs().mean()
    assert error < 0.03 * distances(*clean).mean()


def test_components_are_uncorrelated_over_both_images_and_sorted_by_variance():
    a, b = (m.values.flatten(1).double() for m in joint_pca(*of_rank(6), 6))
    covariance = a @ a.T / a.shape[1] + b @ b.T / b.shape[1]
    assert (covariance - torch.diag(covariance.diag())).abs().max() < 1e-3 * covariance.max()
    assert (covariance.diag().diff() <= 0).all()


def test_signs_and_scale_do_not_depend_on_which_image_is_fixed_or_on_the_order_of_cells():
    fixed, moving = of_rank(4)
    one, two = joint_pca(fixed, moving, 4), joint_pca(feature_map(moving.values.flip(1)), fixed, 4)
    assert torch.allclose(one[0].values, two[1].values, atol=1e-3)
    assert torch.allclose(one[1].values, two[0].values.flip(1), atol=1e-3)


def test_both_images_count_equally_whatever_their_size():
    fixed, moving = of_rank(4)
    larger = feature_map(torch.cat([fixed.values] * 3, dim=1))
    assert torch.allclose(joint_pca(larger, moving, 2)[1].values, joint_pca(fixed, moving, 2)[1].values, atol=1e-3)


def test_more_components_than_channels_are_as_many_as_there_are():
    assert joint_pca(*of_rank(2, channels=5), 12)[0].values.shape[0] == 5


@pytest.mark.parametrize("share", [0.25, 0.5, 1.0])
def test_joined_distances_are_the_weighted_sum_of_both(share):
    first, second = (
        of_rank(3),
        tuple(feature_map(5 * torch.randn(4, *s, generator=torch.Generator().manual_seed(1))) for s in SHAPES),
    )
    both = joined(first, second, (2.0, 7.0), share)
    truth = share * distances(*first) ** 2 / 2.0**2 + (1 - share) * distances(*second) ** 2 / 7.0**2
    assert both[0].values.shape[0] == 14 and torch.allclose(distances(*both) ** 2, truth, rtol=1e-3, atol=1e-3)


def test_joined_maps_lie_on_the_grid_of_the_second(turned_grid):
    fine, coarse = turned_grid((9, 8, 10), 1.0, (5, 10, 15)), turned_grid((20, 20, 20), 1.5, (30, 0, 0))
    ramp = [FeatureMap(g.points_mm(), g) for g in (coarse, fine)]
    fixed, _ = joined((ramp[0], ramp[0]), (ramp[1], ramp[1]), (1.0, 1.0), 0.5)
    assert fixed.grid is fine and torch.allclose(fixed.values[:3], fixed.values[3:], atol=1e-4)
