"""The box around the foreground: tight, with a margin that stays inside, and an error where there is none."""

import numpy as np
import pytest

from nnssl_reg.geometry.cropping import foreground_box


@pytest.fixture
def mask() -> np.ndarray:
    mask = np.zeros((10, 9, 8), bool)
    mask[2:5, 3, 0:6] = mask[7, 4, 2] = True
    return mask


def test_the_box_holds_all_foreground_and_is_tight(mask):
    assert foreground_box(mask) == [[2, 8], [3, 5], [0, 6]]
    box = tuple(slice(start, stop) for start, stop in foreground_box(mask))
    assert mask[box].sum() == mask.sum()


def test_a_margin_grows_the_box_but_not_beyond_the_image(mask):
    assert foreground_box(mask, 1) == [[1, 9], [2, 6], [0, 7]]
    assert foreground_box(mask, [0, 5, 3]) == [[2, 8], [0, 9], [0, 8]]


def test_one_voxel_and_everything_are_foreground_too():
    assert foreground_box(np.ones((2, 3, 4), bool)) == [[0, 2], [0, 3], [0, 4]]
    single = np.zeros((5, 5, 5), bool)
    single[4, 0, 2] = True
    assert foreground_box(single) == [[4, 5], [0, 1], [2, 3]]


def test_no_foreground_is_said(mask):
    with pytest.raises(ValueError, match="no foreground"):
        foreground_box(np.zeros_like(mask))
