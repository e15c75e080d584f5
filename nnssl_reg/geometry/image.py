"""Image and FeatureMap: values on a grid."""

from dataclasses import dataclass

import numpy as np
import torch

from nnssl_reg.geometry.grid import Grid


@dataclass(frozen=True, eq=False)
class Image:
    """Intensities or labels on a grid.

    array: (C, X, Y, Z) numpy, float32 intensities or any integer type for labels. Raises ValueError where they disagree.
    """

    array: np.ndarray
    grid: Grid

    def __post_init__(self):
        if self.array.ndim != 4 or self.array.shape[1:] != self.grid.shape:
            raise ValueError(f"An image needs an array (C, {self.grid.shape}), got shape {self.array.shape}.")
        if self.array.dtype != np.float32 and not np.issubdtype(self.array.dtype, np.integer):
            raise ValueError(f"An image holds float32 intensities or integer labels, got {self.array.dtype}.")

    @property
    def is_label(self) -> bool:
        """Whether the values are labels (integers), to be sampled by nearest neighbour."""
        return np.issubdtype(self.array.dtype, np.integer)

    def cropped(self, box) -> "Image":
        """The voxels of box = [[start, stop], ...], half open, inside the image."""
        slices = tuple(slice(int(start), int(stop)) for start, stop in box)
        return Image(self.array[(slice(None), *slices)], self.grid.cropped(box))

    def canonical(self) -> "Image":
        """The same voxels with the array axes running closest to right, anterior, superior (a view, no resampling)."""
        permutation, flips = self.grid.canonical_axes()
        array = np.transpose(self.array, (0, *(p + 1 for p in permutation)))
        array = array[(slice(None), *(slice(None, None, -1 if flip else 1) for flip in flips))]
        return Image(array, self.grid.canonical())


@dataclass(frozen=True, eq=False)
class FeatureMap:
    """Features on a grid of cells (tokens).

    values: (F, X', Y', Z') torch floating point; grid: centres of the cells. Raises ValueError where they disagree.
    """

    values: torch.Tensor
    grid: Grid

    def __post_init__(self):
        if self.values.ndim != 4 or tuple(self.values.shape[1:]) != self.grid.shape:
            raise ValueError(f"A feature map needs values (F, {self.grid.shape}), got {tuple(self.values.shape)}.")
        if not self.values.is_floating_point():
            raise ValueError(f"Features are floating point, got {self.values.dtype}.")
