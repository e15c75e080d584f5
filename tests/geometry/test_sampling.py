"""Sampling and resampling against brute force, SciPy, and what they must keep: values, constants, means, places."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from nnssl_reg.geometry.grid import Grid
from nnssl_reg.geometry.image import Image
from nnssl_reg.geometry.sampling import (
    gather_nearest,
    inside,
    resample,
    resample_batch,
    sample_grid,
    sample_points,
    sample_voxels,
    slabs,
    smooth_gaussian,
    to_voxels,
)


def noise(*shape) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).standard_normal(shape).astype(np.float32))


@pytest.mark.parametrize("shape", [(6, 7, 8), (1, 5, 4), (4, 1, 1)])
@pytest.mark.parametrize("mode", ["linear", "nearest"])
def test_at_voxel_centres_the_values_come_back(shape, mode):
    values = noise(2, *shape)
    centres = torch.stack(torch.meshgrid(*[torch.arange(float(n)) for n in shape], indexing="ij"))
    assert torch.allclose(sample_voxels(values, centres, mode), values, atol=1e-5)


def test_between_voxels_sampling_is_trilinear_and_outside_the_edge_value():
    values, points = noise(2, 6, 7, 8), torch.from_numpy(np.random.default_rng(1).uniform(-3, 10, (3, 500))).float()
    theirs = [ndimage.map_coordinates(v.numpy(), points.numpy(), order=1, mode="nearest") for v in values]
    assert np.allclose(sample_voxels(values, points).numpy(), np.stack(theirs), atol=1e-5)


def test_inside_ends_half_a_voxel_beyond_the_last_centre_and_fill_begins_there(turned_grid):
    points = torch.tensor([[-0.6, -0.4, 4.4, 4.6], [2.0] * 4, [1.0] * 4])
    assert inside(points, (5, 5, 5)).tolist() == [False, True, True, False]
    grid = turned_grid((5, 5, 5), 2.0, (10, 20, 30), (100, 0, 0))
    world = torch.as_tensor(grid.index_to_world(points.T.numpy()).T).float()
    values = torch.ones(1, 5, 5, 5)
    assert sample_points(values, grid, world, fill=-7.0)[0].tolist() == [-7, 1, 1, -7]
    assert sample_points(values, grid, world)[0].tolist() == [1, 1, 1, 1]
    assert torch.allclose(to_voxels(world, grid), points, atol=1e-4)


def test_labels_of_any_size_are_gathered_exactly_from_the_nearest_voxel(turned_grid):
    rng = np.random.default_rng(0)
    grid = turned_grid((6, 5, 4), (1, 2, 3), (15, 5, -20))
    array = rng.integers(0, 2**31 - 1, (1, *grid.shape), dtype=np.int32)
    points = grid.index_to_world(rng.uniform(-0.45, np.array(grid.shape) - 0.55, (200, 3)))
    index = np.rint(grid.world_to_index(points)).astype(int)
    found = gather_nearest(array, grid, torch.as_tensor(points.T), 0)
    assert found.dtype == np.int32 and np.array_equal(found[0], array[0][tuple(index.T)])
    assert gather_nearest(array, grid, torch.full((3, 2), 1e4), 5).tolist() == [[5, 5]]


def test_gaussian_smoothing_is_scipys():
    """In single precision by compiled code, in double as on other devices; the values given stay as they are."""
    values = noise(1, 12, 9, 10)
    before = values.clone()
    for sigma in ((1.0, 2.0, 0.0), (0.0, 1.0, 3.0)):
        theirs = ndimage.gaussian_filter(values[0].numpy(), sigma, mode="nearest", truncate=3.0)
        for given in (values, values.double()):
            assert np.allclose(smooth_gaussian(given, sigma)[0].numpy(), theirs, atol=1e-5)
    assert torch.equal(values, before)


@pytest.mark.parametrize("spacing", [0.7, 1.5, 4.0])
def test_resampling_keeps_constants(turned_grid, spacing):
    image = Image(np.full((1, 12, 13, 14), 321.5, np.float32), turned_grid((12, 13, 14), (1, 1.2, 0.9), (3, 4, 5)))
    assert np.allclose(resample(image, image.grid.with_spacing(spacing)).array, 321.5, atol=1e-3)


def test_going_coarser_keeps_the_mean_and_takes_away_what_the_coarse_grid_cannot_hold():
    grid = Grid((48, 48, 48), np.eye(4))
    image = Image(noise(1, 48, 48, 48).numpy() + 10, grid)
    coarse = resample(image, grid.with_spacing(4.0)).array
    assert abs(coarse.mean() - image.array.mean()) < 0.02
    assert coarse.std() < 0.25 * image.array.std()
    stripes = (np.indices(grid.shape).sum(axis=0) % 2).astype(np.float32)
    kept = resample(Image(stripes[None], grid), grid.with_spacing(3.0)).array[0, 2:-2, 2:-2, 2:-2]
    assert np.abs(kept - 0.5).max() < 0.02


@pytest.mark.parametrize("spacing", [(2.0, 0.5, 3.1), (1.0, 1.2, 4.0), (1.5, 1.2, 0.9)])
@pytest.mark.parametrize("fill", [None, -3.0])
def test_axis_by_axis_is_smoothing_and_sampling_of_the_whole(turned_grid, spacing, fill):
    grid = turned_grid((20, 17, 30), (1.0, 1.2, 0.9), (10, -20, 30), (30, 0, -60))
    image = Image(noise(1, *grid.shape).numpy(), grid)
    target = grid.with_spacing(spacing).cropped([[-2, 9], [1, 12], [0, 8]])
    step = np.divide(spacing, grid.spacing_mm)
    smooth = smooth_gaussian(torch.from_numpy(image.array), [0.5 * np.sqrt(s * s - 1) if s > 1.01 else 0 for s in step])
    whole = sample_grid(smooth.double(), grid, target, fill)  # by points in mm, in single precision
    found = resample(image, target, fill).array
    assert np.allclose(found, whole, atol=2e-4) and (fill is None or (found == fill).any())


def test_resampling_onto_the_own_grid_changes_nothing(turned_grid):
    grid = turned_grid((9, 8, 7), (1.1, 2.2, 0.7), (30, 10, 60), (-200, 30, 900))
    image = Image(noise(1, 9, 8, 7).numpy(), grid)
    assert np.allclose(resample(image, grid).array, image.array, atol=2e-3)
    labels = Image(np.random.default_rng(0).integers(0, 9, (1, 9, 8, 7)).astype(np.uint8), grid)
    assert np.array_equal(resample(labels, grid).array, labels.array)


def test_a_ramp_of_the_world_is_the_same_ramp_on_a_turned_grid(turned_grid):
    source = turned_grid((30, 31, 32), (1.0, 0.9, 1.1), (10, 20, 30))
    target = turned_grid((8, 9, 7), (0.9, 0.5, 0.8), (-20, 5, 70), (1, 2, 0))
    ramp = [2 * x - 3 * y + 0.5 * z for x, y, z in (source.points_mm(), target.points_mm())]
    assert np.allclose(resample(Image(ramp[0].numpy()[None], source), target).array[0], ramp[1].numpy(), atol=1e-3)


def test_labels_keep_their_type_and_outside_is_fill(turned_grid):
    labels = Image(np.full((1, 4, 4, 4), 7, np.uint8), turned_grid((4, 4, 4), 1.0))
    wide = resample(labels, turned_grid((8, 4, 4), 1.0))
    assert wide.array.dtype == np.uint8
    assert wide.array[0, :, 1, 1].tolist() == [0, 0, 7, 7, 7, 7, 0, 0]
    intensities = Image(np.full((1, 4, 4, 4), 7, np.float32), labels.grid)
    assert resample(intensities, wide.grid, fill=-1.0).array[0, :, 1, 1].tolist() == [-1, -1, 7, 7, 7, 7, -1, -1]


def test_each_sample_of_a_batch_goes_through_its_own_map():
    values = noise(2, 1, 6, 7, 8)
    maps = torch.eye(3, 4).repeat(2, 1, 1)
    assert torch.allclose(resample_batch(values, maps, (6, 7, 8)), values, atol=1e-5)
    maps[0, :, 3] = torch.tensor([1.0, 2.0, 3.0])  # result voxel 0 is sample voxel (1, 2, 3)
    maps[1] = torch.tensor([[0, 1.0, 0, 0], [1, 0, 0, 0], [0, 0, -1, 7]])  # axes swapped and reversed
    out = resample_batch(values, maps, (4, 4, 5))
    assert torch.allclose(out[0], values[0, :, 1:5, 2:6, 3:8], atol=1e-5)
    assert torch.allclose(out[1], values[1, :, :4, :4].transpose(1, 2).flip(3)[..., :5], atol=1e-5)


def test_slabs_cover_every_plane_once():
    ranges = slabs((10, 3, 4), voxels=36)
    assert [x for start, stop in ranges for x in range(start, stop)] == list(range(10))
    assert max(stop - start for start, stop in ranges) == 3
