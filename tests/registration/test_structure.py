"""What the initial alignment compares: flat cells say nothing, equal structure costs 0, unrelated 1, and parts fit wholes."""

import numpy as np
import pytest
import torch

from nnssl_reg.geometry.affine import AffineTransform
from nnssl_reg.geometry.image import FeatureMap
from nnssl_reg.registration.structure import NO_OVERLAP_COST, alignment_cost, in_cells, structure


def noise(grid, seed=0, channels=12) -> FeatureMap:
    return FeatureMap(torch.randn(channels, *grid.shape, generator=torch.Generator().manual_seed(seed)), grid)


def shift(x: float) -> AffineTransform:
    return AffineTransform.translation((x, 0, 0))


def test_flat_cells_of_any_level_have_no_structure(turned_grid):
    grid = turned_grid((4, 5, 6), 2.0)
    levels = torch.linspace(0, 1, 120).reshape(1, 4, 5, 6).expand(12, -1, -1, -1)
    assert structure(FeatureMap(levels.contiguous(), grid)).values.abs().max() < 1e-6


def test_coarser_cells_are_means_where_they_lie(turned_grid):
    grid = turned_grid((7, 8, 9), (1.0, 2.0, 5.0))
    points = FeatureMap(grid.points_mm(), grid)
    coarse = in_cells(points, 4.0)
    assert coarse.grid.shape == (1, 4, 9)  # 4, 2 and 1 cells; incomplete blocks are dropped
    assert torch.allclose(coarse.values, coarse.grid.points_mm(), atol=1e-4)
    assert in_cells(points, 0.1) is points


def test_equal_costs_0_opposite_2_unrelated_1_and_scaling_nothing(turned_grid):
    grid = turned_grid((15, 14, 13), 2.0)
    a, b = noise(grid), noise(grid, 1)
    identity = AffineTransform.identity()
    assert alignment_cost(a, a, identity) < 1e-6 and alignment_cost(a, FeatureMap(7 * a.values, grid), identity) < 1e-6
    assert alignment_cost(a, FeatureMap(-a.values, grid), identity) == pytest.approx(2)
    assert alignment_cost(a, b, identity) == pytest.approx(1, abs=0.05)


def test_the_cost_is_the_correlation_over_the_overlap_and_the_root_of_its_share(turned_grid):
    grid = turned_grid((12, 6, 7), 2.0)
    a, b = noise(grid), noise(grid, 1)
    p, q = a.values[:, :8].numpy(), b.values[:, 4:].numpy()  # shifted by four cells of twelve
    shares = [np.square(v).sum() / np.square(f.values.numpy()).sum() for v, f in ((p, a), (q, b))]
    expected = 1 - (p * q).sum() / np.sqrt(np.square(p).sum() * np.square(q).sum()) * np.sqrt(max(shares))
    assert alignment_cost(a, b, shift(8.0)) == pytest.approx(expected, abs=1e-5)


def test_a_part_of_the_whole_costs_nothing_and_no_overlap_the_most(turned_grid):
    grid = turned_grid((12, 12, 12), 2.0)
    whole = noise(grid)
    box = [[3, 9], [0, 12], [2, 8]]
    part = FeatureMap(whole.values[:, 3:9, :, 2:8].contiguous(), grid.cropped(box))
    assert alignment_cost(part, whole, AffineTransform.identity()) < 1e-5
    assert alignment_cost(whole, part, AffineTransform.identity()) < 1e-5
    assert alignment_cost(whole, whole, shift(900.0)) == NO_OVERLAP_COST
    assert alignment_cost(whole, FeatureMap(0 * whole.values, grid), AffineTransform.identity()) == NO_OVERLAP_COST


def test_the_cost_grows_with_the_distance(turned_grid, textured_features):
    features = structure(textured_features(turned_grid((24, 20, 22), 4.0), shortest_mm=24))
    costs = [alignment_cost(features, features, shift(x)) for x in (0, 3, 6, 12)]
    assert costs == sorted(costs) and costs[0] < 1e-6
