"""One pair of files registered: known fields come back in millimetres, whatever grids, storage orders and offsets."""

from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
import torch
from scipy.spatial.distance import pdist

from nnssl_reg.commands.pair_features import FeatureStore
from nnssl_reg.commands.pair_reader import read_pair
from nnssl_reg.commands.pair_types import ImagePair, Side
from nnssl_reg.commands.register_pair import register_pair
from nnssl_reg.evaluation.metrics import folding_percent
from nnssl_reg.geometry.affine import AffineTransform
from nnssl_reg.geometry.displacement import DisplacementField
from nnssl_reg.geometry.grid import Grid
from nnssl_reg.geometry.image import Image
from nnssl_reg.imageio.images import write_image
from nnssl_reg.imageio.pairs import Pair
from nnssl_reg.planning.image_plan import plan_images
from nnssl_reg.planning.plans import RegistrationPlan

CENTER = (50.0, -20.0, 10.0)
FEATURES, PLANNED = (getattr(plan_images([Grid((48, 48, 48), np.eye(4))]), name) for name in ("features", "registration"))
PLAN = replace(PLANNED, coarse_spacing_mm=10.0, search_radius_mm=20.0, rounds=2, iterations=60, learning_rate=1.0,
               smoothness=0.4, smoothing_passes=3, symmetric=False, init="identity")  # fmt: skip


def smooth_field(points: torch.Tensor) -> torch.Tensor:
    """Up to some 9 mm, mean 5 mm, at world points (3, ...)."""
    x, y, z = points - torch.tensor(CENTER, dtype=points.dtype).view(3, *[1] * (points.ndim - 1))
    return torch.stack([4 * torch.sin(y / 15) + 3, 3.5 * torch.cos(z / 14) - 2, 4 * torch.sin(x / 16 + y / 25)])


def undone(points: torch.Tensor) -> torch.Tensor:
    """The points that smooth_field leads to `points`."""
    guess = points
    for _ in range(50):
        guess = points - smooth_field(guess)
    return guess


def register(folder, fixed: Image, moving: Image, plan: RegistrationPlan = PLAN, **masks):
    """Through files, with MIND features of the planner's own choice."""
    write_image(folder / "fixed.nii.gz", fixed)
    write_image(folder / "moving.nii.gz", moving)
    paths = {}
    for name, mask in masks.items():  # fixed_mask, moving_mask, rigid_mask
        paths[name] = folder / f"{name}.nii.gz"
        write_image(paths[name], mask)
    features = replace(plan_images([fixed.grid, moving.grid]).features, mind_stride=(2, 2, 2))
    store = FeatureStore("mind", features, None, torch.device("cpu"))
    pair = read_pair(Pair("pair", folder / "fixed.nii.gz", folder / "moving.nii.gz", **paths), store)
    return register_pair(pair, store, plan)


def within_body(grid: Grid, share: float = 0.9) -> torch.Tensor:
    points = grid.points_mm() - torch.tensor(CENTER).view(3, 1, 1, 1)
    return (points / torch.tensor((42.0, 36.0, 40.0)).view(3, 1, 1, 1)).norm(dim=0) < share


def mean_error_mm(vectors_mm: torch.Tensor, grid: Grid) -> float:
    return float((vectors_mm - smooth_field(grid.points_mm())).norm(dim=0)[within_body(grid)].mean())


def stored_otherwise(image: Image, order, flips) -> Image:
    """The same voxels with their axes in another order and direction."""
    affine, shape = np.array(image.grid.affine)[:, [*order, 3]], [image.grid.shape[a] for a in order]
    array = image.array.transpose(0, *(a + 1 for a in order))
    for axis in flips:
        affine[:3, 3] += affine[:3, axis] * (shape[axis] - 1)
        affine[:3, axis] *= -1
        array = np.flip(array, axis + 1)
    return Image(np.ascontiguousarray(array), Grid(tuple(shape), affine))


