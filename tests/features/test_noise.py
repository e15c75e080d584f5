"""The measure of noise against noise that is known, and what smoothing leaves of it."""

import numpy as np
import pytest
import torch

from nnssl_reg.evaluation.phantoms import make_phantom
from nnssl_reg.features.noise import LEFT, NOISY, noise_share, smoothing_mm
from nnssl_reg.features.soft_tissue import soft_tissue_contrast
from nnssl_reg.geometry.grid import Grid
from nnssl_reg.geometry.sampling import smooth_gaussian

SPACING = (1.5, 1.5, 4.0)


@pytest.fixture(scope="module")
def smooth() -> np.ndarray:
    """An image without noise, (X, Y, Z) in 0..100."""
    x, y, z = np.meshgrid(*(np.linspace(0, 2 * np.pi, n) for n in (60, 50, 30)), indexing="ij")
    return (50 + 50 * np.sin(x) * np.sin(y) * np.cos(z)).astype(np.float32)


@pytest.mark.parametrize("share", [0.02, 0.05, 0.15])
def test_known_noise_is_measured_relative_to_the_range(smooth, share):
    low, high = np.percentile(smooth, (1, 99))
    noisy = smooth + np.random.default_rng(0).normal(0, share * (high - low), smooth.shape).astype(np.float32)
    widened = np.percentile(noisy, 99) - np.percentile(noisy, 1)
    assert noise_share(noisy) == pytest.approx(share * (high - low) / widened, rel=0.06)
    assert noise_share(3 * noisy - 500) == pytest.approx(noise_share(noisy), rel=1e-3)
    assert noise_share(noisy.transpose(2, 0, 1)[::-1]) == pytest.approx(noise_share(noisy), rel=0.02)


def test_a_background_of_zeros_hides_no_noise(smooth):
    noisy = smooth + np.random.default_rng(0).normal(0, 10, smooth.shape).astype(np.float32)
    cut = np.where(smooth > 60, noisy, 0)
    assert (cut == 0).mean() > 0.5 and noise_share(cut) > 0.7 * noise_share(noisy)


def test_flat_thin_and_smooth_images_have_none(smooth):
    assert noise_share(np.full((8, 8, 8), 7, np.float32)) == 0
    assert noise_share(np.zeros((2, 2, 1), np.float32)) == noise_share(np.eye(2, dtype=np.float32)[:, :, None]) == 0
    assert noise_share(smooth) < 0.001


def test_one_slice_is_measured_within_it(smooth):
    slice_ = smooth[:, :, 10:11] + np.random.default_rng(0).normal(0, 10, (60, 50, 1)).astype(np.float32)
    assert noise_share(slice_) == pytest.approx(10 / np.ptp(np.percentile(slice_, (1, 99))), rel=0.15)


@pytest.mark.parametrize("modality", ["CT", "MR"])
def test_organs_and_their_edges_are_not_noise(modality):
    affine = np.diag([4.0, 4.0, 5.0, 1.0])
    affine[:3, 3] = -118, -98, -97.5
    grid = Grid((60, 50, 40), affine)
    image = make_phantom(np.random.default_rng(3), grid, modality).image.array[0]
    assert noise_share(image, soft_tissue_contrast if modality == "CT" else None) < NOISY


def test_smoothing_leaves_what_it_says(smooth):
    noise = np.random.default_rng(1).normal(0, 1, (1, 60, 60, 40)).astype(np.float32)
    for share in (0.07, 0.1, 0.15):
        sigma = smoothing_mm(share, SPACING, most_mm=10)
        left = share * float(smooth_gaussian(torch.from_numpy(noise), [sigma / s for s in SPACING]).std())
        assert 0.6 * LEFT < left < 1.2 * LEFT, (share, sigma, left)


def test_little_noise_is_left_alone_and_smoothing_has_its_bound():
    assert smoothing_mm(0.99 * NOISY, SPACING, 5) == 0 and smoothing_mm(NOISY, SPACING, 5) > 0
    assert smoothing_mm(0.5, SPACING, 2.1) == 2 and smoothing_mm(0.5, SPACING, 0.1) == 0.25
