"""Image and FeatureMap: values stay at their world positions, and what does not fit its grid is refused."""

import numpy as np
import pytest
import torch

from nnssl_reg.geometry.grid import Grid
from nnssl_reg.geometry.image import FeatureMap, Image

FLIPPED = Grid((5, 6, 7), np.array([[0, 0.2, -3.0, 40], [0.1, -1.5, 0, 10], [1.0, 0, 0.1, -20], [0, 0, 0, 1]]))


def position_image(grid: Grid) -> Image:
    """Each voxel holds its own world position in three channels."""
    return Image(grid.points_mm().numpy(), grid)


def test_canonical_axes_keep_every_voxel_at_its_place():
    image = position_image(FLIPPED).canonical()
    assert image.grid.shape == (7, 6, 5) and (np.diag(image.grid.affine)[:3] > 0).all()
    assert np.allclose(image.array, image.grid.points_mm().numpy(), atol=1e-4)


def test_a_crop_keeps_every_voxel_at_its_place():
    image = position_image(FLIPPED).cropped([[1, 4], [2, 6], [0, 3]])
    assert image.array.shape == (3, 3, 4, 3)
    assert np.allclose(image.array, image.grid.points_mm().numpy(), atol=1e-4)


def test_integers_are_labels_and_float32_is_not():
    assert Image(np.zeros((1, 5, 6, 7), np.uint16), FLIPPED).is_label
    assert not Image(np.zeros((1, 5, 6, 7), np.float32), FLIPPED).is_label


@pytest.mark.parametrize("array", [np.zeros((5, 6, 7), np.float32), np.zeros((1, 7, 6, 5), np.float32), np.zeros((1, 5, 6, 7))])
def test_an_array_that_does_not_fit_is_refused(array):
    with pytest.raises(ValueError, match="An image"):
        Image(array, FLIPPED)


@pytest.mark.parametrize("values", [torch.zeros(5, 6, 7), torch.zeros(2, 5, 6, 8), torch.zeros(2, 5, 6, 7, dtype=torch.int32)])
def test_features_that_do_not_fit_are_refused(values):
    with pytest.raises(ValueError, match="feature map needs|Features are"):
        FeatureMap(values, FLIPPED)
