"""AffineTransform: fixed world to moving world, alone, chained, inverted, and after a deformation."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from nnssl_reg.evaluation.phantoms import rotation
from nnssl_reg.geometry.affine import AffineTransform, right_angled_rotations
from nnssl_reg.geometry.displacement import DisplacementField
from nnssl_reg.geometry.grid import Grid
from nnssl_reg.geometry.image import Image


@pytest.fixture
def turn() -> AffineTransform:
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = rotation((0.2, -0.3, 0.5)) @ np.diag((1.1, 0.9, 1.05)), (100, -50, 7)
    return AffineTransform(matrix)


POINTS = np.random.default_rng(0).uniform(-200, 200, (30, 3))


def test_points_move_by_the_matrix(turn):
    truth = (turn.matrix @ np.c_[POINTS, np.ones(30)].T).T[:, :3]
    assert np.allclose(turn.apply(POINTS), truth)
    assert np.allclose(turn.apply_dense(torch.as_tensor(POINTS.T)).T, truth)
    assert np.allclose(AffineTransform.translation((1, 2, 3)).apply(POINTS), POINTS + (1, 2, 3))


def test_chaining_and_inverting(turn):
    shift = AffineTransform.translation((5, 6, 7))
    assert np.allclose(turn.then(shift).apply(POINTS), shift.apply(turn.apply(POINTS)))
    assert np.allclose(turn.then(turn.inverse()).apply(POINTS), POINTS)
    assert AffineTransform.identity().is_identity and not turn.is_identity


@pytest.mark.parametrize("integer", [True, False])
def test_an_image_is_warped_as_by_the_field_that_the_transform_is(turn, turned_grid, integer):
    grid = turned_grid((9, 11, 12), (2, 3, 1), (10, 40, -20), (30, 0, -60))
    source = turned_grid((20, 16, 18), (2, 2.5, 1.5), (5, 30, -15), (20, -8, -65))
    source = Grid(source.shape, turn.matrix @ source.affine)  # so that they overlap
    values = gaussian_filter(np.random.default_rng(2).standard_normal((1, *source.shape)), (0, 1, 1, 1)).astype(np.float32)
    moving = Image((9 * (values > 0.1) + (values > 0)).astype(np.int16) if integer else values, source)
    found, truth = turn.warp(moving, grid), turn.as_field(grid).warp(moving)
    assert found.grid == grid and found.array.dtype == truth.array.dtype and len(np.unique(truth.array)) > 2
    if integer:
        assert (found.array != truth.array).mean() < 0.001  # by rounding, half way between two voxels
    else:
        assert np.abs(found.array - truth.array).max() < 1e-4


def test_after_a_deformation_is_the_composition(turn, turned_grid):
    grid = turned_grid((6, 7, 8), (2, 3, 1), (10, 40, -20), (30, 0, -60))
    vectors = torch.from_numpy(np.random.default_rng(1).normal(0, 5, (3, *grid.shape)).astype(np.float32))
    total = turn.after(DisplacementField(vectors, grid))
    points = np.moveaxis(grid.points_mm().numpy(), 0, -1)
    truth = turn.apply(points + np.moveaxis(vectors.numpy(), 0, -1)) - points
    assert np.allclose(np.moveaxis(total.vectors_mm.numpy(), 0, -1), truth, atol=1e-3)
    assert np.allclose(turn.as_field(grid).vectors_mm, turn.after(DisplacementField(0 * vectors, grid)).vectors_mm, atol=1e-3)
    finer = grid.with_spacing((1, 1, 0.7))
    seen = turn.after(DisplacementField(vectors, grid)).on(finer).vectors_mm[:, 3:-3, 3:-3, 3:-3]  # linear within the grid
    assert torch.allclose(turn.after(DisplacementField(vectors, grid), finer).vectors_mm[:, 3:-3, 3:-3, 3:-3], seen, atol=1e-3)
    same = AffineTransform.identity().after(DisplacementField(vectors, grid))
    assert torch.allclose(same.vectors_mm, vectors, atol=1e-4)


@pytest.mark.parametrize("matrix", [np.eye(3), np.diag([1.0, 0, 1, 1]), np.full((4, 4), np.nan)])
def test_a_matrix_that_cannot_be_undone_is_refused(matrix):
    with pytest.raises(ValueError, match="invertible"):
        AffineTransform(matrix)


def test_there_are_24_right_angled_rotations_and_the_first_does_nothing():
    rotations = right_angled_rotations()
    assert len({tuple(r.flatten()) for r in rotations}) == 24 and np.array_equal(rotations[0], np.eye(3))
    for r in rotations:
        assert np.array_equal(r @ r.T, np.eye(3)) and round(np.linalg.det(r)) == 1


def test_a_rotation_about_a_point_leaves_the_point():
    turn = AffineTransform.about(right_angled_rotations()[7], (3.0, -4.0, 5.0))
    assert np.allclose(turn.apply((3.0, -4.0, 5.0)), (3.0, -4.0, 5.0))
    assert np.allclose(turn.apply((4.0, -4.0, 5.0)), (3.0, -4.0, 5.0) + right_angled_rotations()[7] @ (1, 0, 0))
