"""ConvexAdam against known deformations, and what it must not depend on: scale, storage order, what masks leave out."""

from itertools import permutations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from nnssl_reg.features.mind import mind_features
from nnssl_reg.geometry.affine import AffineTransform
from nnssl_reg.geometry.displacement import DisplacementField
from nnssl_reg.geometry.grid import Grid
from nnssl_reg.geometry.image import FeatureMap
from nnssl_reg.registration import convex_adam as chain
from nnssl_reg.registration.cells import feature_scale
from nnssl_reg.registration.convex_adam import blocks_and_radius, cell_to_cell, convex_adam, refine, register_features

SAME_PLACE = AffineTransform.identity()
SIZES = [(1, 30), (2, 36), (3, 48)]  # voxels per cell, voxels per axis


def interior(values: torch.Tensor) -> torch.Tensor:
    margin = [n // 4 for n in values.shape[-3:]]
    return values[(..., *(slice(m, -m) for m in margin))]


def shift_error(field, grid: Grid, shift_mm) -> float:
    """Mean distance from a shift in the interior, in voxels of 1 mm."""
    error = field.on(grid).vectors_mm - torch.tensor(shift_mm).view(3, 1, 1, 1)
    return float(interior(error.norm(dim=0)).mean())


def moved_by(shift_mm):
    return lambda points: points - torch.tensor(shift_mm).double().view(3, 1, 1, 1)


def smooth_field(points: torch.Tensor) -> torch.Tensor:
    """Up to some 9 mm, mean 4 mm, at world points (3, ...)."""
    x, y, z = points
    return torch.stack([4 * torch.sin(y / 15) + 3, 3.5 * torch.cos(z / 14) - 2, 4 * torch.sin(x / 16 + y / 25)])


def undone(points: torch.Tensor) -> torch.Tensor:
    """The points that smooth_field leads to `points`."""
    guess = points
    for _ in range(50):
        guess = points - smooth_field(guess)
    return guess


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize(("stride", "size"), SIZES)
def test_no_motion_gives_exactly_no_motion(turned_grid, textured_image, settings, stride, size, symmetric):
    grid = turned_grid((size, size - 4, size - 2), (1.0, 1.1, 1.2), (10, 20, 30), (300, -40, 700))
    features = mind_features(torch.from_numpy(textured_image(grid).array[0]), grid, [(1, 2)], 1.0, (stride,) * 3)
    field = convex_adam(features, features, initial=SAME_PLACE, symmetric=symmetric, **settings)
    assert not field.vectors_mm.any()


@pytest.mark.parametrize(("stride", "size"), SIZES)
def test_a_shift_comes_out_as_that_shift_at_every_coarseness(turned_grid, textured_features, settings, stride, size):
    grid, shift = turned_grid((size,) * 3, 1.0), (1.7, -2.3, 0.6)
    fine = [textured_features(grid, moved, 8.0 * stride) for moved in (None, moved_by(shift))]
    maps = [FeatureMap(F.avg_pool3d(f.values[None], stride)[0], grid.coarsened(stride)) for f in fine]
    assert shift_error(convex_adam(*maps, initial=SAME_PLACE, **settings), grid, shift) < 0.1


@pytest.mark.parametrize(("stride", "size"), SIZES)
def test_mind_finds_a_shift_by_whole_cells_at_every_coarseness(turned_grid, textured_image, settings, stride, size):
    grid, shift = turned_grid((size,) * 3, 1.0), (6.0, -6.0, 0.0)
    images = [textured_image(grid, moved, shortest_mm=6) for moved in (None, moved_by(shift))]
    maps = [mind_features(torch.from_numpy(i.array[0]), grid, [(1, 2)], 1.0, (stride,) * 3) for i in images]
    assert shift_error(convex_adam(*maps, initial=SAME_PLACE, **settings), grid, shift) < 0.1


@pytest.mark.parametrize("symmetric", [False, True])
def test_a_known_field_between_an_oblique_anisotropic_and_a_turned_grid_is_recovered(
    turned_grid, textured_features, settings, symmetric
):
    fixed_grid = turned_grid((30, 28, 16), (2.0, 2.0, 4.0), (20, -15, 30), (50, -20, 10))
    moving_grid = turned_grid((40, 42, 38), (2.2, 1.8, 2.5), (-10, 35, 5), (53, -18, 12))
    fixed, moving = textured_features(fixed_grid), textured_features(moving_grid, undone)
    settings |= {"search_radius_mm": 16.0, "symmetric": symmetric}
    field = convex_adam(fixed, moving, initial=SAME_PLACE, **settings)
    truth = smooth_field(fixed_grid.points_mm())
    error = interior((field.vectors_mm - truth).norm(dim=0)).mean()
    assert error < 0.2 * truth.norm(dim=0).mean() and error < 0.8  # mm; 0.4 of the finest voxel


@pytest.mark.parametrize("symmetric", [False, True])
def test_an_initial_transform_is_applied_after_the_deformation(turned_grid, textured_features, settings, symmetric):
    """A moving world turned by 90 degrees and 200 mm away, known to the initial transform, changes nothing else."""
    matrix = np.array([[0, -1.0, 0, 200], [1, 0, 0, -30], [0, 0, 1, 5], [0, 0, 0, 1]])
    grid = turned_grid((24, 22, 20), 2.0)
    fixed, moving = textured_features(grid), textured_features(grid, moved_by((3.0, 1.0, 2.0)))
    settings |= {"symmetric": symmetric}
    elsewhere = FeatureMap(moving.values, Grid(grid.shape, matrix @ grid.affine))
    one = convex_adam(fixed, moving, initial=SAME_PLACE, **settings)
    two = convex_adam(fixed, elsewhere, initial=AffineTransform(matrix), **settings)
    assert (one.vectors_mm - two.vectors_mm).abs().max() < 0.05


@pytest.mark.parametrize("factor", [1e-3, 1e4])
def test_the_scale_and_offset_of_the_features_do_not_matter(turned_grid, textured_features, settings, factor):
    grid = turned_grid((20, 18, 16), 2.0)
    maps = textured_features(grid), textured_features(grid, moved_by((3.0, -1.0, 2.0)))
    scaled = [FeatureMap(factor * (m.values - 100), grid) for m in maps]
    one, two = (convex_adam(*m, initial=SAME_PLACE, **settings).vectors_mm for m in (maps, scaled))
    assert (one - two).norm(dim=0).mean() < 0.02


@pytest.mark.parametrize("order", list(permutations(range(3)))[1:])
def test_the_storage_order_of_the_axes_does_not_matter(turned_grid, textured_features, settings, order):
    grid = turned_grid((22, 18, 20), (2.0, 2.5, 1.8), (10, -20, 30), (5, 5, 5))
    fixed, moving = textured_features(grid), textured_features(grid, undone)
    flips = [axis for axis in range(3) if order[axis] != axis]
    affine = np.array(grid.affine)[:, [*order, 3]]
    for axis in flips:
        affine[:3, 3] += affine[:3, axis] * (grid.shape[order[axis]] - 1)
        affine[:3, axis] *= -1
    other = Grid(tuple(grid.shape[a] for a in order), affine)

    def turned(values):
        return values.permute(0, *(a + 1 for a in order)).flip([a + 1 for a in flips]).contiguous()

    one = convex_adam(fixed, moving, initial=SAME_PLACE, **settings).vectors_mm
    two = convex_adam(
        FeatureMap(turned(fixed.values), other), FeatureMap(turned(moving.values), other), initial=SAME_PLACE, **settings
    )
    assert (turned(one) - two.vectors_mm).norm(dim=0).mean() < 0.1


@pytest.mark.parametrize("side", ["fixed", "moving"])
def test_what_a_mask_leaves_out_does_not_change_the_field(turned_grid, textured_features, settings, side):
    grid = turned_grid((24, 20, 20), 2.0)
    maps = {"fixed": textured_features(grid), "moving": textured_features(grid, moved_by((3.0, -2.0, 1.0)))}
    mask = torch.zeros(grid.shape, dtype=torch.bool)
    mask[:13, 3:] = True
    masked = settings | {f"{side}_mask": mask, "initial": SAME_PLACE}
    one = convex_adam(**maps, **masked)
    ruined = torch.where(mask, maps[side].values, 40 * maps[side].values.flip(1) + 3000)
    two = convex_adam(**maps | {side: FeatureMap(ruined, grid)}, **masked)
    assert torch.allclose(one.vectors_mm, two.vectors_mm, atol=1e-3)
    assert (one.vectors_mm[:, 4:9, 6:-5, 5:-5] - torch.tensor([3.0, -2.0, 1.0]).view(3, 1, 1, 1)).norm(dim=0).mean() < 0.3


def test_symmetric_registration_gives_inverse_fields_when_the_images_change_places(turned_grid, textured_features, settings):
    grid = turned_grid((26, 24, 22), 2.0)
    maps = textured_features(grid), textured_features(grid, undone)
    settings |= {"initial": SAME_PLACE, "symmetric": True}
    there, back = convex_adam(*maps, **settings), convex_adam(*maps[::-1], **settings)
    assert interior(there.compose(back).vectors_mm.norm(dim=0)).mean() < 0.1  # mm, of 4 mm


def test_a_rerun_gives_the_same_field_to_the_last_bit(turned_grid, textured_features, settings):
    grid = turned_grid((16, 14, 12), 2.0)
    maps = textured_features(grid), textured_features(grid, undone)
    one, two = (convex_adam(*maps, initial=SAME_PLACE, **settings).vectors_mm for _ in range(2))
    assert torch.equal(one, two)


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 9, 3), (1, 12, 12)])
def test_tiny_and_flat_feature_maps_work(turned_grid, textured_features, settings, shape):
    grid = turned_grid(shape, 2.0)
    field = convex_adam(textured_features(grid), textured_features(grid, undone), initial=SAME_PLACE, **settings)
    assert torch.isfinite(field.vectors_mm).all()


