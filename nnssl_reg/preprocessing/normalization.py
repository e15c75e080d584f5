"""Normalisation: intensities of one image to about -1..1, by the channel's scheme."""

from collections.abc import Callable

import numpy as np

from nnssl_reg.planning.plans import ChannelPlan

_VOXELS = 500_000  # of the foreground, evenly spread, that percentiles are computed from


def ct_bounds(foreground: np.ndarray, channel: ChannelPlan) -> tuple[float, float]:
    """Hounsfield units mean the same in every image: the plan's bounds."""
    return channel.lower, channel.upper


def mr_bounds(foreground: np.ndarray, channel: ChannelPlan) -> tuple[float, float]:
    """MR intensities have no unit: this image's 1st and 99th percentile over the foreground (N,)."""
    sample = foreground[:: max(1, foreground.size // _VOXELS)]
    lower, upper = np.percentile(sample, (1, 99))
    return float(lower), float(upper)


Bounds = Callable[[np.ndarray, ChannelPlan], tuple[float, float]]
NORMALIZATIONS: dict[str, Bounds] = {"ct": ct_bounds, "mr": mr_bounds}


def bounds_for(foreground: np.ndarray, channel: ChannelPlan) -> tuple[float, float]:
    """The intensities that become -1 and 1. Raises ValueError for an unknown scheme or bounds that are none."""
    if channel.normalization not in NORMALIZATIONS:
        known = ", ".join(NORMALIZATIONS)
        raise ValueError(f"Channel {channel.name} asks for the normalization '{channel.normalization}'; known are {known}.")
    bounds = NORMALIZATIONS[channel.normalization](foreground, channel)
    if any(b is None for b in bounds) or bounds[1] < bounds[0]:
        raise ValueError(f"Channel {channel.name} with the normalization '{channel.normalization}' needs lower < upper in the "
                         f"plans, got {bounds[0]} and {bounds[1]}.")  # fmt: skip
    return bounds


def scale(array: np.ndarray, lower: float, upper: float) -> np.ndarray:
    """lower..upper -> -1..1, clipped; float32. Where all of the foreground is one value, that value -> 0."""
    half = (upper - lower) / 2 or 1.0
    out = (array - np.float32((lower + upper) / 2)).astype(np.float32, copy=False)
    out *= np.float32(1 / half)
    return np.clip(out, -1, 1, out=out)
