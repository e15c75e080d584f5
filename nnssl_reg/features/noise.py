"""How noisy an image is, and how far hand-made features should see it smoothed."""

import math
from collections.abc import Callable

import numpy as np
import torch

NOISY = 0.06  # of an image's range: less is best left alone, however fine the image
LEFT = 0.02  # of the range: the noise that smoothing leaves
STEP_MM = 0.25  # so that an image is seen alike in pairs with others that are about as noisy
SAMPLE = 200_000  # voxels of which the range is taken
WINDOW = 96  # voxels of the middle of each axis that are measured


def noise_share(image: np.ndarray, contrast: Callable[[torch.Tensor], torch.Tensor] | None = None) -> float:
    """Standard deviation of the noise of an image (X, Y, Z), relative to its range (percentiles 1 to 99); 0 of a flat one.

    From the median of second differences along all axes at once, where the middle of the image is brighter than its mean:
    edges hardly answer to all of them, and neither air nor a background that was set to 0 counts (cf. Immerkaer, CVIU 1996).
    contrast: with which the image is seen.
    """
    sample = image.reshape(-1)[:: max(1, image.size // SAMPLE)]
    middle = image[tuple(slice(max(0, (n - WINDOW) // 2), (n + WINDOW) // 2) for n in image.shape)]
    sample, middle = (torch.from_numpy(np.array(values, np.float32)) for values in (sample, middle))
    sample, middle = ((values if contrast is None else contrast(values)).numpy() for values in (sample, middle))
    low, high = np.percentile(sample, (1, 99))
    axes = [axis for axis in range(3) if middle.shape[axis] >= 3]
    if high <= low or not axes:
        return 0.0
    differences, inner = middle, [slice(None)] * 3
    for axis in axes:
        differences, inner[axis] = np.diff(differences, 2, axis=axis), slice(1, -1)
    bright = np.abs(differences[middle[tuple(inner)] > middle.mean()])
    deviation = np.median(bright) / 0.6745 / 6 ** (len(axes) / 2) if bright.size else 0.0  # each adds up six variances
    return float(deviation / (high - low))


def smoothing_mm(share: float, spacing_mm, most_mm: float) -> float:
    """Standard deviation in mm of the Gaussian that leaves LEFT of a noise of `share`, at most about most_mm; 0 below NOISY."""
    if share < NOISY:
        return 0.0
    for steps in range(1, int(most_mm / STEP_MM)):
        sigma = steps * STEP_MM
        if share * math.prod(min(1.0, (2 * math.sqrt(math.pi) * sigma / s) ** -0.5) for s in spacing_mm) <= LEFT:
            return sigma
    return max(STEP_MM, most_mm // STEP_MM * STEP_MM)
