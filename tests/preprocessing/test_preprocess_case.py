"""Truths about preprocessing: things stay where they are in the world, at the planned spacing, in the planned range."""

import numpy as np
import pytest

from nnssl_reg.geometry.grid import Grid
from nnssl_reg.geometry.image import Image
from nnssl_reg.planning.plans import ChannelPlan, ImagePlan
from nnssl_reg.preprocessing.preprocess_case import FOREGROUND_POINTS, foreground_points, preprocess_image

PLAN = ImagePlan((2.0, 2.0, 2.0), (30, 30, 30), 4.0, {"0": ChannelPlan("CT", "ct", -100.0, 300.0, -500.0),
                                                       "1": ChannelPlan("MR", "mr", None, None, None)})  # fmt: skip


def oblique_grid(shape=(40, 36, 30), spacing=(1.5, 1.2, 3.0)) -> Grid:
    """Axes permuted, flipped and turned by 10 degrees."""
    c, s = np.cos(np.pi / 18), np.sin(np.pi / 18)
    turn = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
    permute = np.array([[0, -1, 0], [1, 0, 0], [0, 0, -1.0]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ permute @ np.diag(spacing)
    affine[:3, 3] = (30, -40, 55)
    return Grid(shape, affine)


def ball_image(grid: Grid, radius_mm=14.0, inside=200.0, outside=-1000.0) -> tuple[Image, np.ndarray]:
    """A ball with a soft edge, and its centre in the world."""
    centre = grid.index_to_world(np.array(grid.shape) * (0.55, 0.4, 0.5))
    distance = np.linalg.norm(np.moveaxis(grid.points_mm().numpy(), 0, -1) - centre, axis=-1)
    share = np.clip((radius_mm - distance) / 3 + 0.5, 0, 1)
    return Image((outside + (inside - outside) * share).astype(np.float32)[None], grid), centre


def centroid(image: Image) -> np.ndarray:
    weight = np.clip(image.array[0] + 1, 0, None).astype(np.float64)
    return (np.moveaxis(image.grid.points_mm().numpy(), 0, -1) * weight[..., None]).sum((0, 1, 2)) / weight.sum()


@pytest.mark.parametrize("channel", ["0", "1"])
def test_things_stay_where_they_are_in_the_world(channel):
    image, centre = ball_image(oblique_grid(), outside=-1000.0 if channel == "0" else 0.0)
    case = preprocess_image(image, PLAN, channel)
    assert np.linalg.norm(centroid(case.image) - centre) < 0.3


def test_spacing_axes_and_range_are_the_planned_ones():
    image, _ = ball_image(oblique_grid())
    case = preprocess_image(image, PLAN, "0")
    assert np.allclose(case.image.grid.spacing_mm, PLAN.spacing_mm)
    assert case.image.grid.canonical_axes() == ((0, 1, 2), (False, False, False))
    assert case.image.array.dtype == np.float32 and case.image.array.min() == -1 and case.image.array.max() <= 1
    assert case.original_grid == image.grid


def test_the_crop_is_the_body_with_its_margin_in_canonical_voxels():
    array = np.full((1, 30, 30, 30), -1000, np.float32)
    array[0, 10:20, 8:22, 12:18] = 50
    case = preprocess_image(Image(array, Grid((30, 30, 30), np.diag([-1.0, 1, 2, 1]))), PLAN, "0")
    assert case.crop_box == [[6, 24], [4, 26], [10, 20]]  # 4 mm: 4, 4 and 2 voxels; the first axis is reversed


def test_foreground_points_lie_in_the_foreground():
    image, centre = ball_image(oblique_grid())
    case = preprocess_image(image, PLAN, "0")
    world = case.image.grid.index_to_world(case.foreground_points)
    assert len(world) > 100 and np.linalg.norm(world - centre, axis=1).max() < 14 + 4
    assert np.linalg.norm(world.mean(axis=0) - centre) < 1


def test_foreground_points_are_spread_evenly_and_few():
    mask = np.zeros((60, 60, 60), bool)
    mask[10:50, 10:50, 10:50] = True
    grid = Grid(mask.shape, np.eye(4))
    points = foreground_points(mask, grid, grid)
    assert 0.9 * FOREGROUND_POINTS < len(points) <= FOREGROUND_POINTS
    octants = [((points >= 30) == corner).all(axis=1).mean() for corner in np.ndindex(2, 2, 2)]
    assert min(octants) > 0.08 and mask[tuple(points.T)].all()


def test_the_result_is_the_same_every_time():
    image, _ = ball_image(oblique_grid())
    one, other = (preprocess_image(image, PLAN, "0") for _ in range(2))
    assert np.array_equal(one.image.array, other.image.array)
    assert np.array_equal(one.foreground_points, other.foreground_points) and one.statistics == other.statistics


def test_a_channel_that_the_plans_do_not_have_is_named_with_those_they_have():
    image, _ = ball_image(oblique_grid())
    with pytest.raises(ValueError, match=r"no channel 2, but 0 \(CT\), 1 \(MR\)"):
        preprocess_image(image, PLAN, "2")


def test_a_constant_image_is_refused():
    with pytest.raises(ValueError, match="constant"):
        preprocess_image(Image(np.zeros((1, 6, 6, 6), np.float32), Grid((6, 6, 6), np.eye(4))), PLAN, "1")
