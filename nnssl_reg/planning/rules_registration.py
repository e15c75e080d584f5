"""Rules for the features and registration sections; one function per rule."""

import math

import numpy as np

from nnssl_reg.planning.choice import Choice, numbers
from nnssl_reg.planning.memory import GB, LARGE_GPU_GB, inference_bytes, tokens_of
from nnssl_reg.planning.plans import FeaturesPlan, NetworkPlan
from nnssl_reg.planning.rules_image import DataSummary, native_spacing, rounded_up

SMALL_WINDOW_TOKENS = 2048  # twice a crop of the training; attention's time grows with their square, which a CPU feels first
FEW_TOKENS = 24  # per axis in the geometric mean, below which a token grid alone is too coarse a fine grid
SHIFTED_TOKENS = 131_072  # that all passes at shifted positions may sum to
DETAIL_MM = 1.75  # the spacing of MIND where images are coarser: cells of 4 mm had a lower Dice, of 3 mm no better one
MOST_CELLS = 1_200_000  # of 2 x 2 x 2 voxels in a median volume: time and memory grow with them
COARSE_VOXELS = 6  # of the MIND spacing per coarse cell, as in ConvexAdam
SMALL_VOLUME = 64**3  # voxels below which the fine grid is every voxel
FINE_SCALES, COARSE_SCALES = ((1, 1), (0, 2)), ((1, 2),)  # of MIND: (radius, dilation) in voxels
RADIUS_OF_DIAGONAL = 0.07  # search radius / diagonal of the body: organs of two patients lie that far apart after alignment
RADIUS_CELLS = (2, 6)  # fewest and most coarse cells of the search radius


def window_size(data: DataSummary, spacing_mm, network: NetworkPlan, gpu_memory_gb: float) -> Choice:
    """Voxels encoded in one pass, whole tokens."""
    patch = np.array(network.patch_size)
    largest = np.ceil(data.extents_mm.max(axis=0) / np.array(spacing_mm) / patch - 1e-6).astype(int)  # tokens
    whole = tuple(int(n) for n in largest * patch)
    small = gpu_memory_gb < LARGE_GPU_GB
    fits = inference_bytes(network, whole) <= 0.5 * gpu_memory_gb * GB
    if fits and not (small and tokens_of(whole, patch) > SMALL_WINDOW_TOKENS):
        return Choice(whole, f"the largest case ({numbers(whole)} voxels) in one pass: {tokens_of(whole, patch):,} tokens fit")
    limit = SMALL_WINDOW_TOKENS
    while not small and inference_bytes(network, (2 * limit * math.prod(network.patch_size), 1, 1)) <= 0.5 * gpu_memory_gb * GB:
        limit *= 2
    tokens = _box_of(largest, limit)
    why = "attention's time grows with the square of the tokens" if small else f"more do not fit {gpu_memory_gb:g} GB"
    return Choice(tuple(int(n) for n in tokens * patch), f"overlapping windows of at most {limit:,} tokens: {why}")


