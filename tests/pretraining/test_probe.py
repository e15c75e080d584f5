"""The probe: known fields are found exactly by features that know their place, and by nothing else."""

import math

import numpy as np
import pytest
import torch

from nnssl_reg.geometry.grid import Grid
from nnssl_reg.geometry.image import FeatureMap, Image
from nnssl_reg.pretraining import probe as room
from nnssl_reg.pretraining.probe import Probe, ProbeClock, make_pair, match_errors, nearest, smooth_field

PATCH, CROP = (4, 4, 2), (32, 32, 16)


@pytest.fixture
def volume(turned_grid, textured_image) -> Image:
    """Texture of about -1..1 on a turned grid."""
    image = textured_image(turned_grid((44, 40, 24), (1.0, 1.0, 2.0), (0, 0, 20)))
    return Image((image.array - 100) / 400, image.grid)


def positions(image: Image, warp=None) -> FeatureMap:
    """Features of an image's tokens that say where they are in the world; `warp` leads to where the content is from."""
    grid = image.grid.coarsened(PATCH)
    points = grid.points_mm()
    return FeatureMap(points + (0 if warp is None else warp.on(grid).vectors_mm), grid)


def field_of(volume: Image, seed) -> object:
    return smooth_field(volume.grid.cropped([[4, 36], [4, 36], [4, 20]]), PATCH, np.random.default_rng(list(seed)))


def pair_of(volume: Image, seed=(1, 2)):
    return make_pair(volume, volume, (4, 4, 4), CROP, PATCH, seed)


def test_features_that_know_their_place_find_it_within_half_a_token(volume):
    pair = pair_of(volume)
    mm, tokens = match_errors(pair, positions(pair.fixed, field_of(volume, (1, 2))), positions(pair.moving))
    assert len(mm) > 100
    assert tokens.max() <= math.sqrt(3) / 2 + 0.1 and mm.max() <= math.sqrt(3) / 2 * 4 + 0.4  # the cell's own half diagonal


def test_features_that_do_not_move_are_as_wrong_as_the_field_is_long(volume):
    pair = pair_of(volume)
    mm, _ = match_errors(pair, positions(pair.fixed), positions(pair.moving))
    torch.testing.assert_close(mm, pair.shift_mm, rtol=1e-3, atol=1e-3)


def test_the_fixed_crop_is_the_moving_one_deformed_before_its_intensities_change(volume, monkeypatch):
    monkeypatch.setattr(room, "STRENGTH", 0.0)
    pair = pair_of(volume)
    np.testing.assert_allclose(pair.fixed.array, field_of(volume, (1, 2)).warp(volume).array, atol=1e-4)
    np.testing.assert_allclose(pair.moving.array, volume.array[:, 4:36, 4:36, 4:20], atol=1e-4)


def test_the_same_seed_makes_the_same_pair_and_another_one_another(volume):
    first, again, other = (pair_of(volume, seed) for seed in ((1, 2), (1, 2), (1, 3)))
    assert np.array_equal(first.fixed.array, again.fixed.array) and torch.equal(first.truth, again.truth)
    assert not np.array_equal(first.fixed.array, other.fixed.array)


def test_fields_move_tokens_and_fold_nowhere():
    grid = Grid((40, 32, 24), np.diag([1.0, 1.0, 2.0, 1.0]))
    for seed in range(10):
        field = smooth_field(grid, (4, 4, 2), np.random.default_rng(seed))
        assert field.jacobian_determinant().min() > 0.1
        assert 0.5 < field.vectors_mm.norm(dim=0).median() < 20


def test_only_tokens_that_show_something_are_asked_for(volume):
    flat = volume.array.copy()
    flat[:, 20:] = -1.0
    pair = make_pair(Image(flat, volume.grid), Image(flat, volume.grid), (4, 4, 4), CROP, PATCH, (1, 2))
    assert 0 < len(pair.asked) < len(pair_of(volume).asked)
    blank = Image(np.full_like(flat, -1.0), volume.grid)
    assert len(make_pair(blank, blank, (4, 4, 4), CROP, PATCH, (1, 2)).asked) == 0


def test_the_nearest_is_that_of_the_least_squared_difference():
    generator = torch.Generator().manual_seed(0)
    queries, keys = torch.rand(300, 5, generator=generator), torch.rand(70, 5, generator=generator)
    plain = ((queries[:, None] - keys[None]) ** 2).sum(dim=2).argmin(dim=1)
    assert torch.equal(nearest(queries, keys), plain)


def test_a_probe_reports_medians_and_shares_over_all_pairs_with_the_projection_it_is_given(volume):
    pairs = [pair_of(volume, (1, 2)), pair_of(volume, (1, 3))]
    exchanged = []

    def project(fixed, moving):
        exchanged.append((fixed, moving))
        return fixed, moving

    found = Probe(pairs, lambda image, encoder: encoder(image), project)(positions)
    shift = torch.cat([pair.shift_mm for pair in pairs])
    assert len(exchanged) == 2
    assert found.error_mm == pytest.approx(float(shift.median()), rel=1e-3) == pytest.approx(found.unmoved_mm, rel=1e-3)
    assert 0 < found.recall < 1 and found.row() == {"probe_error_mm": found.error_mm, "probe_recall": found.recall}


def test_probing_takes_a_few_percent_of_the_time_at_most():
    time = [0.0]
    clock = ProbeClock(lambda: time[0])
    spent, probes = 0.0, 0
    for _ in range(20_000):
        time[0] += 1.0
        if clock.due():
            time[0] += 30.0
            spent, probes = spent + 30.0, probes + 1
            clock.took(30.0)
    assert probes > 10 and spent / time[0] <= 0.03
    quick = ProbeClock(lambda: time[0])
    quick.took(0.1)
    time[0] += 179
    assert not quick.due()
    time[0] += 2
    assert quick.due()
