"""Modality: intensities tell Hounsfield units from other intensities."""

import numpy as np

from nnssl_reg.geometry.grid import Grid
from nnssl_reg.geometry.image import Image
from nnssl_reg.imageio.modality import guess_modality

GRID = Grid((12, 11, 10), np.eye(4))


def image_of(array: np.ndarray) -> Image:
    return Image(array.reshape(1, *GRID.shape).astype(np.float32), GRID)


def ct() -> Image:
    """Air beside soft tissue in HU."""
    array = np.random.default_rng(0).normal(40, 20, GRID.shape)
    array[:4] = -1000
    return image_of(array)


def mr() -> Image:
    return image_of(np.random.default_rng(0).uniform(0, 900, GRID.shape))


def test_modality_follows_from_intensities():
    assert guess_modality(ct()) == "CT" and guess_modality(mr()) == "MR"


def test_ct_clipped_to_an_abdominal_window_is_still_ct():
    assert guess_modality(image_of(np.clip(ct().array, -125, 275))) == "CT"


def test_a_single_outlier_makes_no_ct():
    array = mr().array.copy()
    array[0, 0, 0, 0] = -2000
    assert guess_modality(image_of(array)) == "MR"
