"""What is to be known of an image beside its features: its kind, its noise, how it lies, where its body is."""

from pathlib import Path

import numpy as np
import torch

from nnssl_reg.features.noise import noise_share, smoothing_mm
from nnssl_reg.features.soft_tissue import soft_tissue_contrast
from nnssl_reg.geometry.grid import Grid
from nnssl_reg.geometry.image import Image
from nnssl_reg.geometry.sampling import gather_nearest, resample
from nnssl_reg.imageio.raw_dataset import guess_modality
from nnssl_reg.planning.fingerprint import intensity_doubt
from nnssl_reg.planning.foreground import foreground_mask, is_ct

OBLIQUE_DEGREES = 10.0  # beyond it, features along the array's axes would no longer match those along the world's


def seems_ct(channel_name: str | None, image: Image) -> bool:
    """Whether an image is CT, by the name of its channel or else by its intensities."""
    return is_ct(channel_name or guess_modality(image))


def wanted_smoothing_mm(image: Image, ct: bool, most_mm: float) -> float:
    """How far noise wants an image smoothed, see features/noise.py."""
    share = noise_share(image.array[0], soft_tissue_contrast if ct else None)
    return smoothing_mm(share, image.grid.spacing_mm, most_mm)


def body_cells(image: Image, cells: Grid, counted: torch.Tensor | None, device: torch.device) -> torch.Tensor:
    """Which cells lie in the body, (X, Y, Z) bool on the device; all of them if none does.

    counted: (X, Y, Z) bool, the cells that an image's mask leaves, None without one: no others then.
    """
    mask = foreground_mask(image.array[0], guess_modality(image)).astype(np.uint8)[None]
    inside = torch.from_numpy(gather_nearest(mask, image.grid, cells.points_mm(), 0)[0] > 0)
    body = (inside if inside.any() else torch.ones_like(inside)).to(device)
    if counted is None:
        return body
    return body & counted if (body & counted).any() else counted


def upright_image(image: Image) -> Image:
    """An image with its axes along the world's: the same voxels where they lie so, else resampled."""
    upright = image.canonical()
    upright = Image(upright.array, upright.grid.rounded())
    if upright.grid.obliqueness_degrees() <= OBLIQUE_DEGREES:
        return upright
    return resample(upright, upright.grid.world_aligned(), fill=float(image.array.min()))


def doubt_of(image: Image, channel_name: str) -> str | None:
    """The intensity_doubt of an image under a channel's name."""
    sample = image.array.reshape(-1)[:: max(1, image.array.size // 200_000)]
    return intensity_doubt(float(image.array.min()), *np.percentile(sample, (0.5, 99.5)), channel_name)


def channel_key(channels, channel_name: str | None, image: Image, path: Path) -> str:
    """Which of the plan's channels an image is: by name, else CT if its intensities look like HU, else the other."""
    if len(channels) == 1:
        return next(iter(channels))
    wants_ct = is_ct(channel_name or guess_modality(image))
    same_name = [key for key, c in channels.items() if channel_name and c.name.lower() == channel_name.lower()]
    same_kind = [key for key, c in channels.items() if is_ct(c.name) == wants_ct]
    if not same_name and not same_kind:
        known = ", ".join(c.name for c in channels.values())
        raise ValueError(f"{path}: the model knows {known}, and this image is neither by name nor by intensities.")
    return (same_name or same_kind)[0]
