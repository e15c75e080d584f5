"""Truths about the foreground: the body is found, nothing else, and crops inside the body stay whole."""

import numpy as np

from nnssl_reg.geometry.cropping import foreground_box
from nnssl_reg.planning.foreground import foreground_mask, foreground_threshold, is_ct


def ball(shape=(40, 44, 36), radius=12.0) -> np.ndarray:
    axes = np.meshgrid(*[np.arange(n) - (n - 1) / 2 for n in shape], indexing="ij")
    return sum(a**2 for a in axes) < radius**2


def test_the_body_of_a_ct_is_what_is_denser_than_halfway_between_air_and_water():
    body = ball()
    image = np.where(body, 40.0, -1000.0).astype(np.float32)
    assert np.array_equal(foreground_mask(image, "CT"), body)


def test_a_ct_clipped_at_fat_still_has_its_air_left_out():
    body = ball()
    noise = np.random.default_rng(0).normal(20, 30, body.shape)
    image = np.where(body, np.clip(noise, -110, 275), -125.0).astype(np.float32)
    assert (foreground_mask(image, "CT") == body).mean() > 0.995


def test_the_thin_table_under_a_patient_is_not_body():
    body = ball()
    image = np.where(body, 40.0, -1000.0).astype(np.float32)
    image[:, 1, :] = 100.0  # one voxel thick
    assert np.array_equal(foreground_mask(image, "CT"), body)


def test_specks_of_noise_do_not_widen_the_box():
    body = ball()
    rng = np.random.default_rng(1)
    image = np.where(body, 200 + rng.normal(0, 20, body.shape), np.abs(rng.normal(0, 3, body.shape))).astype(np.float32)
    image[0, 0, 0] = image[-1, 3, 5] = 400.0
    assert foreground_box(foreground_mask(image, "MR")) == foreground_box(body)


def test_a_skull_stripped_brain_is_what_is_not_zero():
    body = ball()
    image = np.where(body, np.random.default_rng(2).uniform(100, 1500, body.shape), 0).astype(np.float32)
    assert np.array_equal(foreground_mask(image, "MR"), body)


def test_a_crop_inside_the_body_is_not_cropped_to_bits():
    rng = np.random.default_rng(3)
    tissue = rng.uniform(5, 100, (35, 50, 36)).astype(np.float32)
    assert foreground_box(foreground_mask(tissue, "MR")) == [[0, 35], [0, 50], [0, 36]]
    soft = rng.uniform(-80, 120, (35, 50, 36)).astype(np.float32)
    assert foreground_mask(soft, "CT").all()


def test_the_threshold_of_an_mr_scales_with_its_intensities():
    image = np.random.default_rng(4).gamma(2, 50, (20, 20, 20)).astype(np.float32)
    assert np.isclose(foreground_threshold(7 * image, "MR"), 7 * foreground_threshold(image, "MR"), rtol=1e-5)


def test_a_given_threshold_is_used_and_one_of_another_unit_does_not_lose_the_body():
    body = ball()
    image = np.where(body, 40.0, -1000.0).astype(np.float32)
    assert np.array_equal(foreground_mask(image, "CT", above=-500), body)
    assert np.array_equal(foreground_mask(image, "CT", above=5000), body)


def test_a_constant_image_has_no_foreground_and_a_single_slice_has_one():
    assert not foreground_mask(np.zeros((5, 5, 5), np.float32), "MR").any()
    slice_ = np.where(ball((40, 40, 3), 15)[:, :, 1:2], 50.0, -1000.0).astype(np.float32)
    assert foreground_mask(slice_, "CT").any()


def test_ct_is_recognised_by_its_name_alone():
    assert is_ct("CT") and is_ct(" ct ")
    assert not is_ct("MR") and not is_ct("CTA-like")
