"""Grid: where voxels are stays true under cropping, coarsening, new spacings and reordered axes."""

from itertools import permutations, product

import numpy as np
import pytest
import torch

from nnssl_reg.geometry.grid import Grid


@pytest.fixture
def oblique(turned_grid) -> Grid:
    return turned_grid((7, 5, 6), (1.2, 0.8, 3.0), (20, -10, 35), (-30, 12, 7))


def all_points(grid: Grid) -> np.ndarray:
    """(X, Y, Z, 3), one voxel after another."""
    return np.array([[[grid.affine[:3, :3] @ (x, y, z) + grid.affine[:3, 3] for z in range(grid.shape[2])]
                      for y in range(grid.shape[1])] for x in range(grid.shape[0])])  # fmt: skip


def reordered(grid: Grid, order, flips) -> Grid:
    """The same voxels stored in another order."""
    affine, shape = np.array(grid.affine)[:, [*order, 3]], tuple(grid.shape[a] for a in order)
    for axis in np.flatnonzero(flips):
        affine[:3, 3] += affine[:3, axis] * (shape[axis] - 1)
        affine[:3, axis] *= -1
    return Grid(shape, affine)


def test_world_and_index_are_inverse_and_the_affine_names_voxel_centres(oblique):
    index = np.random.default_rng(0).uniform(-3, 9, (50, 3))
    assert np.allclose(oblique.world_to_index(oblique.index_to_world(index)), index, atol=1e-10)
    assert np.array_equal(oblique.index_to_world((0, 0, 0)), oblique.affine[:3, 3])
    assert np.allclose(oblique.index_to_world((3, 2, 2.5)), oblique.center_mm)


def test_points_are_the_world_positions_of_all_voxels_whole_or_in_slabs(oblique):
    whole = oblique.points_mm()
    assert whole.dtype == torch.float32
    assert np.allclose(np.moveaxis(whole.numpy(), 0, -1), all_points(oblique), atol=1e-5)
    assert torch.equal(torch.cat([oblique.points_mm(0, 3), oblique.points_mm(3, 7)], dim=1), whole)


def test_spacing_and_extent_are_in_millimetres_along_the_array_axes(oblique):
    assert np.allclose(oblique.spacing_mm, (1.2, 0.8, 3.0))
    assert np.allclose(oblique.extent_mm, (8.4, 4.0, 18.0))


def test_a_coarse_cell_lies_in_the_middle_of_its_voxels(oblique):
    coarse = oblique.coarsened((2, 1, 4))
    assert coarse.shape == (3, 5, 1)
    points = all_points(oblique)
    for i, j, k in product(*map(range, coarse.shape)):
        block = points[2 * i : 2 * i + 2, j : j + 1, 4 * k : 4 * k + 4].reshape(-1, 3)
        assert np.allclose(coarse.index_to_world((i, j, k)), block.mean(axis=0))


def test_cropping_and_padding_keep_voxels_where_they_are(oblique):
    cropped = oblique.cropped([[2, 6], [-3, 4], [1, 9]])
    assert cropped.shape == (4, 7, 8)
    index = np.array([[0, 0, 0], [3, 6, 7]])
    assert np.allclose(cropped.index_to_world(index), oblique.index_to_world(index + (2, -3, 1)))


def test_another_spacing_keeps_centre_directions_and_field_of_view(oblique):
    new = oblique.with_spacing((0.5, 1.0, 2.0))
    assert np.allclose(new.spacing_mm, (0.5, 1.0, 2.0)) and np.allclose(new.center_mm, oblique.center_mm)
    cosines = (new.affine[:3, :3] / new.spacing_mm * oblique.affine[:3, :3] / oblique.spacing_mm).sum(axis=0)
    assert np.allclose(cosines, 1)
    assert all(abs(a - b) <= s / 2 + 1e-9 for a, b, s in zip(new.extent_mm, oblique.extent_mm, new.spacing_mm))
    assert oblique.with_spacing(oblique.spacing_mm).matches(oblique, 1e-9)
    assert min(oblique.with_spacing(100.0).shape) == 1


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_every_storage_order_has_one_canonical_grid(oblique, order):
    for flips in product((False, True), repeat=3):
        other = reordered(oblique, order, flips)
        canonical = other.canonical()
        assert canonical.matches(oblique.canonical(), 1e-9)
        assert (np.diag(canonical.affine[:3, :3]) > 0).all()
        assert np.isclose(other.obliqueness_degrees(), oblique.obliqueness_degrees())


@pytest.mark.parametrize("degrees", [0, 5, 25, 40])
def test_obliqueness_is_the_angle_to_the_world_axes(turned_grid, degrees):
    grid = turned_grid((4, 5, 6), (1, 2, 3), (0, 0, degrees))
    assert np.isclose(grid.obliqueness_degrees(), degrees, atol=1e-5)


def test_the_world_aligned_grid_covers_all_voxels_and_not_much_more(oblique):
    aligned = oblique.world_aligned()
    assert np.allclose(aligned.affine[:3, :3], 0.8 * np.eye(3))
    index = aligned.world_to_index(all_points(oblique).reshape(-1, 3))
    assert index.min() >= -1e-6 and (index <= np.array(aligned.shape) - 1 + 1e-6).all()
    assert (index.max(axis=0) > np.array(aligned.shape) - 2).all() and np.allclose(index.min(axis=0), 0, atol=1e-6)


def test_grids_match_within_a_tolerance_and_equal_without_one(oblique):
    moved = np.array(oblique.affine)
    moved[0, 3] += 0.05
    assert oblique.matches(Grid(oblique.shape, moved), 0.1) and not oblique.matches(Grid(oblique.shape, moved), 0.01)
    assert oblique == Grid(oblique.shape, oblique.affine) and oblique != Grid(oblique.shape, moved)
    assert not oblique.matches(Grid((7, 5, 7), oblique.affine), 100)


@pytest.mark.parametrize(("shape", "affine", "message"), [
    ((3, 0, 3), np.eye(4), "at least one voxel"), ((3, 3), np.eye(4), "three axes"),
    ((3, 3, 3), np.eye(3), "finite"), ((3, 3, 3), np.full((4, 4), np.nan), "finite"),
    ((3, 3, 3), np.diag([1.0, 0, 1, 1]), "singular"), ((2048, 1024, 1024), np.eye(4), "2,147,483,648 voxels"),
])  # fmt: skip
def test_a_grid_that_cannot_be_is_refused(shape, affine, message):
    with pytest.raises(ValueError, match=message):
        Grid(shape, affine)