def test_a_known_field_between_an_oblique_anisotropic_and_a_turned_image_is_recovered(tmp_path, turned_grid, body_image):
    fixed = turned_grid((56, 54, 30), (2.0, 2.0, 4.0), (20, -15, 30), CENTER)
    moving = turned_grid((52, 60, 46), (2.2, 1.8, 2.5), (-10, 35, 5), (53, -18, 12))
    done = register(tmp_path, body_image(fixed, center_mm=CENTER), body_image(moving, undone, center_mm=CENTER))
    assert done.field.grid.matches(fixed)
    initial, error = mean_error_mm(0 * done.field.vectors_mm, fixed), mean_error_mm(done.field.vectors_mm, fixed)
    assert error < 0.25 * initial and error < 1.2  # mm, the voxels being 2 x 2 x 4 mm


@pytest.mark.parametrize("order", list(permutations(range(3)))[1::2])
def test_the_order_and_direction_of_stored_axes_do_not_matter(tmp_path, turned_grid, body_image, order):
    fixed = body_image(turned_grid((36, 32, 26), (2.8, 2.9, 3.6), (2, 3, 5), CENTER), center_mm=CENTER)
    moving = body_image(turned_grid((34, 36, 38), (3.0, 2.7, 2.6), (-3, 1, 4), CENTER), undone, center_mm=CENTER)
    one = register(tmp_path, fixed, moving).field
    other = stored_otherwise(fixed, order, (0, 2))
    two = register(tmp_path, other, stored_otherwise(moving, order[::-1], (1,))).field
    assert two.grid.matches(other.grid)
    difference = (two.on(one.grid).vectors_mm - one.vectors_mm).norm(dim=0)
    assert difference[within_body(fixed.grid)].max() < 0.28  # mm, a tenth of a voxel


def test_neither_storage_nor_origin_matter_to_the_planned_registration_with_its_alignment(tmp_path, turned_grid, body_image):
    fixed = body_image(turned_grid((33, 31, 26), (2.83, 2.91, 3.57), (2, 3, 5), CENTER), center_mm=CENTER)
    moving = body_image(turned_grid((34, 36, 37), (3.03, 2.71, 2.61), (-3, 9, 4), (60, -12, 5)), undone, center_mm=CENTER)
    plan = replace(PLANNED, iterations=30)
    assert plan.init == "auto" and plan.symmetric
    one = register(tmp_path, fixed, moving, plan)
    far = np.eye(4)
    far[:3, 3] = (163.7, -867.3, 1042.9)
    others = [stored_otherwise(image, order, (0, 2)) for image, order in ((fixed, (2, 0, 1)), (moving, (1, 0, 2)))]
    others = [Image(image.array, Grid(image.grid.shape, far @ image.grid.affine)) for image in others]
    two = register(tmp_path, *others, plan).field
    assert two.grid.matches(others[0].grid)
    back = DisplacementField(two.vectors_mm, Grid(two.grid.shape, np.linalg.inv(far) @ two.grid.affine)).on(fixed.grid)
    assert (back.vectors_mm - one.field.vectors_mm).norm(dim=0).max() < 0.02  # mm
    assert one.alignment.name != "identity" and one.field.vectors_mm.norm(dim=0).mean() > 5


@pytest.mark.parametrize("side", ["fixed", "moving"])
def test_the_initial_alignment_looks_at_the_box_of_a_mask_only(tmp_path, turned_grid, body_image, side):
    grid = turned_grid((40, 32, 30), (2.8, 2.9, 3.0), center_mm=CENTER)
    fixed = body_image(grid, center_mm=CENTER)
    moving = Image(np.roll(fixed.array, 6, axis=3), grid)  # 18 mm up
    images = {"fixed": fixed, "moving": moving}
    ruined, mask = images[side].array.copy(), np.zeros((1, *grid.shape), np.uint8)
    ruined[:, 24:] = np.roll(np.flip(fixed.array[:, :16], (1, 3)), -8, axis=2)  # another body, elsewhere
    mask[:, :20] = 1
    images[side] = Image(ruined, grid)
    plan = replace(PLAN, init="auto", iterations=1)
    corners = grid.corners_mm()
    shift = np.array([0, 0, 18.0])
    off = [np.linalg.norm(register(tmp_path, **images, plan=plan, **masks).alignment.transform.apply(corners) - corners - shift,
                          axis=1).mean() for masks in ({}, {f"{side}_mask": Image(mask, grid)})]  # fmt: skip
    assert off[1] < 2 and off[1] < 0.5 * off[0]


