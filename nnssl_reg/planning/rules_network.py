"""Rules for the network section and what has to fit the memory with it: crop, batch, prototypes; one function per rule."""

import math
from dataclasses import dataclass

from nnssl_reg.planning.choice import Choice, numbers
from nnssl_reg.planning.memory import (
    GB,
    HEAD_ROWS,
    LARGE_GPU_GB,
    WEIGHT_BYTES,
    bytes_per_crop,
    encoder_parameters,
    precision_for,
    tokens_of,
)
from nnssl_reg.planning.plans import NetworkPlan

SHARE_OF_MEMORY = 0.8  # of the target that a plan may fill; the rest is for fragmentation and other programs
SMALL_BATCH = 8  # crops per step where a CPU is planned for
LARGE_BATCH = 16  # crops per step that the crop size leaves room for on a GPU: fewer make poor Sinkhorn targets
MAX_BATCH = 32
ROOM = 1.25  # median case / largest crop, so that a crop at the widest zoom still fits
TOKENS_PER_AXIS = (32, 28, 24, 20, 16, 14, 12, 10, 8)  # of a crop, tried in this order
SMALL_TOKENS_PER_AXIS = 10  # at most, where a CPU is planned for: a step of 8 such crops takes about 10 s on two cores


@dataclass(frozen=True)
class Size:
    """A PRIMUS size, with the memory and the number of cases from which on it is worth its cost."""

    embed_dim: int
    depth: int
    num_heads: int
    drop_path_rate: float
    learning_rate: float
    memory_gb: float
    cases: int


SIZES = {  # S to L: dynamic-network-architectures' table. Head widths are divisible by 6, as its rotary embedding asks
    "L": Size(1056, 24, 16, 0.2, 1e-4, 72, 10_000),
    "M": Size(864, 16, 12, 0.2, 2e-4, 40, 3_000),
    "B": Size(792, 12, 12, 0.1, 3e-4, 24, 1_000),
    "S": Size(396, 12, 6, 0.1, 5e-4, LARGE_GPU_GB, 0),
    "XS": Size(192, 8, 4, 0.0, 1e-3, 0, 0),
}


def network_size(cases: int, gpu_memory_gb: float) -> Choice:
    """The name of the largest size that both the data and the memory bear."""
    name = next(name for name, size in SIZES.items() if gpu_memory_gb >= size.memory_gb and cases >= size.cases)
    size = SIZES[name]
    if name == "XS":
        why = f"{gpu_memory_gb:g} GB is a CPU or a small GPU, which trains 3.6 million weights in hours, not weeks"
    else:
        why = f"{gpu_memory_gb:g} GB bear it, {cases} cases are {'enough for it' if size.cases else 'too few for a larger one'}"
    return Choice(name, f"PRIMUS {name} ({size.embed_dim}/{size.depth}/{size.num_heads}): {why}")


def network_choices(size: Choice, patch: Choice) -> dict[str, Choice]:
    """Every field of the network section."""
    row, why = SIZES[size.value], size.reason
    return {
        "embed_dim": Choice(row.embed_dim, why),
        "depth": Choice(row.depth, why),
        "num_heads": Choice(row.num_heads, f"of width {row.embed_dim // row.num_heads}; rotary positions want a multiple of 6"),
        "patch_size": patch,
        "register_tokens": Choice(4, "hold global information that would otherwise spoil patch tokens (Darcet et al., 2024)"),
        "drop_path_rate": Choice(row.drop_path_rate, "none for the smallest network, more with size: large ones overfit"),
    }  # fmt: skip


def crop_size(median_shape, network: NetworkPlan, gpu_memory_gb: float) -> Choice:
    """Voxels of a training crop: whole tokens, inside the median case, the largest of which a useful batch fits."""
    patch = network.patch_size
    large = gpu_memory_gb >= LARGE_GPU_GB
    most, batch = (TOKENS_PER_AXIS[0], LARGE_BATCH) if large else (SMALL_TOKENS_PER_AXIS, SMALL_BATCH)
    for tokens in (n for n in TOKENS_PER_AXIS if n <= most):
        crop = tuple(p * max(1, min(tokens, int(n / ROOM / p))) for n, p in zip(median_shape, patch))
        expected = loss_tokens(crop, patch, gpu_memory_gb).value
        if crops_that_fit(network, crop, expected, 1024, gpu_memory_gb) >= batch:
            break
    limited = any(c // p < tokens for c, p in zip(crop, patch))
    why = f"whole tokens that fit the median case {ROOM:g} times" if limited else f"a cube of {tokens} tokens per axis"
    limit = "" if large else f" and a CPU's time (at most {most} tokens per axis)"
    return Choice(crop, f"{why} ({numbers(median_shape)} voxels); {batch} such crops fit {gpu_memory_gb:g} GB{limit}")


def loss_tokens(crop, patch, gpu_memory_gb: float) -> Choice:
    """Masked tokens of a crop, and as many visible ones, that enter the patch losses at most."""
    most = 1024 if gpu_memory_gb >= LARGE_GPU_GB else 512
    chosen = max(1, min(most, tokens_of(crop, patch) // 2))
    return Choice(chosen, f"half of the crop's tokens, at most {most}: neighbours say much the same, and each costs memory")


def prototypes(cases: int, median_shape, patch, rows: int) -> Choice:
    """Prototypes of each head: as many as the data can fill, and the tokens in a batch's losses can be spread over."""
    data_tokens = cases * tokens_of(median_shape, patch)
    batch_tokens = SMALL_BATCH * round(HEAD_ROWS * rows)
    wanted = min(data_tokens / 256, batch_tokens / 4)
    chosen = min(8192, max(1024, 2 ** math.floor(math.log2(max(wanted, 1)))))
    return Choice(chosen, f"{data_tokens:,} tokens in the data (256 per prototype), {batch_tokens:,} in the losses of a batch "
                          "(4 per prototype), between 1024 and the published 8192")  # fmt: skip


def batch_size(network: NetworkPlan, crop, rows: int, prototypes: int, gpu_memory_gb: float) -> Choice:
    """Crops per step."""
    if gpu_memory_gb < LARGE_GPU_GB:
        return Choice(SMALL_BATCH, "the fewest crops that give usable Sinkhorn targets; more would only cost a CPU time")
    fits = crops_that_fit(network, crop, rows, prototypes, gpu_memory_gb)
    batch = max(4, min(MAX_BATCH, fits // 2 * 2))
    return Choice(batch, f"{fits} fit {SHARE_OF_MEMORY:.0%} of {gpu_memory_gb:g} GB; even, 4 to {MAX_BATCH}")


def crops_that_fit(network: NetworkPlan, crop, rows: int, prototypes: int, gpu_memory_gb: float) -> int:
    """How many crops of a batch fit SHARE_OF_MEMORY by prediction."""
    free = SHARE_OF_MEMORY * gpu_memory_gb * GB - WEIGHT_BYTES * encoder_parameters(network)
    return int(free / bytes_per_crop(network, crop, rows, prototypes, precision_for(gpu_memory_gb)))