def test_featureless_images_give_no_motion_and_different_channels_are_refused(turned_grid, settings):
    flat = FeatureMap(torch.ones(3, 8, 8, 8), turned_grid((8, 8, 8), 2.0))
    assert not convex_adam(flat, flat, initial=SAME_PLACE, **settings).vectors_mm.any()
    with pytest.raises(ValueError, match="3 feature channels, moving 4"):
        convex_adam(flat, FeatureMap(torch.ones(4, 8, 8, 8), flat.grid), initial=SAME_PLACE, **settings)


def test_the_feature_scale_is_the_distance_of_unrelated_cells():
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(5, 6, 7, 8, generator=generator), 3 * torch.randn(5, 4, 9, 3, generator=generator) + 1
    truth = torch.cdist(a.flatten(1).T, b.flatten(1).T).square().mean().sqrt()
    assert np.isclose(feature_scale(a, b), float(truth), rtol=1e-4)


def test_cells_map_to_cells_through_the_world(turned_grid):
    fixed, moving = turned_grid((4, 5, 6), (1, 2, 3), (10, 20, 30)), turned_grid((7, 8, 9), 1.5, (0, 40, 0), (9, 9, 9))
    maps = [FeatureMap(torch.zeros(1, *g.shape), g) for g in (fixed, moving)]
    shift = AffineTransform.translation((7, -3, 2))
    found = cell_to_cell(*(m.grid for m in maps), shift) @ (1, 2, 3, 1)
    assert np.allclose(found, moving.world_to_index(fixed.index_to_world((1, 2, 3)) + (7, -3, 2)))
    assert np.array_equal(cell_to_cell(maps[0].grid, maps[0].grid, SAME_PLACE), np.eye(4)[:3])


