"""The metrics against second, plain implementations and against cases whose answer is known."""

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from scipy import ndimage

from nnssl_reg.evaluation import metrics
from nnssl_reg.geometry.displacement import DisplacementField
from nnssl_reg.geometry.grid import Grid


def blobs(seed: int, shape=(24, 20, 22), labels: int = 4) -> np.ndarray:
    """Smooth random label maps: 0 and 1 ... labels."""
    rng = np.random.default_rng(seed)
    noise = np.stack([ndimage.gaussian_filter(rng.standard_normal(shape), 3) for _ in range(labels + 1)])
    return noise.argmax(axis=0).astype(np.int16)


def edt_distances(a: np.ndarray, b: np.ndarray, spacing) -> np.ndarray:
    """Surface distances by distance transforms of the whole arrays."""
    surface_a, surface_b = a ^ ndimage.binary_erosion(a), b ^ ndimage.binary_erosion(b)
    to_a, to_b = (ndimage.distance_transform_edt(~s, sampling=spacing) for s in (surface_a, surface_b))
    return np.concatenate([to_b[surface_a], to_a[surface_b]])


def test_dice_equals_simpleitk():
    a, b = blobs(0), blobs(1)
    measure = sitk.LabelOverlapMeasuresImageFilter()
    measure.Execute(sitk.GetImageFromArray(a), sitk.GetImageFromArray(b))
    ours = metrics.dice(a, b, [1, 2, 3, 4])
    assert ours == pytest.approx({label: measure.GetDiceCoefficient(label) for label in (1, 2, 3, 4)}, abs=1e-12)


def test_dice_of_half_overlapping_boxes_is_one_half():
    a, b = np.zeros((2, 8, 8, 8), dtype=np.uint8)
    a[0:4], b[2:6] = 7, 7
    assert metrics.dice(a, b, [7]) == {7: 0.5}


def test_a_lost_label_scores_zero_and_one_in_neither_array_is_nan():
    a, b = np.zeros((2, 4, 4, 4), dtype=np.int32)
    a[0] = 3
    scores = metrics.dice(a, b, [3, 5])
    assert scores[3] == 0 and np.isnan(scores[5])


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int64, np.uint64])
def test_ids_of_any_size_and_sign_give_the_same_scores(dtype):
    a, b = blobs(2, labels=3), blobs(3, labels=3)
    ids = {1: 1, 2: 77, 3: int(min(np.iinfo(dtype).max, 2**40))}
    if np.iinfo(dtype).min < 0:
        ids[1] = -5
    table = np.array([0, *ids.values()]).astype(dtype)
    ours = metrics.dice(table[a], table[b], ids.values())
    plain = metrics.dice(a, b, [1, 2, 3])
    assert {i: ours[ids[i]] for i in ids} == plain
    distances = metrics.surface_distances_mm(table[a], table[b], (1, 1, 1), ids.values())
    assert metrics.hd95_of(distances[ids[2]]) == metrics.hd95_mm(a, b, (1, 1, 1), 2)


def test_labels_on_different_grids_are_refused_with_both_shapes():
    with pytest.raises(ValueError, match=r"\(4, 4, 4\) and \(4, 4, 5\)"):
        metrics.dice(np.zeros((4, 4, 4), dtype=int), np.zeros((4, 4, 5), dtype=int), [1])


def test_surface_distances_equal_distance_transforms_of_the_whole_arrays():
    a, b, spacing = blobs(4), blobs(5), (1.5, 2.0, 0.7)
    for label in (1, 2, 3, 4):
        truth = edt_distances(a == label, b == label, spacing)
        ours = metrics.surface_distances_mm(a, b, spacing, [label])[label]
        np.testing.assert_allclose(np.sort(ours), np.sort(truth), atol=1e-9)
        assert metrics.hd95_mm(a, b, spacing, label) == pytest.approx(np.percentile(truth, 95))
        assert metrics.mean_surface_distance_mm(a, b, spacing, label) == pytest.approx(truth.mean())


def test_surface_distances_equal_brute_force():
    a, b, spacing = blobs(6, (9, 8, 7), 1) == 1, blobs(7, (9, 8, 7), 1) == 1, np.array([1.0, 3.0, 0.5])
    points = [np.argwhere(m & ~ndimage.binary_erosion(m)) * spacing for m in (a, b)]
    between = np.linalg.norm(points[0][:, None] - points[1][None], axis=-1)
    truth = np.concatenate([between.min(axis=1), between.min(axis=0)])
    ours = metrics.surface_distances_mm(a.astype(int), b.astype(int), spacing, [1])[1]
    np.testing.assert_allclose(np.sort(ours), np.sort(truth), atol=1e-9)


