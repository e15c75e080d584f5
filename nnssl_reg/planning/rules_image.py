"""Rules for the image section and the token: spacing, patch, crop margin, normalisation; one function per rule."""

from dataclasses import dataclass

import numpy as np

from nnssl_reg.planning.choice import Choice, numbers
from nnssl_reg.planning.fingerprint import CaseFingerprint, ChannelFingerprint, Fingerprint
from nnssl_reg.planning.foreground import CT_BODY_ABOVE_HU, is_ct
from nnssl_reg.planning.plans import ChannelPlan

ANISOTROPIC = 3.0  # nnU-Net's limit: an axis more than three times as coarse as the others is one of thick slices
MIXED_POOL = 1.25  # ratio of the upper to the lower quartile of the cases' voxel edges from which on a data set is a mix
PATCH = 4  # voxels per token edge: the published method found small patches (4 x 4 x 4) essential for local structure
MAX_TOKENS = 192 * 160 * 192 // PATCH**3  # what the published method encodes in one pass (Learn2Reg's abdomen volumes)


@dataclass(frozen=True)
class DataSummary:
    """What the rules ask of a fingerprint, one row per case, along the canonical axes."""

    spacings_mm: np.ndarray  # (N, 3)
    extents_mm: np.ndarray  # (N, 3) of the foreground's box

    @staticmethod
    def of(fingerprint: Fingerprint) -> "DataSummary":
        cases = list(fingerprint.cases.values())
        spacings = np.array([case.spacing_mm for case in cases], dtype=np.float64)
        return DataSummary(spacings, np.array([case.cropped_shape for case in cases]) * spacings)

    @property
    def cases(self) -> int:
        return len(self.spacings_mm)

    @property
    def median_extent_mm(self) -> np.ndarray:
        return np.median(self.extents_mm, axis=0)

    @property
    def median_volume_mm3(self) -> float:
        return float(np.median(self.extents_mm.prod(axis=1)))


def native_spacing(data: DataSummary) -> Choice:
    """The data's own spacing per axis, mm (3,), before it is fitted to cube-shaped tokens."""
    edges = np.cbrt(data.spacings_mm.prod(axis=1))
    lower, upper = np.percentile(edges, (25, 75))
    if upper > MIXED_POOL * lower:
        return Choice(np.percentile(data.spacings_mm, 25, axis=0),
                      f"a mixed pool (voxel edges {lower:.3g} to {upper:.3g} mm between the quartiles): the lower quartile of "
                      "each axis, so that the finer images keep their detail")  # fmt: skip
    spacing = np.median(data.spacings_mm, axis=0)
    thick = int(spacing.argmax())
    others = np.delete(spacing, thick).max()
    if spacing[thick] > ANISOTROPIC * others:
        spacing[thick] = max(np.percentile(data.spacings_mm[:, thick], 10), others)
        return Choice(spacing, f"the median of each axis, on axis {'xyz'[thick]} (more than {ANISOTROPIC:g} times coarser than "
                               "the others) the 10th percentile, so that thin slices are not thrown away")  # fmt: skip
    return Choice(spacing, "the median of each axis")


def target_spacing(data: DataSummary, overwrite=None) -> Choice:
    """The spacing that images are brought to, mm along the canonical axes, such that tokens can be near-cubes."""
    if overwrite is not None:
        return Choice(tuple(float(s) for s in overwrite), "given by -overwrite_target_spacing")
    native, how = native_spacing(data)
    finest_token = float(np.cbrt(data.median_volume_mm3 / MAX_TOKENS))  # mm
    thick = int(native.argmax())
    in_plane = float(np.delete(native, thick).max())
    origin = f"native {numbers(native)} mm ({how})"
    if native[thick] > ANISOTROPIC * in_plane:
        slices = slices_per_token(native[thick], max(finest_token, PATCH * in_plane))
        fitted = max(in_plane, slices * native[thick] / PATCH)
        spacing = np.full(3, round(fitted, 3))
        spacing[thick] = round(float(native[thick]), 3)
        return Choice(tuple(spacing.tolist()),
                      f"{origin}; thick slices stay as they are, nothing is invented between them; in plane {fitted:.3g} "
                      f"mm, so that {PATCH} voxels are as long as {slices} slice{'s' * (slices > 1)}: near-cubes")  # fmt: skip
    cube = float(np.cbrt(native.prod()))
    edge = rounded_up(max(cube, finest_token / PATCH))
    limit = f", coarsened to at most {MAX_TOKENS} tokens in a median volume" if finest_token / PATCH > cube else ""
    return Choice((edge, edge, edge), f"{origin}; cubes of the same volume ({cube:.3g} mm){limit}, rounded up")


