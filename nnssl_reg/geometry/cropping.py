"""Boxes around what matters: find the foreground's box, crop to it with a margin."""

import numpy as np
from acvl_utils.cropping_and_padding.bounding_boxes import get_bbox_from_mask, pad_bbox


def foreground_box(mask: np.ndarray, margin_vox: int | list[int] = 0) -> list[list[int]]:
    """The smallest box [[start, stop], ...] (half open) around the true voxels of mask (X, Y, Z), plus a margin inside it.

    margin_vox: one number, or one per axis.

    Raises ValueError for an empty mask.
    """
    if not mask.any():
        raise ValueError(f"The mask of shape {mask.shape} has no foreground voxel, so there is no box around it.")
    box = get_bbox_from_mask(mask)
    return [[int(start), int(stop)] for start, stop in pad_bbox(box, margin_vox, mask.shape)]