def test_what_the_initial_alignment_compares_is_not_computed_where_none_is_wanted(tmp_path, turned_grid, body_image):
    image = body_image(turned_grid((20, 20, 20), 4.5, center_mm=CENTER), center_mm=CENTER)
    store, pair = FeatureStore("mind", FEATURES, None, torch.device("cpu")), ImagePair(Side(image, "a"), Side(image, "b"))
    register_pair(pair, store, replace(PLAN, iterations=1))
    register_pair(pair, store, replace(PLAN, iterations=1, init="auto"), start=AffineTransform.identity())
    assert all(features.aligning is None for features in store._kept.values())
    register_pair(pair, store, replace(PLAN, iterations=1, init="center"))
    assert [features.aligning is not None for features in store._kept.values()] == [True, True]


@pytest.mark.parametrize("axis", [0, 2])
def test_where_the_moving_image_is_cut_off_nothing_pulls_and_the_rest_is_found_as_well(tmp_path, turned_grid, body_image, axis):
    grid = turned_grid((36, 32, 30), (2.8, 2.9, 3.0), center_mm=CENTER)
    fixed, moving = body_image(grid, center_mm=CENTER), body_image(grid, undone, center_mm=CENTER)
    box = np.array([[0, n] for n in grid.shape])
    box[axis, 1] = round(0.6 * grid.shape[axis])
    errors = []
    for image in (moving, moving.cropped(box)):
        vectors = register(tmp_path, fixed, image, replace(PLAN, symmetric=True)).field.vectors_mm
        errors.append((vectors - smooth_field(grid.points_mm())).norm(dim=0))
    landed = moving.cropped(box).grid.world_to_index(
        np.moveaxis((grid.points_mm() + smooth_field(grid.points_mm())).numpy(), 0, -1)
    )
    reached, body = torch.from_numpy(landed[..., axis] < box[axis, 1] - 3), within_body(grid)
    whole, cut = (float(error[reached & body].mean()) for error in errors)
    assert cut < 1.3 * whole + 0.1
    beyond = errors[1][~reached & body]  # there the field goes on as its neighbours do
    assert float((~reached & body).sum() / body.sum()) > 0.1 and float(beyond.max()) < 16


@pytest.mark.parametrize("side", ["fixed", "moving"])
def test_what_a_mask_leaves_out_does_not_pull(tmp_path, turned_grid, body_image, side):
    grid = turned_grid((36, 32, 30), (2.8, 2.9, 3.0), center_mm=CENTER)
    images = {"fixed": body_image(grid, center_mm=CENTER), "moving": body_image(grid, undone, center_mm=CENTER)}
    mask = np.zeros((1, *grid.shape), np.uint8)
    mask[:, :18] = 1
    one = register(tmp_path, **images, **{f"{side}_mask": Image(mask, grid)}).field.vectors_mm
    ruined = images[side].array.copy()
    ruined[:, 26:] = np.flip(ruined[:, 26:], (2, 3))  # far enough from the mask for no box of MIND to see it
    images[side] = Image(ruined, grid)
    two = register(tmp_path, **images, **{f"{side}_mask": Image(mask, grid)}).field.vectors_mm
    without = register(tmp_path, **images).field.vectors_mm
    seen = torch.from_numpy(mask[0] > 0) & within_body(grid)
    same, other = ((one - field).norm(dim=0)[seen].mean() for field in (two, without))
    assert same < 0.15 and same < 0.3 * other  # MIND's variance is kept within bounds by its mean over the whole image


@pytest.mark.parametrize("symmetric", [False, True])
def test_an_image_with_itself_gives_exactly_no_displacement(tmp_path, turned_grid, body_image, symmetric):
    image = body_image(turned_grid((33, 30, 21), (2.8, 2.9, 4.1), (12, -20, 5), CENTER), center_mm=CENTER)
    done = register(tmp_path, image, image, replace(PLAN, symmetric=symmetric))
    assert not done.deformation.vectors_mm.any() and done.alignment.transform.is_identity
    assert done.field.vectors_mm.abs().max() == 0