def test_blocks_are_near_cubes_in_millimetres_and_never_larger_than_the_image():
    assert blocks_and_radius((2.0, 2.0, 6.0), (40, 40, 12), 12.0, 24.0) == ([6, 6, 2], [2, 2, 2])
    assert blocks_and_radius((2.0, 2.0, 6.0), (40, 3, 1), 12.0, 60.0) == ([6, 3, 1], [5, 1, 1])


def test_rounds_halve_the_radius_and_the_blocks_once(turned_grid, textured_features, settings, monkeypatch):
    asked = []
    monkeypatch.setattr(chain, "search", lambda *a: (asked.append((a[4], a[5])), a[3])[1])
    image = textured_features(turned_grid((24, 24, 24), 2.0, (0, 0, 0)))
    convex_adam(image, image, initial=AffineTransform.identity(), **{
        **settings, "coarse_spacing_mm": 8.0, "search_radius_mm": 32.0, "rounds": 4, "iterations": 1})  # fmt: skip
    assert asked == [([4] * 3, [4] * 3), ([2] * 3, [4] * 3), ([2] * 3, [2] * 3), ([2] * 3, [1] * 3)]


def test_blocks_of_one_and_a_half_cells_do_not_hang_on_the_last_digit_of_a_spacing():
    nearly = (6.0, np.nextafter(6.0, 7), np.nextafter(6.0, 5))
    assert blocks_and_radius(nearly, (40, 40, 40), 9.0, 30.0) == ([2, 2, 2], [3, 3, 3])


