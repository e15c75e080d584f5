"""Pairs made of single images: the points are where the deformed image shows them, whatever happens to intensities."""

import numpy as np
import pytest
import torch

from nnssl_reg.evaluation.known_pairs import KNOTS, make_known_pair, remapped
from nnssl_reg.geometry.image import Image
from nnssl_reg.geometry.sampling import sample_points


@pytest.fixture(scope="module")
def grid(turned_grid):
    return turned_grid((44, 40, 36), (2.0, 2.2, 2.5), (5, -10, 20), (300, -200, 900))


def test_a_ball_is_found_in_the_deformed_image_where_its_points_say(grid):
    """Without texture, whether a point is inside the ball survives any change of intensities."""
    away = (grid.points_mm() - torch.tensor(grid.center_mm, dtype=torch.float32).view(3, 1, 1, 1)).norm(dim=0)
    ball = Image((1000 * torch.sigmoid((26 - away) / 0.5)).numpy()[None], grid)
    pair = make_known_pair(ball, np.random.default_rng(3))
    shift = np.linalg.norm(pair.moving_points_mm - pair.fixed_points_mm, axis=1)
    assert 1 < shift.mean() < 25 and len(shift) > 4000
    shown = sample_points(torch.from_numpy(pair.moving.array), grid, torch.from_numpy(pair.moving_points_mm.T.copy()).float())
    middle = np.linalg.norm(pair.fixed_points_mm - grid.center_mm, axis=1)
    inside, outside = shown[0][middle < 22].numpy(), pair.moving.array[0][[0, -1], :, :]
    assert np.median(inside) > 5 * np.abs(np.median(outside)) and (inside > 100).mean() > 0.99


def test_a_seed_makes_the_same_pair_again_and_another_one_another(grid, body_image):
    image = body_image(grid, center_mm=tuple(grid.center_mm))
    one, same, other = (make_known_pair(image, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert np.array_equal(one.moving.array, same.moving.array) and np.array_equal(one.moving_points_mm, same.moving_points_mm)
    assert not np.array_equal(one.moving.array, other.moving.array)
    assert one.moving.grid.matches(grid) and np.isfinite(one.moving.array).all()


def test_without_strength_nothing_moves(grid, body_image):
    pair = make_known_pair(body_image(grid, center_mm=tuple(grid.center_mm)), np.random.default_rng(0), strength=0.0)
    np.testing.assert_allclose(pair.moving_points_mm, pair.fixed_points_mm, atol=1e-9)


def test_contrasts_turn_around_and_the_background_stays_darkest(grid, body_image):
    values = body_image(grid, center_mm=tuple(grid.center_mm)).array
    body = values > 100
    new = remapped(values, body, np.random.default_rng(0))
    knots = np.linspace(*np.percentile(values[body], (2, 98)), KNOTS)
    heights = [float(np.median(new[np.abs(values - k) < 3])) for k in knots[1:-1]]
    assert np.any(np.diff(heights) < 0) and np.any(np.diff(heights) > 0)
    assert new[values <= np.percentile(values, 1)].max() < 0.15 <= new[body].min() + 1e-3