def test_the_field_is_initial_alignment_after_deformation_on_a_grid_that_covers_the_image(tmp_path, turned_grid, body_image):
    fixed = body_image(turned_grid((30, 28, 26), (3.0, 3.1, 3.3), (25, 0, 10), CENTER), center_mm=CENTER)
    moving = body_image(turned_grid((30, 28, 26), (3.2, 3.0, 3.1), (0, 4, 0), CENTER), undone, center_mm=CENTER)
    done = register(tmp_path, fixed, moving, replace(PLAN, init="center", iterations=10))
    total = done.alignment.transform.after(done.deformation.on(fixed.grid))
    assert torch.allclose(total.vectors_mm, done.field.vectors_mm, atol=1e-3)
    index = done.deformation.grid.world_to_index(fixed.grid.corners_mm())
    assert index.min() >= 0 and (index <= np.array(done.deformation.grid.shape) - 1).all()
    stages = {"reading", "features", "initial alignment", "first match", "convex adam", "refinement at voxels", "field"}
    assert set(done.seconds) == stages


def test_an_empty_mask_is_named(tmp_path, turned_grid, body_image):
    image = body_image(turned_grid((20, 20, 20), 4.5, center_mm=CENTER), center_mm=CENTER)
    empty = Image(np.zeros(image.array.shape, np.uint8), image.grid)
    with pytest.raises(ValueError, match=r"fixed_mask.nii.gz: the mask is empty"):
        register(tmp_path, image, image, fixed_mask=empty)


def test_a_rigid_region_of_a_file_keeps_its_distances_under_an_affine_start_and_the_rest_stays(
    tmp_path, turned_grid, body_image
):
    fixed = body_image(turned_grid((30, 28, 26), (3.0, 3.1, 3.3), (25, 0, 10), CENTER), center_mm=CENTER)
    moving = body_image(turned_grid((30, 28, 26), (3.2, 3.0, 3.1), (0, 4, 0), CENTER), undone, center_mm=CENTER)
    plan, grid = replace(PLAN, init="affine", iterations=10), fixed.grid
    away = (grid.points_mm() - torch.tensor(CENTER).view(3, 1, 1, 1)).norm(dim=0).numpy()
    rigid = Image((away < 12).astype(np.uint8)[None], grid)
    free, done = register(tmp_path, fixed, moving, plan), register(tmp_path, fixed, moving, plan, rigid_mask=rigid)
    points = grid.index_to_world(np.argwhere(rigid.array[0]))
    kept = [np.abs(pdist(d.field.apply_to_points(points)) - pdist(points)).max() for d in (free, done)]
    assert kept[0] > 0.5 and kept[1] < 1e-3
    assert "rigid regions" in done.seconds and [region.id for region in done.rigid] == [1] and not free.rigid
    far = away > 12 + 3.3 * 3**0.5 + done.rigid[0].band_mm
    assert (done.field.vectors_mm - free.field.vectors_mm)[:, far].abs().max() < 1e-3
    assert folding_percent(done.field.jacobian_determinant()) == 0


def test_a_rigid_mask_that_is_empty_or_comes_with_a_flow_is_refused(tmp_path, turned_grid, body_image):
    image = body_image(turned_grid((20, 20, 20), 4.5, center_mm=CENTER), center_mm=CENTER)
    empty = Image(np.zeros(image.array.shape, np.uint8), image.grid)
    with pytest.raises(ValueError, match=r"rigid_mask.nii.gz: the mask is empty, so there is no region"):
        register(tmp_path, image, image, rigid_mask=empty)
    both = ImagePair(Side(image, "a"), Side(image, "b"), rigid_mask=empty)
    with pytest.raises(ValueError, match="is no flow"):
        register_pair(both, None, PLAN, is_diffeomorphic=True)


def test_each_stage_is_told_as_it_begins_also_of_a_start_that_is_given(turned_grid, body_image):
    grid, told = turned_grid((20, 18, 16), 6.0), []
    pair = ImagePair(*(Side(body_image(grid), name) for name in ("fixed", "moving")))
    store = FeatureStore("mind", FEATURES, None, torch.device("cpu"))
    done = register_pair(pair, store, PLAN, is_diffeomorphic=True, start=AffineTransform.identity(), on_stage=told.append)
    assert told == list(done.seconds)[1:] and done.seconds["diffeomorphic"] > 0
    assert [name for name in told if name in ("features", "convex adam", "field")] == ["features", "convex adam", "field"]