def test_two_parallel_plates_are_their_distance_in_millimetres_apart():
    a, b = np.zeros((2, 12, 6, 6), dtype=np.uint8)
    a[2], b[5] = 1, 1
    assert metrics.hd95_mm(a, b, (2.5, 1, 1)) == 7.5
    assert metrics.mean_surface_distance_mm(a, b, (2.5, 1, 1)) == 7.5
    assert metrics.hd95_mm(a, a, (2.5, 1, 1)) == 0


def test_the_distance_of_an_absent_label_is_nan():
    a, b = np.zeros((2, 5, 5, 5), dtype=np.uint8)
    a[2] = 1
    assert np.isnan(metrics.hd95_mm(a, b, (1, 1, 1)))
    assert np.isnan(metrics.mean_surface_distance_mm(b, b, (1, 1, 1)))


def test_each_of_31_labels_gets_its_own_overlap_and_surface():
    shape = (50, 60, 50)
    rng = np.random.default_rng(0)
    axes = [np.linspace(-1, 1, n, dtype=np.float32) for n in shape]
    best, labels = np.full(shape, np.inf, dtype=np.float32), np.zeros(shape, dtype=np.uint8)
    for label, centre in enumerate(rng.uniform(-0.7, 0.7, (31, 3)), 1):
        x, y, z = ((axis - c) ** 2 for axis, c in zip(axes, centre))
        distance = x[:, None, None] + y[:, None] + z
        labels[distance < best] = label
        best = np.minimum(best, distance)
    labels[sum(np.ix_(*(axis**2 for axis in axes))) > 0.9] = 0
    warped = np.roll(labels, (3, 2, -4), axis=(0, 1, 2))
    overlap = metrics.dice(labels, warped, range(1, 32))
    distances = metrics.surface_distances_mm(labels, warped, (1, 1, 1), range(1, 32))
    assert len(overlap) == len(distances) == 31 and min(map(len, distances.values())) > 0


def analytic_jacobian(grid: Grid, bend: float):
    """A field x -> x + bend sin(x / 5), and its determinant 1 + bend / 5 cos(x / 5) by central differences over the spacing."""
    x = grid.points_mm()[0]
    field = DisplacementField(torch.stack([bend * torch.sin(x / 5), torch.zeros_like(x), torch.zeros_like(x)]), grid)
    step = grid.spacing_mm[0]
    determinant = 1 + bend * (torch.sin((x + step) / 5) - torch.sin((x - step) / 5)) / (2 * step)
    return field, determinant.numpy()


def test_sd_log_jacobian_equals_the_published_formula_on_a_known_field():
    field, determinant = analytic_jacobian(Grid((40, 9, 8), np.diag([0.5, 1, 2, 1])), bend=3.0)
    truth = np.std(np.log(np.clip(determinant[2:-2, 2:-2, 2:-2].astype(np.float64), 1e-9, 1e9)))
    assert truth > 0.1
    assert metrics.sd_log_jacobian(field.jacobian_determinant()) == pytest.approx(truth, rel=1e-4)


def test_folding_is_the_share_of_inner_voxels_without_volume():
    jacobian = np.ones((10, 10, 10), dtype=np.float32)
    jacobian[0] = -1  # the border does not count
    assert metrics.folding_percent(jacobian) == 0
    jacobian[5, 5, 5], jacobian[5, 5, 4] = -0.5, 0
    assert metrics.folding_percent(torch.from_numpy(jacobian)) == pytest.approx(100 * 2 / 6**3)


def test_no_motion_has_no_spread_and_no_folding_even_in_thin_images():
    for shape in ((8, 8, 8), (8, 8, 3)):
        jacobian = DisplacementField(torch.zeros(3, *shape), Grid(shape, np.eye(4))).jacobian_determinant()
        assert metrics.sd_log_jacobian(jacobian) == 0 and metrics.folding_percent(jacobian) == 0


def test_landmark_error_is_zero_for_the_true_shift_and_its_length_without_it():
    grid = Grid((8, 8, 8), np.diag([2, -1.5, 3, 1.0]))
    fixed = grid.index_to_world(np.random.default_rng(0).uniform(1, 6, (20, 3)))
    shift = np.array([3.0, -4.0, 12.0])
    field = DisplacementField(torch.tensor(shift).float().view(3, 1, 1, 1).expand(3, 8, 8, 8).clone(), grid)
    still = DisplacementField(torch.zeros(3, 8, 8, 8), grid)
    np.testing.assert_allclose(metrics.tre_mm(fixed, fixed + shift, field), 0, atol=1e-5)
    np.testing.assert_allclose(metrics.tre_mm(fixed, fixed + shift, still), 13)
