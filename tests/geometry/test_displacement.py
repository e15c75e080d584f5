"""DisplacementField: millimetres along the world's axes, whatever the grids; warping, composing, inverting, folding."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from nnssl_reg.geometry import displacement, sampling
from nnssl_reg.geometry.displacement import DisplacementField
from nnssl_reg.geometry.grid import Grid
from nnssl_reg.geometry.image import Image

LINEAR = torch.tensor([[0.1, -0.05, 0.02], [0.03, -0.08, 0.04], [-0.06, 0.01, 0.12]], dtype=torch.float64)


@pytest.fixture
def fixed(turned_grid) -> Grid:
    return turned_grid((14, 12, 10), (1.5, 2.0, 3.0), (20, -15, 30), (50, -20, 10))


@pytest.fixture
def moving(turned_grid) -> Grid:
    return turned_grid((40, 36, 44), (1.8, 1.2, 1.4), (-10, 35, 5), (50, -20, 10))


def linear_field(grid: Grid, linear=LINEAR, offset=(1.0, -2.0, 0.5)) -> DisplacementField:
    """u(p) = linear p + offset."""
    vectors = torch.einsum("ij,jxyz->ixyz", linear, grid.points_mm().double()) + torch.tensor(offset).view(3, 1, 1, 1)
    return DisplacementField(vectors.float(), grid)


def waves(points: torch.Tensor) -> torch.Tensor:
    """A smooth invertible displacement of up to some 4 mm, mm at world points (3, ...)."""
    x, y, z = points
    return torch.stack([2.5 * torch.sin(y / 8) + 1, 2 * torch.cos(z / 9), 3 * torch.sin(x / 10 + y / 20)])


def interior(values: torch.Tensor, margin: int = 3) -> torch.Tensor:
    return values[..., margin:-margin, margin:-margin, margin:-margin]


def test_no_displacement_leaves_image_and_labels_as_they_are(fixed):
    rng = np.random.default_rng(0)
    zero = DisplacementField(torch.zeros(3, *fixed.shape), fixed)
    image = Image(rng.standard_normal((1, *fixed.shape)).astype(np.float32), fixed)
    labels = Image(rng.integers(0, 2**20, (1, *fixed.shape)).astype(np.int32), fixed)
    assert np.allclose(zero.warp(image).array, image.array, atol=1e-4)
    assert np.array_equal(zero.warp(labels).array, labels.array) and zero.warp(labels).array.dtype == np.int32


def test_warping_shows_the_moving_image_at_the_corresponding_points(fixed, moving, textured_image, texture):
    field = DisplacementField(waves(fixed.points_mm()), fixed)
    truth = texture(fixed.points_mm() + field.vectors_mm, shortest_mm=20)
    warped = field.warp(textured_image(moving, shortest_mm=20))
    assert warped.grid is fixed
    assert np.abs(warped.array[0] - truth.numpy()).max() < 0.03 * float(truth.max() - truth.min())  # linear interpolation


def test_outside_the_moving_field_of_view_is_the_minimum_of_intensities_and_0_of_labels(fixed, moving):
    away = DisplacementField(torch.full((3, *fixed.shape), 500.0), fixed)
    array = np.random.default_rng(0).uniform(-1000, 800, (1, *moving.shape)).astype(np.float32)
    assert (away.warp(Image(array, moving)).array == array.min()).all()
    assert (away.warp(Image(array, moving), fill=3.0).array == 3).all()
    assert not away.warp(Image(np.ones((1, *moving.shape), np.uint8), moving)).array.any()


def test_on_another_grid_the_field_says_the_same(fixed, turned_grid):
    within = turned_grid((4, 5, 3), 1.1, (5, 60, -20), fixed.center_mm)
    assert torch.allclose(linear_field(fixed).on(within).vectors_mm, linear_field(within).vectors_mm, atol=1e-4)
    beyond = turned_grid((3, 3, 3), 1.0, center_mm=fixed.index_to_world((-20, 6, 5)))
    edge = linear_field(fixed).vectors_mm[:, 0, 6, 5]
    assert (linear_field(fixed).on(beyond).vectors_mm - edge.view(3, 1, 1, 1)).abs().max() < 1


def test_points_are_led_where_the_field_says(fixed):
    points = fixed.index_to_world(np.random.default_rng(0).uniform(0, np.array(fixed.shape) - 1, (20, 3)))
    truth = points + points @ LINEAR.numpy().T + (1, -2, 0.5)
    assert np.allclose(linear_field(fixed).apply_to_points(points), truth, atol=1e-4)


def test_composition_goes_first_here_then_there(fixed, moving):
    first, then = linear_field(fixed, 0.3 * LINEAR), linear_field(moving, LINEAR, (0.0, 1.0, 0.3))
    points = fixed.points_mm().double()
    middle = points + first.vectors_mm
    truth = middle + torch.einsum("ij,jxyz->ixyz", LINEAR, middle) + torch.tensor((0.0, 1.0, 0.3)).view(3, 1, 1, 1) - points
    assert torch.allclose(first.compose(then).vectors_mm, truth.float(), atol=1e-3)


def test_a_field_after_its_inverse_is_the_identity(fixed, turned_grid):
    wide = turned_grid((30, 30, 30), 2.0, (20, -15, 30), (50, -20, 10))
    field = DisplacementField(waves(wide.points_mm()), wide)
    there_and_back = field.inverse(fixed).compose(field)
    assert there_and_back.vectors_mm.norm(dim=0).max() < 1e-3
    back_and_there = field.compose(field.inverse(wide))
    assert interior(back_and_there.vectors_mm.norm(dim=0), 5).max() < 0.15  # the inverse is interpolated between voxels
    points = fixed.points_mm().reshape(3, -1).T.numpy()[::17]
    assert np.allclose(field.apply_to_points(field.inverse_points(points)), points, atol=1e-3)


def test_the_inverse_of_a_strong_linear_field_is_found(fixed, turned_grid):
    """Rotation by 40 degrees."""
    turn = torch.tensor([[0.766, -0.643, 0], [0.643, 0.766, 0], [0, 0, 1.1]], dtype=torch.float64)
    centre = turned_grid((20, 20, 20), 2.0)
    field = linear_field(centre, turn - torch.eye(3), (0.0, 0.0, 0.0))
    small = turned_grid((5, 5, 5), 2.0)
    assert field.inverse(small).compose(field).vectors_mm.abs().max() < 1e-3


def test_the_affine_part_of_a_linear_field_is_that_field(fixed):
    affine = linear_field(fixed).affine_part()
    assert np.allclose(affine[:3, :3], np.eye(3) + LINEAR.numpy(), atol=1e-5) and np.allclose(
        affine[:3, 3], (1, -2, 0.5), atol=1e-3
    )


@pytest.mark.parametrize(
    "linear", [LINEAR, -2 * torch.eye(3, dtype=torch.float64), torch.diag(torch.tensor([1.0, 0, 0]).double())]
)
def test_the_jacobian_of_a_linear_field_is_its_determinant(fixed, linear):
    truth = float(torch.linalg.det(torch.eye(3) + linear))
    jacobian = linear_field(fixed, linear).jacobian_determinant()
    assert torch.allclose(jacobian, torch.full(fixed.shape, truth), atol=2e-4)


def test_the_jacobian_does_not_depend_on_the_storage_order(fixed):
    field = DisplacementField(waves(fixed.points_mm()), fixed)
    swapped = Grid((10, 14, 12), np.array(fixed.affine)[:, [2, 0, 1, 3]])
    other = DisplacementField(field.vectors_mm.permute(0, 3, 1, 2).contiguous(), swapped)
    assert torch.allclose(other.jacobian_determinant(), field.jacobian_determinant().permute(2, 0, 1), atol=1e-5)


def test_voxel_displacements_lead_from_fixed_to_moving_indices(fixed, moving):
    field = linear_field(fixed)
    found = field.in_voxels(moving)
    for index in [(0, 0, 0), (13, 2, 5), (7, 11, 9)]:
        point = fixed.index_to_world(index) + field.vectors_mm[(slice(None), *index)].numpy()
        truth = moving.world_to_index(point) - index
        assert np.allclose(found[(slice(None), *index)], truth, atol=1e-4)


def test_voxel_displacements_warp_the_array_as_the_field_does(fixed, moving, textured_image):
    image = textured_image(moving)
    field = DisplacementField(waves(fixed.points_mm()), fixed)
    position = np.indices(fixed.shape) + field.in_voxels(moving).numpy()
    theirs = ndimage.map_coordinates(image.array[0], position, order=1)
    assert np.allclose(field.warp(image).array[0], theirs, atol=0.02)


def test_compiled_code_gives_what_torch_gives_in_slabs(fixed, moving, textured_image, monkeypatch):
    """Fields of double precision go the way of other devices."""
    image, labels = (
        textured_image(moving),
        Image(np.arange(np.prod(moving.shape), dtype=np.int16).reshape(1, *moving.shape), moving),
    )
    field = DisplacementField(waves(fixed.points_mm()), fixed)
    other = DisplacementField(field.vectors_mm.double(), fixed)
    for module in (displacement, sampling):
        monkeypatch.setattr(module, "slabs", lambda shape: [(x, min(x + 3, shape[0])) for x in range(0, shape[0], 3)])
    for one, two in [(field.jacobian_determinant(), other.jacobian_determinant()), (field.on(moving), other.on(moving)),
                     (field.compose(field), other.compose(other)), (field.in_voxels(moving), other.in_voxels(moving)),
                     (field.warp(image), other.warp(image)), (field.warp(image, 7.0), other.warp(image, 7.0))]:  # fmt: skip
        one, two = (getattr(v, "vectors_mm", getattr(v, "array", v)) for v in (one, two))
        assert np.allclose(one, two, atol=2e-3 * max(1, np.abs(np.asarray(two)).max() / 100))
    assert (field.warp(labels).array == other.warp(labels).array).mean() > 0.999  # but for points midway


def test_the_inverse_on_a_grid_is_that_of_points(turned_grid):
    grid = turned_grid((40, 36, 33), 2.0, (10, -5, 20))
    field = DisplacementField(waves(grid.points_mm()), grid)
    index = np.random.default_rng(0).integers(3, 30, (200, 3))
    there = grid.index_to_world(index)
    truth = field.inverse_points(there)
    np.testing.assert_allclose(field.apply_to_points(truth), there, atol=1e-6)
    back = field.inverse(grid).vectors_mm[:, index[:, 0], index[:, 1], index[:, 2]].T.numpy()
    np.testing.assert_allclose(there + back, truth, atol=1e-3)


def test_the_inverse_is_found_where_the_field_stretches_threefold():
    grid = Grid((60, 8, 8), np.diag([1.0, 2.0, 2.0, 1.0]))
    vectors = torch.zeros(3, *grid.shape)
    vectors[0] = 8 * torch.tanh((grid.points_mm()[0] - 30) / 4)
    field = DisplacementField(vectors, grid)
    assert 2.9 < field.jacobian_determinant().max() < 3
    points = np.stack([np.linspace(15, 45, 61), np.full(61, 7.0), np.full(61, 6.0)], axis=1)
    np.testing.assert_allclose(field.inverse_points(field.apply_to_points(points)), points, atol=1e-6)


def test_the_inverse_is_found_where_the_field_squeezes_to_a_twelfth():
    """Steps as long as what is missed would come nearer by a twelfth each."""
    grid = Grid((60, 8, 8), np.diag([1.0, 2.0, 2.0, 1.0]))
    vectors = torch.zeros(3, *grid.shape)
    vectors[0] = -11 / 12 * (grid.points_mm()[0] - 20).clamp(0, 24)
    field = DisplacementField(vectors, grid)
    points = np.stack([np.linspace(5, 55, 101), np.full(101, 7.0), np.full(101, 6.0)], axis=1)
    np.testing.assert_allclose(field.inverse_points(field.apply_to_points(points)), points, atol=1e-5)
    assert field.inverse(grid).compose(field).vectors_mm[:, :38].abs().max() < 1e-3  # 37 mm is where the last cell is led


def test_vectors_that_do_not_fit_the_grid_are_refused(fixed):
    with pytest.raises(ValueError, match="A field needs vectors"):
        DisplacementField(torch.zeros(3, 14, 12, 11), fixed)
