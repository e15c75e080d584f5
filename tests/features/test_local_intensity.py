"""Local intensity tells bright from dark, whatever the image's scale, and agrees between images of one contrast only."""

import numpy as np
import pytest
import torch
from scipy.ndimage import uniform_filter

from nnssl_reg.features.local_intensity import (
    AGREES,
    FLAT,
    RADIUS,
    contrast_agreement,
    local_intensity,
    voxel_intensity,
)
from nnssl_reg.features.mind import mind_features
from nnssl_reg.geometry.displacement import DisplacementField
from nnssl_reg.geometry.grid import Grid
from nnssl_reg.geometry.image import FeatureMap

STRIDE = (2, 2, 2)
GRID = Grid((36, 30, 24), np.diag([2.0, 2.0, 3.0, 1.0]))


def blobs(seed: int, shape=GRID.shape) -> torch.Tensor:
    noise = np.random.default_rng(seed).standard_normal(shape)
    return torch.from_numpy(100 * uniform_filter(noise, 5)).float()


def moved(vector_mm) -> DisplacementField:
    return DisplacementField(torch.tensor(vector_mm, dtype=torch.float32).view(3, 1, 1, 1).expand(3, *GRID.shape), GRID)


@pytest.mark.parametrize("stride", [(2, 2, 2), (1, 1, 1), (4, 2, 1)])
def test_cells_have_the_values_of_the_formula(stride):
    image = blobs(0).double().numpy()
    cells = image.reshape(*(v for n, s in zip(GRID.shape, stride) for v in (n // s, s)))
    mean, squares = cells.mean((1, 3, 5)), (cells**2).mean((1, 3, 5))
    box = [2 * round(RADIUS / s) + 1 for s in stride]
    around = uniform_filter(mean, box, mode="nearest")
    variance = uniform_filter(squares, box, mode="nearest") - around**2
    expected = (mean - around) / np.sqrt(variance + FLAT * variance.mean())
    found = local_intensity(torch.from_numpy(image), GRID, stride)
    assert found.grid == GRID.coarsened(stride)
    np.testing.assert_allclose(found.values[0].numpy(), expected, atol=2e-5)


def test_scale_and_offset_drop_out_and_the_opposite_contrast_is_the_negative():
    image = blobs(1)
    plain = local_intensity(image, GRID, (2, 2, 2)).values
    torch.testing.assert_close(local_intensity(0.01 * image - 3, GRID, (2, 2, 2)).values, plain, atol=1e-4, rtol=0)
    torch.testing.assert_close(local_intensity(-5 * image + 3, GRID, (2, 2, 2)).values, -plain, atol=1e-4, rtol=0)
    torch.testing.assert_close(local_intensity(image + 2**14, GRID, (2, 2, 2)).values, plain, atol=5e-3, rtol=0)


def test_voxels_that_are_cells_have_their_local_intensity_and_smaller_ones_vary_about_it():
    image, own = blobs(3), (1, 1, 1)
    torch.testing.assert_close(voxel_intensity(image, GRID, own).values, local_intensity(image, GRID, own).values)
    voxels, cells = voxel_intensity(image, GRID, STRIDE), local_intensity(image, GRID, STRIDE)
    assert voxels.grid == GRID and voxels.values.shape == (1, *GRID.shape)
    means = torch.nn.functional.avg_pool3d(voxels.values, 2)
    assert (means - cells.values).abs().mean() < 0.02 and (voxels.values - local_intensity(image, GRID, own).values).std() < 0.1
    torch.testing.assert_close(voxel_intensity(-5 * image + 3, GRID, STRIDE).values, -voxels.values, atol=1e-4, rtol=0)


def test_wider_surroundings_leave_more_of_large_shapes_and_as_little_of_how_an_image_is_scaled():
    large = torch.zeros(GRID.shape)
    large[: GRID.shape[0] // 2] = 1.0
    near, wide = (voxel_intensity(large, GRID, STRIDE, radius).values[0] for radius in (2, 16))
    inside = GRID.shape[0] // 4  # far from the edge, where near surroundings are alike
    assert near[inside].abs().max() < 0.05 < 0.5 < wide[inside].min()
    again = voxel_intensity(3 * large - 7, GRID, STRIDE, 16).values[0]
    torch.testing.assert_close(again, wide, atol=1e-4, rtol=0)


def test_a_flat_image_is_exactly_0_and_a_thin_one_has_a_cell():
    assert not local_intensity(torch.full(GRID.shape, 7.0), GRID, (2, 2, 2)).values.any()
    assert not voxel_intensity(torch.full(GRID.shape, 7.0), GRID, (2, 2, 2)).values.any()
    thin = Grid((30, 1, 20), np.eye(4))
    found = local_intensity(blobs(2, thin.shape), thin, (2, 2, 2))
    assert found.values.shape == (1, 15, 1, 10) and found.values.isfinite().all() and found.values.any()
    assert voxel_intensity(blobs(2, thin.shape), thin, (2, 2, 2)).values.isfinite().all()


@pytest.fixture(scope="module")
def shifted():
    """Local intensity and MIND of an image, and of the same image 6 voxels further along the first axis."""
    whole = blobs(3, (42, 30, 24))
    return [(local_intensity(part, GRID, STRIDE), mind_features(part, GRID, ((1, 2),), 0.1, STRIDE), part)
            for part in (whole[6:], whole[:36])]  # fmt: skip


def agreement(fixed, moving, vector_mm) -> float:
    return contrast_agreement((fixed[0], moving[0]), (fixed[1], moving[1]), moved(vector_mm))


def test_one_contrast_agrees_as_well_as_mind_where_it_is_matched(shifted):
    assert agreement(*shifted, (12.0, 0.0, 0.0)) > AGREES  # 6 voxels of 2 mm


def test_the_opposite_contrast_does_not_agree_and_neither_does_one_folded_by_a_curve(shifted):
    fixed, (_, _, image) = shifted
    for change in (lambda v: -3 * v, lambda v: v.abs(), lambda v: torch.cos(v / 4)):
        changed = change(image)
        moving = local_intensity(changed, GRID, STRIDE), mind_features(changed, GRID, ((1, 2),), 0.1, STRIDE)
        assert agreement(fixed, moving, (12.0, 0.0, 0.0)) < AGREES / 2


def test_the_agreement_is_the_ratio_of_both_signals_to_their_noise(shifted):
    fixed, moving = shifted
    still = moved((0.0, 0.0, 0.0))
    noisy = FeatureMap(fixed[0].values + 0.7 * torch.randn(fixed[0].values.shape, generator=torch.Generator().manual_seed(0)),
                       fixed[0].grid)  # fmt: skip
    r = np.corrcoef(fixed[0].values.flatten(), noisy.values.flatten())[0, 1]
    structures = [m.values.double().numpy() - m.values.double().numpy().mean(0) for m in (fixed[1], moving[1])]
    s = (structures[0] * structures[1]).sum() / np.sqrt((structures[0] ** 2).sum() * (structures[1] ** 2).sum())
    found = contrast_agreement((fixed[0], noisy), (fixed[1], moving[1]), still)
    assert s > 0 and found == pytest.approx(r / (1 - r) / (s / (1 - s)), rel=0.02)  # the means are nearly 0


def test_images_that_do_not_meet_and_flat_ones_agree_in_nothing(shifted):
    fixed, _ = shifted
    flat = (
        local_intensity(torch.zeros(GRID.shape), GRID, STRIDE),
        mind_features(torch.zeros(GRID.shape), GRID, ((1, 2),), 0.1, STRIDE),
    )
    assert contrast_agreement((fixed[0],) * 2, (flat[1],) * 2, moved((0.0, 0.0, 0.0))) == 0  # where MIND has no say
    assert agreement(fixed, fixed, (1000.0, 0.0, 0.0)) == 0 == agreement(fixed, flat, (0.0, 0.0, 0.0))
