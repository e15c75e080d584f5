"""Affine fits: from feature matches to within half a block, with a third of them wild, and without any where there are none."""

import numpy as np

from nnssl_reg.evaluation.phantoms import rotation
from nnssl_reg.geometry.affine import AffineTransform
from nnssl_reg.registration import affine_fit
from nnssl_reg.registration.affine_fit import SHAPE_PRIOR, least_trimmed_squares, refine_affine, tempered

IDENTITY = AffineTransform.identity()
CENTER = (30.0, -10.0, 20.0)


def distance_mm(found: AffineTransform, true: AffineTransform) -> float:
    points = np.asarray(CENTER) + np.random.default_rng(0).uniform(-25, 25, (200, 3))
    return float(np.linalg.norm(found.apply(points) - true.apply(points), axis=1).mean())


def test_block_matches_lead_to_within_half_a_block_of_the_true_affine(textured_features, turned_grid):
    matrix = np.array([[1.06, 0.03, 0, 0], [-0.05, 0.95, 0.02, 0], [0, 0.04, 1.03, 0], [0, 0, 0, 1.0]])
    matrix[:3, 3] = np.asarray(CENTER) + (15, -12, 8) - matrix[:3, :3] @ CENTER
    truth = AffineTransform(matrix)
    fixed = textured_features(turned_grid((24, 20, 22), 4.0, (0, 5, 10), CENTER), shortest_mm=24)
    moving = textured_features(turned_grid((26, 24, 28), 4.2, (20, 0, 5), CENTER), truth.inverse().apply_dense, shortest_mm=24)
    found = refine_affine(fixed, moving, IDENTITY, 8.0, 3, iterations=4)
    assert distance_mm(found, truth) < 4.0 < 0.25 * distance_mm(IDENTITY, truth)


def test_a_fit_that_stays_ends(textured_features, turned_grid, monkeypatch):
    steps, match = [], affine_fit.match_blocks
    monkeypatch.setattr(affine_fit, "match_blocks", lambda *given: steps.append(1) or match(*given))
    fixed = textured_features(turned_grid((24, 20, 22), 4.0, (0, 5, 10), CENTER), shortest_mm=24)
    found = refine_affine(fixed, fixed, IDENTITY, 8.0, 2, iterations=50)
    assert len(steps) == 1 and distance_mm(found, IDENTITY) < 0.5


def test_without_matches_the_start_stays(textured_features, turned_grid):
    fixed, moving = (textured_features(turned_grid((8, 8, 8), 4.0, (0, 0, 0), (x, 0, 0))) for x in (0, 900))
    assert refine_affine(fixed, moving, IDENTITY, 8.0, 2, iterations=2) is IDENTITY


def test_an_affine_fit_ignores_a_third_of_wild_matches():
    rng = np.random.default_rng(0)
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = rotation(np.radians((5, 10, -7))), (3, 50, -20)
    truth = AffineTransform(matrix)
    points = rng.uniform(-80, 80, (120, 3))
    moved = truth.apply(points)
    moved[:36] += rng.normal(0, 30, (36, 3))
    assert np.allclose(least_trimmed_squares(points, moved).matrix, truth.matrix, atol=1e-6)


def test_tempering_keeps_centre_size_and_turns_and_makes_stretches_more_alike():
    turn = rotation(np.radians((5, 10, -7)))
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = turn @ np.diag((0.8, 1.0, 1.25)), (3, 50, -20)
    before = AffineTransform(matrix)
    after = tempered(before, CENTER)
    assert np.allclose(after.apply(CENTER), before.apply(CENTER))
    stretch = turn.T @ after.matrix[:3, :3]
    assert np.allclose(np.log(np.diag(stretch)), (1 - SHAPE_PRIOR) * np.log((0.8, 1.0, 1.25)))
    assert np.allclose(stretch, np.diag(np.diag(stretch)))
    matrix[:3, :3] = 1.2 * turn
    assert np.allclose(tempered(AffineTransform(matrix), CENTER).matrix, matrix)
