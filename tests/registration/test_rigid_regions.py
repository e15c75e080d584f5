"""Rigid regions of a field: distances inside are kept, the way there is smooth, and what lies beyond stays as it was."""

import numpy as np
import pytest
import torch
from scipy.spatial.distance import pdist

from nnssl_reg.evaluation.phantoms import rotation
from nnssl_reg.geometry.affine import AffineTransform
from nnssl_reg.geometry.displacement import DisplacementField
from nnssl_reg.geometry.grid import Grid
from nnssl_reg.registration.rigid_regions import nearest_rigid, numbered_regions, with_rigid_regions
from nnssl_reg.registration.unfolding import folded_cells


@pytest.fixture(scope="module")
def grid(turned_grid) -> Grid:
    return turned_grid((40, 36, 30), (2.0, 2.2, 2.8), (12, -20, 8), (30, -50, 400))


@pytest.fixture(scope="module")
def initial() -> AffineTransform:
    matrix = np.eye(4)
    matrix[:3, :3] = rotation(np.radians([4, -7, 10])) @ np.diag([1.08, 0.94, 1.05])
    matrix[:3, 3] = 15, -30, 90
    return AffineTransform(matrix)


def waves(grid: Grid, height_mm: float = 4.0) -> DisplacementField:
    points = grid.points_mm()
    return DisplacementField(height_mm * torch.sin(points.roll(1, 0) / 14), grid)


def balls(grid: Grid, *centers, radius: float = 5.0) -> np.ndarray:
    """1, 2, ... at balls around voxel indices, radius in voxels."""
    index, mask = np.moveaxis(np.indices(grid.shape), 0, -1), np.zeros(grid.shape, np.uint8)
    for number, center in enumerate(centers, 1):
        mask[np.linalg.norm(index - np.array(center), axis=-1) <= radius] = number
    return mask


def total_at(field: DisplacementField, initial: AffineTransform, points_mm) -> np.ndarray:
    return initial.after(field).apply_to_points(points_mm)


def in_cells(field: DisplacementField) -> torch.Tensor:
    to_index = torch.as_tensor(np.linalg.inv(field.grid.affine[:3, :3]), dtype=torch.float32)
    return torch.einsum("ij,jxyz->ixyz", to_index, field.vectors_mm)


def test_distances_within_each_region_are_kept_at_and_between_voxels_and_change_without_it(grid, initial):
    field, mask, rng = waves(grid), balls(grid, (12, 15, 12), (28, 20, 18)), np.random.default_rng(0)
    found = with_rigid_regions(field, mask, grid, initial)
    for number, region in zip((1, 2), found.regions):
        voxels = np.argwhere(mask == number)
        points = grid.index_to_world(rng.permutation(voxels)[:300] + rng.uniform(-0.5, 0.5, (300, 3)))
        kept = pdist(total_at(found.deformation, initial, points)) - pdist(points)
        assert np.abs(kept).max() < 1e-3
        assert np.abs(pdist(total_at(field, initial, points)) - pdist(points)).max() > 1
        assert region.id == number and region.voxels == len(voxels)
        np.testing.assert_allclose(region.matrix[:3, :3] @ region.matrix[:3, :3].T, np.eye(3), atol=1e-12)
        assert np.linalg.det(region.matrix[:3, :3]) == pytest.approx(1)
        there = AffineTransform(region.matrix).apply(points)
        assert np.abs(total_at(found.deformation, initial, points) - there).max() < 1e-3


def test_beyond_the_bands_nothing_changes_and_nothing_folds(grid, initial):
    field, mask = waves(grid), balls(grid, (12, 15, 12), (28, 20, 18))
    found = with_rigid_regions(field, mask, grid, initial)
    centers = grid.index_to_world([(12, 15, 12), (28, 20, 18)])
    points = np.moveaxis(grid.points_mm().numpy(), 0, -1)
    reach = [5 * 2.8 + 2.8 * 3**0.5 + region.band_mm for region in found.regions]
    far = np.all([np.linalg.norm(points - c, axis=-1) > r for c, r in zip(centers, reach)], axis=0)
    assert 0.2 < far.mean() < 0.9
    assert torch.equal(found.deformation.vectors_mm[:, far], field.vectors_mm[:, far])
    assert found.folded_voxels == 0 and not folded_cells(in_cells(found.deformation), 0.0).any()


def test_the_field_has_no_jump_at_the_edge_of_a_region(grid, initial):
    found = with_rigid_regions(waves(grid), balls(grid, (18, 17, 14)), grid, initial)
    largest = max(float(torch.diff(in_cells(found.deformation), dim=axis + 1).abs().max()) for axis in range(3))
    assert largest < 0.95  # voxels, from one voxel to the next


