"""Local intensity tells bright from dark, whatever the image's scale, and agrees between images of one contrast only."""

import numpy as np
import pytest
import torch
from scipy.ndimage import uniform_filter

from nnssl_reg.features.local_intensity import AGREES, FLAT, RADIUS, contrast_agreement, local_intensity
from nnssl_reg.geometry.displacement import DisplacementField
from nnssl_reg.geometry.grid import Grid

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


def test_a_flat_image_is_exactly_0_and_a_thin_one_has_a_cell():
    assert not local_intensity(torch.full(GRID.shape, 7.0), GRID, (2, 2, 2)).values.any()
    thin = Grid((30, 1, 20), np.eye(4))
    found = local_intensity(blobs(2, thin.shape), thin, (2, 2, 2))
    assert found.values.shape == (1, 15, 1, 10) and found.values.isfinite().all() and found.values.any()


def test_one_contrast_agrees_where_it_is_matched_and_the_opposite_or_another_one_does_not():
    whole = blobs(3, (42, 30, 24))
    fixed, moving = (local_intensity(part, GRID, (2, 2, 2)) for part in (whole[6:], whole[:36]))
    right = contrast_agreement(fixed, moving, moved((12.0, 0.0, 0.0)))  # 6 voxels of 2 mm
    assert right > 0.9 and contrast_agreement(fixed, moving, moved((0.0, 0.0, 0.0))) < AGREES
    opposite = local_intensity(-3 * whole[:36], GRID, (2, 2, 2))
    assert contrast_agreement(fixed, opposite, moved((12.0, 0.0, 0.0))) == pytest.approx(-right, abs=1e-3)
    other = local_intensity(blobs(4), GRID, (2, 2, 2))
    assert abs(contrast_agreement(fixed, other, moved((0.0, 0.0, 0.0)))) < AGREES


def test_images_that_do_not_meet_and_flat_ones_agree_in_nothing():
    fixed, flat = local_intensity(blobs(5), GRID, (2, 2, 2)), local_intensity(torch.zeros(GRID.shape), GRID, (2, 2, 2))
    assert contrast_agreement(fixed, fixed, moved((1000.0, 0.0, 0.0))) == 0
    assert contrast_agreement(fixed, flat, moved((0.0, 0.0, 0.0))) == 0