def slices_per_token(slice_mm: float, token_mm: float) -> int:
    """How many thick slices make a token: 1, 2 or 4, the fewest that reach three quarters of the wanted edge."""
    return next((n for n in (1, 2) if n * slice_mm >= 0.75 * token_mm), PATCH)


def rounded_up(edge_mm: float) -> float:
    """Up to the next quarter of a millimetre (a twentieth below 1 mm), so that plans of similar data agree."""
    step = 0.05 if edge_mm <= 1 else 0.25
    return round(float(np.ceil(edge_mm / step - 0.2)) * step, 3)  # a fifth of a step over is no reason to go coarser


def patch_size(spacing_mm) -> Choice:
    """Voxels per token along each axis, 1, 2 or 4, such that a token's edges are about equal in mm."""
    token_mm = PATCH * min(spacing_mm)
    patch = tuple(min((PATCH, 2, 1), key=lambda n, s=s: abs(np.log(n * s / token_mm))) for s in spacing_mm)
    edges = numbers(n * s for n, s in zip(patch, spacing_mm))
    return Choice(patch, f"a token's edges are then {edges} mm, near-cubes; {PATCH} voxels keep local structure")


def median_shape(data: DataSummary, spacing_mm) -> Choice:
    """Voxels of the median cropped case at spacing_mm."""
    shape = tuple(max(1, round(float(n))) for n in data.median_extent_mm / np.array(spacing_mm))
    return Choice(shape, f"the median extent of the foreground, {numbers(data.median_extent_mm)} mm, over {data.cases} cases")


def crop_margin(spacing_mm, patch) -> Choice:
    """Millimetres kept around the foreground's box."""
    margin = round(max(n * s for n, s in zip(patch, spacing_mm)), 1)
    return Choice(margin, "one token, so that the body's surface lies inside the image, not at its edge")


def channel_plan(channel: ChannelFingerprint, cases: list[CaseFingerprint]) -> Choice:
    """How one channel is normalised."""
    if not is_ct(channel.name):
        why = "intensities have no unit, so each image's own 1st and 99th foreground percentiles serve"
        return Choice(ChannelPlan(channel.name, "mr", None, None, None), f"{channel.name}: {why}")
    with_air = float(np.mean([case.minimum < CT_BODY_ABOVE_HU for case in cases]))
    above = CT_BODY_ABOVE_HU if with_air > 0.5 else None
    lower, upper = round(channel.percentile_01_0, 1), round(channel.percentile_99_0, 1)
    if not upper > lower:
        lower, upper = lower - 1.0, lower + 1.0  # every foreground voxel of every case has one intensity
    body = f"body above {above:g} HU" if above is not None else "no air at -1000 HU, so each image's own body threshold"
    why = f"Hounsfield units, clipped to the 1st and 99th foreground percentiles over all cases; {body}"
    return Choice(ChannelPlan(channel.name, "ct", lower, upper, above), f"{channel.name}: {why}")


def channel_plans(fingerprint: Fingerprint) -> Choice:
    """Normalisation of every channel by its number."""
    choices = {}
    for key, channel in fingerprint.channels.items():
        choices[key] = channel_plan(channel, [case for case in fingerprint.cases.values() if case.channel == key])
    return Choice({key: choice.value for key, choice in choices.items()}, "; ".join(c.reason for c in choices.values()))
