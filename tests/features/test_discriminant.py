"""The discriminant projection keeps what tells places apart, and drops what tells patients apart."""

import numpy as np
import pytest
import scipy.linalg
import torch

from nnssl_reg.features.discriminant import RIDGE, RIDGE_FEW, joint_discriminant
from nnssl_reg.features.pca import joint_pca
from nnssl_reg.geometry.displacement import DisplacementField
from nnssl_reg.geometry.grid import Grid
from nnssl_reg.geometry.image import FeatureMap

SHAPE, PLACES, FEATURES = (9, 10, 8), 3, 12
GRID = Grid(SHAPE, np.diag([2.0, 2.0, 3.0, 1.0]))


def at_rest(grid: Grid = GRID, mm=(0.0, 0.0, 0.0)) -> DisplacementField:
    return DisplacementField(torch.tensor(mm).view(3, 1, 1, 1).expand(3, *grid.shape).contiguous(), grid)


def two_patients(noise: float = 3.0) -> tuple[FeatureMap, FeatureMap]:
    """The same place has the same value in PLACES hidden directions, and stronger ones of each patient elsewhere."""
    g = torch.Generator().manual_seed(0)
    mixing = torch.linalg.qr(torch.randn(FEATURES, FEATURES, generator=g))[0]
    place = torch.randn(PLACES, *SHAPE, generator=g)
    own = [noise * torch.randn(FEATURES - PLACES, *SHAPE, generator=g) for _ in range(2)]
    slight = [0.02 * torch.randn(PLACES, *SHAPE, generator=g) for _ in range(2)]
    hidden = [torch.cat([place + s, o]) for s, o in zip(slight, own)]
    return tuple(FeatureMap(torch.einsum("ij,jxyz->ixyz", mixing, h) + 5.0, GRID) for h in hidden)


def found(fixed: FeatureMap, moving: FeatureMap) -> float:
    """Share of fixed cells whose nearest moving cell is that of their own place."""
    distances = torch.cdist(fixed.values.flatten(1).T, moving.values.flatten(1).T)
    return float((distances.argmin(1) == torch.arange(len(distances))).float().mean())


def test_places_are_found_where_patients_differ_more_than_places():
    maps = two_patients()
    assert found(*joint_discriminant(*maps, at_rest(), PLACES)) > 0.9
    assert found(*joint_pca(*maps, PLACES)) < 0.1


def test_matches_of_which_every_third_is_wrong_still_do():
    maps, g = two_patients(), torch.Generator().manual_seed(1)
    wrong = (torch.randint(3, SHAPE, generator=g) == 0) * 8.0 * (torch.randint(2, SHAPE, generator=g) * 2 - 1)
    matches = DisplacementField(torch.stack([wrong, torch.zeros(SHAPE), torch.zeros(SHAPE)]), GRID)
    assert found(*joint_discriminant(*maps, matches, PLACES)) > 0.5


def test_the_directions_are_those_of_the_generalised_eigenvalue_problem():
    maps = two_patients(noise=0.5)
    a, b = (m.values.flatten(1).double().numpy() for m in maps)
    mean = (a.mean(1) + b.mean(1)) / 2
    within = (a - b) @ (a - b).T / (2 * a.shape[1])
    both = np.concatenate([a, b], axis=1) - mean[:, None]
    total = both @ both.T / both.shape[1]
    ridge = (RIDGE + RIDGE_FEW * FEATURES / a.shape[1]) * np.trace(within) + 1e-6 * np.trace(total)
    within = within + ridge / FEATURES * np.eye(FEATURES)
    _, vectors = scipy.linalg.eigh(total, within)
    expected = vectors[:, ::-1][:, :5].T @ both
    values = np.concatenate([m.values.flatten(1).numpy() for m in joint_discriminant(*maps, at_rest(), 5)], axis=1)
    signs = np.sign((expected * values).sum(1))[:, None]
    assert np.allclose(values, signs * expected, atol=1e-3)
    half_differences = np.diff(values.reshape(5, 2, -1), axis=1)[:, 0] / np.sqrt(2)
    variance = (half_differences**2).mean(1)
    assert variance.max() < 1 + 1e-3 and np.allclose(variance[PLACES:], 1, atol=0.05)  # the ridge holds the certain ones down


def test_another_grid_and_a_known_shift_between_the_patients():
    fixed, moving = two_patients()
    cut, away = (slice(None), slice(2, None)), np.eye(4)
    away[:3, 3] = (4.0 + 50.0, -20.0, 7.0)  # the first two slices are missing, and the patient lies elsewhere
    seen = FeatureMap(moving.values[cut], Grid((7, 10, 8), away @ GRID.affine))
    coarse = Grid((2, 2, 2), np.diag([16.0, 18.0, 21.0, 1.0]))
    projected = joint_discriminant(fixed, seen, at_rest(coarse, (50.0, -20.0, 7.0)), PLACES)
    assert projected[0].grid == fixed.grid and projected[1].grid == seen.grid
    assert found(FeatureMap(projected[0].values[cut], seen.grid), projected[1]) > 0.9


def test_of_an_image_and_itself_nothing_is_lost_or_infinite():
    image = two_patients()[0]
    a, b = joint_discriminant(image, image, at_rest(), FEATURES)
    assert torch.equal(a.values, b.values) and torch.isfinite(a.values).all()
    ours, theirs = (torch.pdist(m.values.flatten(1).T) for m in (a, image))
    assert torch.allclose(ours / ours.mean(), theirs / theirs.mean(), rtol=1e-3)


@pytest.mark.parametrize("mm", [(1000.0, 0.0, 0.0), (16.0, 16.0, 21.0)])
def test_with_fewer_matches_than_features_they_are_principal_components(mm):
    maps = two_patients()
    for ours, theirs in zip(joint_discriminant(*maps, at_rest(mm=mm), 4), joint_pca(*maps, 4)):
        assert torch.equal(ours.values, theirs.values)


def test_flat_images_have_flat_features():
    flat = FeatureMap(torch.full((FEATURES, *SHAPE), 2.0), GRID)
    assert all((m.values.abs() < 1e-4).all() for m in joint_discriminant(flat, flat, at_rest(), 4))
