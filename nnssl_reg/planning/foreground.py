"""Foreground: which voxels belong to the body, found cheaply enough to ask for every image."""

import numpy as np
from scipy import ndimage

CT_BODY_ABOVE_HU = -500.0  # halfway between air and water, so that skin and fat are body and lung and table foam are not
CLIPPED_SHARE = 0.2  # share of voxels at the very minimum from which on the background was blanked or clipped at the source
_COARSE_EDGE = 96  # voxels per axis of the thinned-out mask on which components are labelled


def foreground_threshold(array: np.ndarray, channel_name: str) -> float:
    """The intensity above which a voxel of this image (any shape, finite) belongs to the body, by the image's own values.

    CT with air: -500 HU. A background blanked or clipped to one value: just above that value. Everything else: 10 % of the
    way from the 2nd to the 98th percentile (the brain extraction rule of Smith, Human Brain Mapping 2002).
    """
    values = array[tuple(slice(None, None, max(1, n // _COARSE_EDGE)) for n in array.shape)]
    lowest = float(array.min())
    p2, p98 = (float(v) for v in np.percentile(values, (2, 98)))
    if is_ct(channel_name) and lowest < CT_BODY_ABOVE_HU:
        return CT_BODY_ABOVE_HU
    if float((values <= lowest).mean()) > CLIPPED_SHARE:
        return lowest + 0.02 * (p98 - lowest)  # above the ringing that compression and interpolation leave
    if is_ct(channel_name):
        return lowest - 1.0  # a crop inside the body: all of it is tissue
    return p2 + 0.1 * (p98 - p2)


def foreground_mask(array: np.ndarray, channel_name: str, above: float | None = None) -> np.ndarray:
    """The body in an image (X, Y, Z): a bool array of that shape, empty only for a constant image.

    above: threshold in the image's units; None: the image's own, see foreground_threshold. Specks and thin structures (noise,
    the table) that hang on to nothing large are left out.
    """
    threshold = foreground_threshold(array, channel_name) if above is None else above
    mask = array > threshold
    if not mask.any():
        return array > array.min()  # the plan's threshold belongs to other images: better all that is not the background
    steps = tuple(max(1, n // _COARSE_EDGE) for n in array.shape)
    large = _large_components(mask[tuple(slice(None, None, s) for s in steps)])
    for axis, (step, size) in enumerate(zip(steps, array.shape)):
        large = np.take(large, np.minimum(np.arange(size) // step, large.shape[axis] - 1), axis=axis)
    return mask & large if (mask & large).any() else mask


def is_ct(channel_name: str) -> bool:
    """Whether a channel name asks for Hounsfield units, as in nnU-Net: the name is CT."""
    return channel_name.strip().lower() == "ct"


def _large_components(mask: np.ndarray) -> np.ndarray:
    """Components that survive an opening and hold at least a tenth of the largest one's voxels, grown back by two voxels."""
    element = np.ones([1 if n < 3 else 3 for n in mask.shape], dtype=bool)
    opened = ndimage.binary_erosion(mask, element, border_value=1)
    labels, count = ndimage.label(opened)
    if count == 0:
        return np.ones_like(mask)
    sizes = np.bincount(labels.ravel(), minlength=count + 1)
    sizes[0] = 0
    return ndimage.binary_dilation((sizes >= 0.1 * sizes.max())[labels], element, iterations=2)