def test_a_motion_that_is_rigid_already_is_found_exactly_and_nothing_is_changed(grid, initial):
    true = np.eye(4)
    true[:3, :3] = rotation(np.radians([5, 3, -8]))
    true[:3, 3] = 40, 11, 60
    points = grid.points_mm().double()
    to_fixed = AffineTransform(np.linalg.inv(initial.matrix) @ true)
    field = DisplacementField((to_fixed.apply_dense(points) - points).float(), grid)
    found = with_rigid_regions(field, balls(grid, (18, 17, 14)), grid, initial)
    np.testing.assert_allclose(found.regions[0].matrix[:3, :3], true[:3, :3], atol=1e-6)
    np.testing.assert_allclose(found.regions[0].matrix[:3, 3], true[:3, 3], atol=1e-3)
    assert (found.deformation.vectors_mm - field.vectors_mm).abs().max() < 1e-3 and found.regions[0].misfit_mm < 1e-4
    assert found.regions[0].rotation_degrees == pytest.approx(_angle(true), abs=1e-4)


def _angle(matrix: np.ndarray) -> float:
    """The angle of a rotation, from its eigenvalues cos + i sin."""
    return float(np.degrees(np.abs(np.angle(np.linalg.eigvals(matrix[:3, :3]))).max()))


def test_a_body_that_turns_apart_from_its_surroundings_turns_as_it_did(grid):
    """A ball turned by 12 degrees in tissue that stays: the field is the rotation, smeared; the ball's own part is exact."""
    middle = grid.index_to_world((19, 17, 14))
    turn = AffineTransform.translation(-middle).then(AffineTransform(_turned(12))).then(AffineTransform.translation(middle))
    points = grid.points_mm().double()
    away = (points - torch.as_tensor(middle).view(3, 1, 1, 1)).norm(dim=0)
    share = torch.sigmoid((22 - away) / 2)
    field = DisplacementField(((turn.apply_dense(points) - points) * share).float(), grid)
    found = with_rigid_regions(field, balls(grid, (19, 17, 14), radius=4), grid, AffineTransform.identity())
    assert found.regions[0].rotation_degrees == pytest.approx(12, abs=0.1) and found.folded_voxels == 0


def _turned(degrees: float) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, :3] = rotation(np.radians([0, 0, degrees]))
    return matrix


def test_the_parts_of_a_binary_mask_are_regions_and_so_are_ids(grid):
    mask = balls(grid, (8, 8, 8), (30, 28, 20), radius=3)
    assert numbered_regions((mask > 0).astype(np.uint8))[1] == [1, 2]
    numbers, ids = numbered_regions(np.where(mask == 2, 70_000, np.where(mask == 1, 3, -1)).astype(np.int64))
    assert ids == [3, 70_000] and np.array_equal(numbers, mask)


def test_the_nearest_rigid_motion_is_no_mirror_and_one_point_takes_the_rotation_of_its_surroundings():
    rng = np.random.default_rng(1)
    points, mirror = rng.standard_normal((50, 3)) * 20, np.diag([1.0, 1.0, -1.0])
    assert np.linalg.det(nearest_rigid(points, points @ mirror, np.eye(3))[:3, :3]) == pytest.approx(1)
    turn = rotation(np.radians([10, 20, 30]))
    alone = nearest_rigid(points[:1], points[:1] + 5, turn * 1.1)
    np.testing.assert_allclose(alone[:3, :3], turn, atol=1e-9)
    np.testing.assert_allclose(AffineTransform(alone).apply(points[:1]), points[:1] + 5, atol=1e-9)


def test_no_other_rigid_motion_is_nearer(grid, initial):
    rng = np.random.default_rng(2)
    points = rng.standard_normal((200, 3)) * 15
    moved = initial.apply(points) + rng.standard_normal((200, 3))
    best = nearest_rigid(points, moved, np.eye(3))
    least = np.square(AffineTransform(best).apply(points) - moved).sum()
    for _ in range(50):
        other = best.copy()
        other[:3, :3] = rotation(0.02 * rng.standard_normal(3)) @ best[:3, :3]
        other[:3, 3] += 0.2 * rng.standard_normal(3)
        assert np.square(AffineTransform(other).apply(points) - moved).sum() > least


def test_a_mask_that_cannot_be_used_is_refused(grid, initial):
    with pytest.raises(ValueError, match="is empty"):
        with_rigid_regions(waves(grid), np.zeros(grid.shape, np.uint8), grid, initial)
    with pytest.raises(ValueError, match="must agree"):
        with_rigid_regions(waves(grid), np.zeros((3, 3, 3), np.uint8), grid, initial)
