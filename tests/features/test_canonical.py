"""Canonical variates say the same of matched places in both images, whatever each image's features mean."""

import numpy as np
import pytest
import torch

from nnssl_reg.features.canonical import joint_canonical
from nnssl_reg.geometry.displacement import DisplacementField
from nnssl_reg.geometry.grid import Grid
from nnssl_reg.geometry.image import FeatureMap

SHAPE, PLACES = (9, 10, 8), 3
GRID = Grid(SHAPE, np.diag([2.0, 2.0, 3.0, 1.0]))


def at_rest(mm=(0.0, 0.0, 0.0), grid: Grid = GRID) -> DisplacementField:
    return DisplacementField(torch.tensor(mm).view(3, 1, 1, 1).expand(3, *grid.shape).contiguous(), grid)


def two_modalities(slight: float = 0.02, strength: float = 3.0) -> tuple[FeatureMap, FeatureMap]:
    """PLACES values of each place, in 8 features of the one image and 11 of the other, mixed differently, beside their own."""
    g = torch.Generator().manual_seed(0)
    place = torch.randn(PLACES, *SHAPE, generator=g)
    maps = []
    for features in (8, 11):
        mixing = torch.linalg.qr(torch.randn(features, features, generator=g))[0]
        own = strength * torch.randn(features - PLACES, *SHAPE, generator=g)
        hidden = torch.cat([place + slight * torch.randn(place.shape, generator=g), own])
        maps.append(FeatureMap(torch.einsum("ij,jxyz->ixyz", mixing, hidden) + 5.0, GRID))
    return tuple(maps)


def found(fixed: FeatureMap, moving: FeatureMap) -> float:
    """Share of fixed cells whose nearest moving cell is that of their own place."""
    distances = torch.cdist(fixed.values.flatten(1).T, moving.values.flatten(1).T)
    return float((distances.argmin(1) == torch.arange(len(distances))).float().mean())


def test_places_are_found_by_features_that_mean_different_things():
    variates = joint_canonical(*two_modalities(), at_rest(), PLACES)
    assert [len(v.values) for v in variates] == [PLACES, PLACES]
    assert found(*variates) > 0.9


def test_of_uncorrelated_features_more_variates_change_little():
    few, many = (joint_canonical(*two_modalities(), at_rest(), n) for n in (PLACES, 8))
    assert found(*many) > 0.9
    assert all(torch.allclose(a.values, b.values[:PLACES], atol=1e-4) for a, b in zip(few, many))


def test_variates_correlate_one_by_one_and_vary_by_their_signal_to_noise():
    a, b = (v.values.flatten(1).double() for v in joint_canonical(*two_modalities(0.5, 1.0), at_rest(), PLACES))
    n = a.shape[1]
    correlation = (a @ b.T / n) / torch.outer(a.square().mean(1).sqrt(), b.square().mean(1).sqrt())
    assert torch.allclose(correlation, torch.diag(correlation.diag()), atol=0.02)
    r = correlation.diag()
    assert r.tolist() == sorted(r.tolist(), reverse=True)
    assert (r > 0.6).all() and (r < 0.95).all()  # 1 / (1 + 0.25) = 0.8 in the limit
    torch.testing.assert_close(a.square().mean(1), r / (1 - r), rtol=0.1, atol=0)


def test_it_is_the_same_whatever_linear_scale_and_offset_an_image_has():
    fixed, moving = two_modalities()
    changed = FeatureMap(-7 * moving.values + 100, GRID)
    for plain, other in zip(joint_canonical(fixed, moving, at_rest(), 3), joint_canonical(fixed, changed, at_rest(), 3)):
        torch.testing.assert_close(plain.values, other.values, atol=2e-3, rtol=1e-3)


def test_another_grid_and_a_known_shift_between_the_images():
    fixed, moving = two_modalities()
    cut, away = (slice(None), slice(2, None)), np.eye(4)
    away[:3, 3] = (4.0 + 50.0, -20.0, 7.0)  # the first two slices are missing, and the image lies elsewhere
    seen = FeatureMap(moving.values[cut], Grid((7, 10, 8), away @ GRID.affine))
    variates = joint_canonical(fixed, seen, at_rest((50.0, -20.0, 7.0)), PLACES)
    assert variates[0].grid == fixed.grid and variates[1].grid == seen.grid
    assert found(FeatureMap(variates[0].values[cut], seen.grid), variates[1]) > 0.9


@pytest.mark.parametrize("mm", [(1000.0, 0.0, 0.0), (16.0, 16.0, 21.0)])
def test_of_no_matches_and_of_hardly_any_nothing_is_believed(mm):
    for variates in joint_canonical(*two_modalities(), at_rest(mm), 4):
        assert variates.values.shape == (4, *SHAPE) and (variates.values == 0).all()


def test_flat_images_have_flat_variates():
    flat, other = FeatureMap(torch.full((6, *SHAPE), 2.0), GRID), two_modalities()[0]
    for pair in ((flat, other), (other, flat), (flat, flat)):
        assert all((v.values == 0).all() for v in joint_canonical(*pair, at_rest(), 4))
