"""Tissue context counts which intensities lie around a place."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from nnssl_reg.features.tissue_context import HOUNSFIELD_EDGES, QUANTILES, WIDTHS, tissue_context
from nnssl_reg.geometry.grid import Grid

STRIDE = (2, 2, 2)
GRID = Grid((36, 30, 24), np.diag([2.0, 2.0, 2.0, 1.0]))
RANGES = len(HOUNSFIELD_EDGES) + 1


def patches(seed: int = 0) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    coarse = rng.uniform(-300, 300, (6, 5, 4))
    return torch.from_numpy(coarse.repeat(6, 0).repeat(6, 1).repeat(6, 2)).float()


def test_shares_of_each_width_are_a_histogram():
    for ct, ranges in ((True, RANGES), (False, len(QUANTILES) + 1)):
        context = tissue_context(patches(), GRID, STRIDE, ct)
        assert context.grid == GRID.coarsened(STRIDE) and len(context.values) == ranges * len(WIDTHS)
        assert context.values.min() >= 0
        sums = context.values.reshape(len(WIDTHS), ranges, -1).sum(1)
        torch.testing.assert_close(sums, torch.ones_like(sums), atol=1e-4, rtol=0)


def test_they_are_smoothed_shares_of_hounsfield_ranges():
    image = patches().numpy()
    context = tissue_context(torch.from_numpy(image), GRID, STRIDE, ct=True).values.numpy()
    for n, width in enumerate(WIDTHS):
        inside = (image >= HOUNSFIELD_EDGES[1]) & (image < HOUNSFIELD_EDGES[2])
        share = inside.reshape(18, 2, 15, 2, 12, 2).mean((1, 3, 5))
        expected = gaussian_filter(share, width, mode="nearest", truncate=5)
        middle = (slice(6, -6), slice(5, -5), slice(4, -4))  # three short filters one after the other meet the edges otherwise
        np.testing.assert_allclose(context[n * RANGES + 2][middle], expected[middle], atol=0.02)


def test_without_units_scale_and_offset_drop_out():
    image = patches(1)
    plain = tissue_context(image, GRID, STRIDE, ct=False).values
    torch.testing.assert_close(tissue_context(0.01 * image + 7, GRID, STRIDE, ct=False).values, plain, atol=0.05, rtol=0)
    assert not torch.allclose(tissue_context(-image, GRID, STRIDE, ct=False).values, plain, atol=0.05)


@pytest.mark.parametrize("ct", [True, False])
def test_a_flat_image_and_one_smaller_than_a_cell_have_it(ct):
    flat = tissue_context(torch.full(GRID.shape, 3.0), GRID, STRIDE, ct).values
    assert torch.isfinite(flat).all() and torch.allclose(flat, flat[:, :1, :1, :1].expand_as(flat), atol=1e-4)
    thin = tissue_context(patches()[:, :, :1], Grid((36, 30, 1), GRID.affine), STRIDE, ct)
    assert thin.values.shape[1:] == (18, 15, 1) and torch.isfinite(thin.values).all()
