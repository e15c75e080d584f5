"""The data's fingerprint: what planning needs to know of every case, and of every channel over all cases."""

from dataclasses import dataclass

import numpy as np

from nnssl_reg.geometry.cropping import foreground_box
from nnssl_reg.geometry.image import Image
from nnssl_reg.planning.foreground import foreground_mask, is_ct

FINGERPRINT_VERSION = 1
_QUANTILES = (np.arange(256) + 0.5) / 256  # of one case, each standing for an equal share of it, so that they can be pooled
_VOXELS = 200_000  # of one case, evenly spread, that its quantiles are computed from


@dataclass(frozen=True)
class CaseFingerprint:
    """One case. shape, spacing_mm and cropped_shape (of the foreground's box) along the canonical (closest to RAS) axes."""

    channel: str
    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    cropped_shape: tuple[int, int, int]
    foreground_fraction: float  # foreground voxels / all voxels
    minimum: float  # of all voxels
    percentile_00_5: float  # of all voxels
    percentile_99_5: float  # of all voxels
    mean: float  # of the foreground
    std: float  # of the foreground


@dataclass(frozen=True)
class ChannelFingerprint:
    """Intensities of one channel over the foreground of all its cases, each case with equal weight."""

    name: str
    cases: int
    percentile_00_5: float
    percentile_01_0: float
    median: float
    percentile_99_0: float
    percentile_99_5: float
    mean: float
    std: float


@dataclass(frozen=True)
class Fingerprint:
    """A data set: its cases by name, its channels by number as in the file names ("0")."""

    dataset_name: str
    cases: dict[str, CaseFingerprint]
    channels: dict[str, ChannelFingerprint]
    version: int = FINGERPRINT_VERSION


@dataclass(frozen=True)
class CaseRecord:
    """A case's fingerprint and quantiles as kept on disk, and what they were computed from: the raw bytes, the channel."""

    case: CaseFingerprint
    quantiles: tuple[float, ...]
    raw_fingerprint: str
    channel_name: str
    version: int = FINGERPRINT_VERSION


def case_fingerprint(image: Image, channel: str, channel_name: str) -> tuple[CaseFingerprint, np.ndarray]:
    """The fingerprint of a single-channel image and evenly spaced quantiles of its foreground intensities, (256,).

    Raises ValueError for a constant image, which has no foreground.
    """
    image = image.canonical()
    array = np.ascontiguousarray(image.array[0])
    mask = foreground_mask(array, channel_name)
    if not mask.any():
        raise ValueError(f"The image is constant ({float(array.flat[0]):g}), so it has no foreground.")
    box = foreground_box(mask)
    foreground = array[mask]
    fraction = foreground.size / array.size
    foreground = foreground[:: max(1, foreground.size // _VOXELS)].astype(np.float64)
    low, high = np.percentile(array.reshape(-1)[:: max(1, array.size // _VOXELS)], (0.5, 99.5))
    case = CaseFingerprint(
        channel=channel, shape=image.grid.shape, spacing_mm=tuple(round(s, 6) for s in image.grid.spacing_mm),
        cropped_shape=tuple(stop - start for start, stop in box), foreground_fraction=fraction,
        minimum=float(array.min()), percentile_00_5=float(low), percentile_99_5=float(high),
        mean=float(foreground.mean()), std=float(foreground.std()),
    )  # fmt: skip
    return case, np.quantile(foreground, _QUANTILES)


def merge(
    dataset_name: str, records: dict[str, tuple[CaseFingerprint, np.ndarray]], channel_names: dict[str, str]
) -> Fingerprint:
    """The data set's fingerprint from its cases' (fingerprint, quantiles). Channels without a case are left out.

    Raises ValueError without any case.
    """
    if not records:
        raise ValueError(f"{dataset_name} has no readable image, so there is nothing to plan for.")
    names = sorted(records)
    cases = {name: records[name][0] for name in names}
    channels = {}
    for key in sorted({case.channel for case in cases.values()}, key=int):
        own = [name for name in names if cases[name].channel == key]
        pooled = np.concatenate([records[name][1] for name in own])
        means, stds = (np.array([getattr(cases[name], field) for name in own]) for field in ("mean", "std"))
        p = np.percentile(pooled, (0.5, 1, 50, 99, 99.5))
        variance = (stds**2 + means**2).mean() - means.mean() ** 2
        channels[key] = ChannelFingerprint(channel_names[key], len(own), *(float(v) for v in p), mean=float(means.mean()),
                                           std=float(np.sqrt(max(variance, 0.0))))  # fmt: skip
    return Fingerprint(dataset_name, cases, channels)


def modality_doubt(case: CaseFingerprint, channel_name: str) -> str | None:
    """intensity_doubt of a case."""
    return intensity_doubt(case.minimum, case.percentile_00_5, case.percentile_99_5, channel_name)


def intensity_doubt(minimum: float, low: float, high: float, channel_name: str) -> str | None:
    """A sentence with the intensities that say so if an image named CT does not look like CT, or the reverse; else None.

    low, high: percentiles 0.5 and 99.5.
    """
    seen = f"its intensities run from {low:g} to {high:g} (0.5 to 99.5 %)"
    if is_ct(channel_name) and minimum >= 0 and high > 300:
        return f"named CT, but {seen} and none is below 0, where Hounsfield units have air at -1000 and fat at -100"
    if not is_ct(channel_name) and low <= -100:
        return f"named {channel_name}, but {seen}: values below -100 look like the Hounsfield units of CT"
    return None
