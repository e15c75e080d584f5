"""Rules for encoding images with a model that was trained on others: the input's spacing, windows, shifts."""

import math

import numpy as np

from nnssl_reg.planning.choice import Choice, numbers
from nnssl_reg.planning.memory import LARGE_GPU_GB
from nnssl_reg.planning.plans import NetworkPlan
from nnssl_reg.planning.rules_image import MAX_TOKENS, DataSummary, native_spacing
from nnssl_reg.planning.rules_registration import token_shifts

SMALL_TOKENS = 8192  # of an image on a CPU: the smallest network took 2 to 3 s for 8,000 on two cores
SMALL_SHIFTED_TOKENS = 2 * SMALL_TOKENS  # that a CPU's shifted passes may sum to: each is short, so they cost less


def most_tokens(gpu_memory_gb: float) -> int:
    """Tokens that an image may have."""
    return MAX_TOKENS if gpu_memory_gb >= LARGE_GPU_GB else SMALL_TOKENS


def encoder_spacing(data: DataSummary, network: NetworkPlan, gpu_memory_gb: float) -> Choice:
    """Spacing in mm at which a given encoder sees images, such that its tokens are cubes, as they were in its training."""
    patch = np.array(network.patch_size, dtype=np.float64)
    native, how = native_spacing(data)
    own = float(np.cbrt(native.prod() * patch.prod()))  # mm, the token whose voxels are as large as the images'
    limit = most_tokens(gpu_memory_gb)
    affordable = float(np.cbrt(data.median_volume_mm3 / limit))
    edge = max(own, affordable)
    spacing = tuple(round(float(edge / p), 3) for p in patch)
    bound = (f"not finer than the images, whose native {numbers(native)} mm ({how}) make voxels of that volume"
             if own >= affordable else
             f"{limit:,} tokens in the median field of view ({numbers(data.median_extent_mm)} mm), what "
             f"{gpu_memory_gb:g} GB or a CPU's time allow; the images' own {numbers(native)} mm are finer")  # fmt: skip
    return Choice(spacing, f"tokens of {numbers(network.patch_size)} voxels are cubes of {edge:.3g} mm then, as they were "
                           f"near-cubes in training: {bound}")  # fmt: skip


def shared_token_shifts(shape, network: NetworkPlan, gpu_memory_gb: float) -> Choice:
    """Passes per axis, as for a model of one's own, but no more of them than a CPU has time for."""
    choice = token_shifts(shape, network)
    tokens = math.prod(math.ceil(n / p) for n, p in zip(shape, network.patch_size))
    if gpu_memory_gb < LARGE_GPU_GB and math.prod(choice.value) > 1 and math.prod(choice.value) * tokens > SMALL_SHIFTED_TOKENS:
        return Choice((1, 1, 1), f"{tokens:,} tokens: passes shifted by half a token would encode more than "
                                 f"{SMALL_SHIFTED_TOKENS:,}, for which a CPU takes too long")  # fmt: skip
    return choice