def _box_of(largest: np.ndarray, limit: int) -> np.ndarray:
    """The box of whole tokens inside `largest` (3,) that is nearest to a cube and holds at most `limit`."""
    box = np.minimum(largest, 1)
    while True:
        grown = [(int(box[a]), a) for a in range(3) if box[a] < largest[a] and box.prod() // box[a] * (box[a] + 1) <= limit]
        if not grown:
            return box
        box[min(grown)[1]] += 1


def token_shifts(median_shape, network: NetworkPlan) -> Choice:
    """Passes per axis at positions shifted by part of a token, whose tokens together make a finer grid."""
    tokens = [math.ceil(n / p) for n, p in zip(median_shape, network.patch_size)]
    shifts = tuple(2 if p > 1 else 1 for p in network.patch_size)
    if math.prod(tokens) < FEW_TOKENS**3 and math.prod(shifts) * math.prod(tokens) <= SHIFTED_TOKENS:
        return Choice(shifts, f"{numbers(tokens)} tokens are a coarse grid (fewer than {FEW_TOKENS} per axis): passes shifted "
                              "by half a token make it twice as fine")  # fmt: skip
    return Choice((1, 1, 1), f"{numbers(tokens)} tokens are fine enough, or too many to encode more than once")


def mind_spacing(data: DataSummary) -> Choice:
    """The spacing of hand-made features, mm (3,): of what a body shows, not of what its network has time for."""
    native, how = native_spacing(data)
    own, affordable = float(np.cbrt(native.prod())), float(np.cbrt(data.median_volume_mm3 / MOST_CELLS)) / 2
    small = data.median_volume_mm3 / own**3 < SMALL_VOLUME  # every voxel will be a cell
    wanted = own if small else min(own, max(own / 2, DETAIL_MM))
    why = f"of their volume ({own:.3g} mm)" if wanted == own else (
        f"of {wanted:.3g} mm, at most twice as fine, for cells that tell organs apart")  # fmt: skip
    if affordable > wanted:
        why = f"coarsened to at most {MOST_CELLS:,} cells in a median volume"
    edge = rounded_up(max(wanted, affordable))
    return Choice((edge,) * 3, f"native {numbers(native)} mm ({how}); cubes, so that all axes are compared alike, {why}")


def mind_choices(data: DataSummary) -> dict[str, Choice]:
    """MIND features: their sampling, and voxels per cell."""
    chosen = mind_spacing(data)
    spacing = chosen.value[0]
    stride = 1 if data.median_volume_mm3 / spacing**3 < SMALL_VOLUME else 2
    return {
        "mind_spacing_mm": chosen,
        "mind_scales": Choice(FINE_SCALES, "radius, dilation: two kinds of patches, as every voxel has a cell of its own")
        if stride == 1 else Choice(COARSE_SCALES, "radius, dilation: as in convexAdam; finer ones are lost in larger cells"),
        "mind_noise": Choice(1.0, "of the mean local variance: patches flatter than that say little"),
        "mind_noise_ct": Choice(0.3, "among CT less: soft tissues differ little beside the edges of bone and air"),
        "intensity_share": Choice(0.33, "of local intensity beside MIND, for pairs that agree on contrast: it tells bright "
                                        "from dark, which MIND does not"),
        "context_share": Choice(0.0, "no tissue context: so small a volume holds little around its organ")
        if stride == 1 else Choice(0.2, "of tissue context beside MIND, for pairs that do not agree on contrast: what lies "
                                        "around a place tells what it is; 0.15 to 0.3 are as good"),
        "dino_share": Choice(0.25, "of learned features beside MIND: of 0.25, 0.3 and 0.5 the best Dice after hours of "
                                   "training; more of them for smoother fields, or a model trained for long"),
        "mind_stride": Choice((stride,) * 3, f"cells of {stride * spacing:.3g} mm: " + (
            "every voxel of so small a volume" if stride == 1 else "the fine grid of the registration, as in convexAdam")),
    }  # fmt: skip


def features_choices(data: DataSummary, spacing_mm, shape, network: NetworkPlan, gpu_memory_gb: float) -> dict[str, Choice]:
    """Every field of the features section. spacing_mm, shape: of the median case as the network sees it."""
    return {
        "window_size": window_size(data, spacing_mm, network, gpu_memory_gb),
        "window_overlap": Choice(0.25, "share of a window's edge; half would double the passes for little"),
        "token_shifts": token_shifts(shape, network),
        "components": Choice(12, "of both images' tokens together, as many as published"),
        "projection": Choice("discriminant", "what differs between places, not between patients, by a first match with MIND"),
        **mind_choices(data),
    }


def smoothness(features: FeaturesPlan) -> Choice:
    """Weight of the diffusion regulariser."""
    if max(features.mind_stride) == 1:
        return Choice(0.2, "weight of the diffusion regulariser: cells as small as voxels tell more of small shapes")
    return Choice(0.3, "weight of the diffusion regulariser: of 0.15, 0.3, 0.6 and 1.25 the best Dice")


def rounds(features: FeaturesPlan) -> Choice:
    """Searches before Adam."""
    why = "searches: the second starts from the first's field, in blocks half as large"
    if max(features.mind_stride) == 1:
        return Choice(2, f"{why}; one more gained nothing where cells are as small as voxels")
    return Choice(3, f"{why}, the third looks again in these, half as far: abdomens gained")


def registration_choices(data: DataSummary, features: FeaturesPlan) -> dict[str, Choice]:
    """Every field of the registration section."""
    coarse = round(COARSE_VOXELS * min(features.mind_spacing_mm), 3)
    diagonal = float(np.linalg.norm(data.median_extent_mm))
    low, high = (cells * coarse for cells in RADIUS_CELLS)
    radius = round(min(high, max(low, RADIUS_OF_DIAGONAL * diagonal)), 1)
    return {
        "coarse_spacing_mm": Choice(coarse, f"{COARSE_VOXELS} voxels of the MIND spacing, as in convexAdam"),
        "search_radius_mm": Choice(radius, f"{RADIUS_OF_DIAGONAL:.0%} of the body's diagonal ({diagonal:.0f} mm), {low:.3g} to "
                                           f"{high:.3g} mm ({RADIUS_CELLS[0]} to {RADIUS_CELLS[1]} coarse cells)"),
        "rounds": rounds(features),
        "iterations": Choice(40, "Adam steps after the last round; 80 gave the same Dice, 30 a little less"),
        "learning_rate": Choice(1.0, "Adam's, in cells"),
        "smoothness": smoothness(features),
        "smoothing_passes": Choice(3, "box filters of 3 cells over the field, as in convexAdam"),
        "symmetric": Choice(True, "the last round and Adam in both directions, and their mean: fewer errors of one direction"),
        "init": Choice("auto", "identity, centres, moments or affine, by their cost"),
        "voxel_iterations": Choice(30, "Adam steps at every voxel, where local intensity agrees better than MIND (brains); "
                                       "20 gained less, 40 hardly more; twice as many between images of one patient"),
        "voxel_smoothness": Choice(0.3, "weight of the diffusion regulariser there: of 0.2, 0.3 and 0.6 the best Dice for its "
                                        "smoothness; four times as much between images of one patient"),
    }  # fmt: skip