@pytest.mark.gpu
@pytest.mark.parametrize("symmetric", [False, True])
def test_the_gpu_finds_the_field_of_the_cpu(turned_grid, textured_features, settings, symmetric):
    fixed_grid, moving_grid = turned_grid((26, 24, 22), 2.0, (10, 20, 5)), turned_grid((28, 30, 26), 2.1, (0, 5, 30))
    maps = textured_features(fixed_grid), textured_features(moving_grid, undone)
    mask = torch.ones(fixed_grid.shape, dtype=torch.bool)
    mask[:6] = False
    settings |= {"initial": SAME_PLACE, "symmetric": symmetric}
    there = [FeatureMap(m.values.cuda(), m.grid) for m in maps]
    one, two = convex_adam(*maps, fixed_mask=mask, **settings), convex_adam(*there, fixed_mask=mask.cuda(), **settings)
    assert two.vectors_mm.is_cuda and interior((one.vectors_mm - two.vectors_mm.cpu()).norm(dim=0)).mean() < 0.1


def test_both_directions_agree_on_clear_images_and_not_on_unrelated_ones(turned_grid, textured_features, settings):
    grid = turned_grid((26, 24, 22), 2.0, (10, 20, 30))
    turned = AffineTransform(np.diag([-1.0, -1.0, 1.0, 1.0]))  # the moving world's axes run the other way
    maps = textured_features(grid), textured_features(grid, undone)
    elsewhere = FeatureMap(maps[1].values, Grid(grid.shape, turned.matrix @ grid.affine))
    settings |= {"symmetric": True}
    near = register_features(*maps, initial=SAME_PLACE, **settings).apart_mm
    assert interior(near).mean() < 0.3
    other = register_features(maps[0], elsewhere, initial=turned, **settings).apart_mm
    assert torch.allclose(near, other, atol=1e-2)
    noise = FeatureMap(torch.randn(maps[0].values.shape, generator=torch.Generator().manual_seed(0)), grid)
    assert interior(register_features(maps[0], noise, initial=SAME_PLACE, **settings).apart_mm).mean() > 2
    assert register_features(*maps, initial=SAME_PLACE, **settings | {"symmetric": False}).apart_mm is None


def test_of_a_moving_image_much_larger_only_what_is_reached_is_registered_back(monkeypatch, textured_features, settings):
    small, large = Grid((24, 22, 20), np.diag([2.0, 2, 2, 1])), Grid((90, 22, 20), np.diag([2.0, 2, 2, 1]))
    maps = textured_features(small), textured_features(large, undone)
    settings |= {"symmetric": True, "initial": SAME_PLACE, "search_radius_mm": 8.0}
    both = register_features(*maps, **settings)
    alone = register_features(maps[0], textured_features(small, undone), **settings)
    assert interior((both.field.vectors_mm - alone.field.vectors_mm).norm(dim=0)).median() < 0.3
    refined, optimise = [], chain.optimise
    monkeypatch.setattr(chain, "optimise", lambda fixed, *rest: refined.append(fixed.shape) or optimise(fixed, *rest))
    register_features(*maps, **settings)
    assert refined[0] == small.shape and refined[1][0] < 50 and refined[1][1:] == (22, 20)


def test_refined_on_finer_features_a_field_comes_closer_and_no_motion_stays_exactly_none(textured_features, settings):
    coarse, fine, shift = Grid((16, 16, 16), np.diag([2.0, 2, 2, 1])), Grid((31, 31, 31), np.eye(4)), (0.7, -0.6, 0.5)
    adam = {"initial": SAME_PLACE, "fixed_mask": None, "moving_mask": None, "iterations": 20, "learning_rate": 0.5,
            "smoothness": 0.3, "smoothing_passes": 3}  # fmt: skip

    def moved(points):
        return points - torch.tensor(shift, dtype=points.dtype).view(3, 1, 1, 1)

    still = DisplacementField(torch.zeros(3, *coarse.shape), coarse)
    fixed, moving = textured_features(fine), textured_features(fine, moved)
    found = refine(fixed, moving, still, **adam)
    assert found.grid == fine and shift_error(found, fine, shift) < 0.1
    assert not refine(fixed, fixed, still, **adam).vectors_mm.any()
