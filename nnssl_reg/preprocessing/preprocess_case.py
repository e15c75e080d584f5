"""One image to the network's input: canonical axes, crop to the foreground, resample, normalise."""

from dataclasses import dataclass

import numpy as np

from nnssl_reg.geometry.cropping import foreground_box
from nnssl_reg.geometry.grid import Grid
from nnssl_reg.geometry.image import Image
from nnssl_reg.geometry.sampling import resample
from nnssl_reg.planning.foreground import foreground_mask
from nnssl_reg.planning.plans import ChannelPlan, ImagePlan
from nnssl_reg.preprocessing.normalization import bounds_for, scale

PREPROCESSING_VERSION = 1  # to be raised when the same raw image and plans come to give other voxels
FOREGROUND_POINTS = 2000


@dataclass(frozen=True)
class PreprocessedCase:
    """What preprocessing makes of an image.

    image: (1, X, Y, Z) about -1..1, canonical axes, at the plan's spacing. original_grid: of the raw image. crop_box: half
    open, voxels of the raw image brought to canonical axes. statistics: bounds that became -1 and 1 ("lower", "upper"),
    foreground mean, std and fraction, in the image's own units. foreground_points: (N, 3) voxel indices in `image`.
    """

    image: Image
    original_grid: Grid
    crop_box: list[list[int]]
    statistics: dict[str, float]
    foreground_points: np.ndarray


def preprocess_image(image: Image, plan: ImagePlan, channel: str) -> PreprocessedCase:
    """Preprocess a single-channel image. channel: its key in plan.channels, "0".

    Raises ValueError for a channel that the plans do not have and for a constant image.
    """
    if channel not in plan.channels:
        known = ", ".join(f"{key} ({c.name})" for key, c in plan.channels.items())
        raise ValueError(f"The plans have no channel {channel}, but {known}: plan again, or give the image one of these.")
    channel_plan = plan.channels[channel]
    cropped, mask, box, fraction = _crop(image, channel_plan, plan.crop_margin_mm)
    foreground = cropped.array[0][mask]
    lower, upper = bounds_for(foreground, channel_plan)
    mean, std = foreground.mean(dtype=np.float64), foreground.std(dtype=np.float64)
    statistics = {"lower": lower, "upper": upper, "mean": float(mean), "std": float(std), "foreground_fraction": fraction}
    del foreground
    grid = cropped.grid.with_spacing(plan.spacing_mm)
    points = foreground_points(mask, cropped.grid, grid)
    resampled = resample(cropped, grid)
    return PreprocessedCase(Image(scale(resampled.array, lower, upper), grid), image.grid, box, statistics, points)


def _crop(image: Image, channel: ChannelPlan, margin_mm: float) -> tuple[Image, np.ndarray, list[list[int]], float]:
    """The canonical image in its foreground's box with a margin; the mask (X, Y, Z) there; the box; the foreground's share."""
    canonical = image.canonical()
    array = np.ascontiguousarray(canonical.array[0])
    mask = foreground_mask(array, channel.name, channel.foreground_above)
    if not mask.any():
        raise ValueError(f"The image is constant ({float(array.flat[0]):g}), so it has no foreground to preprocess.")
    margin_vox = [int(np.ceil(margin_mm / s - 1e-6)) for s in canonical.grid.spacing_mm]
    box = foreground_box(mask, margin_vox)
    inside = tuple(slice(start, stop) for start, stop in box)
    return Image(array[None], canonical.grid).cropped(box), mask[inside], box, float(mask.mean())


def foreground_points(mask: np.ndarray, grid: Grid, target: Grid, count: int = FOREGROUND_POINTS) -> np.ndarray:
    """At most `count` voxels of `target` inside the mask (X, Y, Z) on `grid`, evenly spread over it, (N, 3) int."""
    where = np.flatnonzero(mask)
    # steps of a golden fraction of the mask, not a fixed stride, which could keep to a few planes of the image
    chosen = np.unique((np.arange(count) * 0.6180339887498949 % 1 * where.size).astype(np.int64)) if where.size > count else ...
    index = np.stack(np.unravel_index(where[chosen], mask.shape), axis=-1)
    voxels = np.rint(target.world_to_index(grid.index_to_world(index))).astype(np.int64)
    return np.unique(np.clip(voxels, 0, np.array(target.shape) - 1), axis=0)
