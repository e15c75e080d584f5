"""Learn2Reg's variants against the library it calls and its formulas written plainly."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from nnssl_reg.evaluation import learn2reg_metrics, metrics
from nnssl_reg.geometry.displacement import DisplacementField
from nnssl_reg.geometry.grid import Grid

SHAPE = (24, 20, 22)
SAME_SPACE = Grid(SHAPE, np.diag([1.5, -2.0, 2.5, 1.0]))


def blobs(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.stack([ndimage.gaussian_filter(rng.standard_normal(SHAPE), 2.5) for _ in range(4)]).argmax(axis=0)


def wild_field(size_mm: float) -> DisplacementField:
    noise = np.random.default_rng(0).standard_normal((3, *SHAPE))
    smooth = np.stack([ndimage.gaussian_filter(component, 1.5) for component in noise])
    return DisplacementField(torch.as_tensor(size_mm * smooth / smooth.std(), dtype=torch.float32), SAME_SPACE)


def plain_jacobian(displacement_vox: np.ndarray) -> np.ndarray:
    """Determinants (X - 4, Y - 4, Z - 4) of x + u(x), u (3, X, Y, Z) in voxels."""
    gradient = np.stack([np.stack(np.gradient(component)) for component in displacement_vox])  # (3 of u, 3 of x, X, Y, Z)
    matrices = np.moveaxis(gradient, (0, 1), (-2, -1)) + np.eye(3)
    return np.linalg.det(matrices)[2:-2, 2:-2, 2:-2]


@pytest.mark.parametrize("size_mm", [0.5, 4.0])
def test_sdlogj_of_learn2reg_adds_three_and_ours_does_not(size_mm):
    field = wild_field(size_mm)
    truth = plain_jacobian(field.in_voxels(SAME_SPACE).numpy().astype(np.float64))
    ours = field.jacobian_determinant()
    assert learn2reg_metrics.sd_log_jacobian_l2r(ours) == pytest.approx(np.log((truth + 3).clip(1e-9, 1e9)).std(), rel=1e-3)
    assert metrics.sd_log_jacobian(ours) == pytest.approx(np.log(truth.clip(1e-9, 1e9)).std(), rel=1e-3)
    assert metrics.folding_percent(ours) == pytest.approx(100 * (truth <= 0).mean(), abs=0.02)
    assert (metrics.folding_percent(ours) > 1) == (size_mm > 1)


@pytest.fixture
def surface_distance(monkeypatch):
    """The library that Learn2Reg calls, with the names that newer numpy and scipy no longer have."""
    library = pytest.importorskip("surface_distance")
    monkeypatch.setattr(np, "Inf", np.inf, raising=False)
    monkeypatch.setattr(ndimage, "filters", ndimage, raising=False)
    monkeypatch.setattr(ndimage, "morphology", ndimage, raising=False)
    return library


def test_hd95_of_learn2reg_equals_the_library_it_calls(surface_distance):
    a, b = blobs(0), blobs(1)
    a[:, :, 5:9][a[:, :, 5:9] == 3] = 0
    for label, ours in learn2reg_metrics.hd95_l2r(a, b, [1, 2, 3]).items():
        distances = surface_distance.compute_surface_distances(a == label, b == label, np.ones(3))
        assert ours == surface_distance.compute_robust_hausdorff(distances, 95.0) > 0


def test_the_area_of_every_surface_element_is_that_of_the_library(surface_distance):
    tables = pytest.importorskip("surface_distance.lookup_tables")
    areas, kernel = tables.create_table_neighbour_code_to_surface_area([1, 1, 1]), tables.ENCODE_NEIGHBOURHOOD_3D_KERNEL
    ours = [learn2reg_metrics.surface_element_area((code & kernel) > 0) for code in range(256)]
    np.testing.assert_allclose(ours, areas, atol=1e-12)


def test_hd95_of_learn2reg_counts_voxels_and_knows_absent_and_lost_labels():
    a, b = np.zeros((2, 12, 8, 8), dtype=np.uint8)
    a[2:5, 2:6, 2:6], b[5:8, 2:6, 2:6] = 1, 1
    a[10, 2:4, 2:4] = 2
    found = learn2reg_metrics.hd95_l2r(a, b, [1, 2, 3])
    assert found[1] == 3 and np.isinf(found[2]) and np.isnan(found[3])


def test_dice_of_learn2reg_is_ours():
    a, b = blobs(2), blobs(3)
    plain = {i: 2 * ((a == i) & (b == i)).sum() / ((a == i).sum() + (b == i).sum()) for i in (1, 2, 3)}
    assert metrics.dice(a, b, [1, 2, 3]) == pytest.approx(plain)


def test_landmark_errors_of_learn2reg_are_ours_but_for_the_interpolation():
    field, rng = wild_field(3.0), np.random.default_rng(1)
    at_voxels = rng.integers(3, 17, (30, 3)).astype(float)
    between, moving = at_voxels + 0.5, rng.uniform(3, 17, (30, 3))
    displacement = field.in_voxels(SAME_SPACE).numpy()
    shift = np.stack([ndimage.map_coordinates(component, between.T) for component in displacement], axis=1)
    plain = np.linalg.norm((between + shift - moving) * (1.5, 2.0, 2.5), axis=1)
    moving_mm = SAME_SPACE.index_to_world(moving)
    theirs = learn2reg_metrics.tre_l2r(SAME_SPACE.index_to_world(between), moving_mm, field, SAME_SPACE)
    np.testing.assert_allclose(theirs, plain, atol=1e-4)
    points = SAME_SPACE.index_to_world(at_voxels)
    theirs = learn2reg_metrics.tre_l2r(points, moving_mm, field, SAME_SPACE)
    np.testing.assert_allclose(theirs, metrics.tre_mm(points, moving_mm, field), atol=1e-3)
