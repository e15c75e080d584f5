"""Predicted bytes: of training, of encoding an image, of preprocessing a case and of a registration."""

import math
from dataclasses import dataclass

import numpy as np

from nnssl_reg.geometry.grid import Grid
from nnssl_reg.planning.plans import Configuration, FeaturesPlan, NetworkPlan, PretrainingPlan, RegistrationPlan

GB = 1e9
PARAMETERS_PER_LAYER = 12.1  # x width^2: EVA block with SwiGLU, counted on widths 192 and 396
# bytes kept for the backward pass per token, layer and unit of width, counted with saved_tensors_hooks on depths 8 and 12
SAVED_BYTES = {"float32": 125, "bfloat16": 70}
HEAD_ROWS = 1.5  # x loss_tokens: masked tokens of half the crops, visible ones of all
HEAD_COPIES = 6  # of (rows, prototypes) in float32: logits and probabilities of teacher and student, their gradient, one spare
WEIGHT_BYTES = 4 * 4 + 4  # weights, gradients and two AdamW moments of the student; the teacher's weights
WORKER_BASE = 0.6 * GB  # a Python process with torch imported, resident
RAW_BYTES = 32  # per raw voxel, of a worker that measures or preprocesses: peak resident memory on 12 million voxels
RESAMPLED_BYTES = 16  # per preprocessed voxel, of the same
REGISTRATION_BASE = 1.1 * GB  # the same with all that a registration loads: SimpleITK, compiled kernels, matplotlib
IMAGE_BYTES = 6  # per voxel of an image: float32, and a label of up to two bytes
COST_COPIES = 3  # of the cost volume at one time
CONTEXT_CHANNELS, CONTEXT_VARIATES = 21, 12  # of the tissue context of an image, and of what a pair keeps of it
CELL_BYTES = 12  # per feature channel of a cell: packed copies of both maps, what is sampled, fields and their moments
SAMPLED_BYTES = 24  # per voxel of the MIND spacing, while features are computed
VOXEL_BYTES = 110  # per voxel of the MIND spacing, while the field is refined there: the field, its gradient and moments
OUTPUT_BYTES = 60  # per voxel of the fixed image: the field, its copies for SimpleITK, Jacobian determinant, pictures
SLAB_BYTES, SLAB_VOXELS = 75, 4e6  # per voxel of what is worked on in slabs, up to so many
LARGE_GPU_GB = 16  # below it, a CPU or a small GPU is planned for: small network, float32


def tokens_of(shape, patch) -> int:
    """Tokens of a volume or crop of `shape` voxels, incomplete ones counted."""
    return math.prod(-(-int(n) // p) for n, p in zip(shape, patch))


def encoder_parameters(network: NetworkPlan) -> int:
    """Weights of the encoder."""
    patch = math.prod(network.patch_size) * network.embed_dim
    return round(PARAMETERS_PER_LAYER * network.embed_dim**2 * network.depth) + patch


def head_parameters(network: NetworkPlan, pretraining: PretrainingPlan) -> int:
    """Weights of the class and the patch head (three layers and the prototypes each)."""
    hidden, neck = pretraining.head_hidden_dim, pretraining.head_bottleneck_dim
    return 2 * (network.embed_dim * hidden + hidden * hidden + hidden * neck + neck * pretraining.prototypes)


def encoder_bytes(network: NetworkPlan, crop_size, precision: str) -> float:
    """What the student keeps of a crop for the backward pass."""
    return tokens_of(crop_size, network.patch_size) * network.embed_dim * network.depth * SAVED_BYTES[precision]


def bytes_per_crop(network: NetworkPlan, crop_size, loss_tokens: int, prototypes: int, precision: str) -> float:
    """What one more crop in the batch costs in training: the student's activations and both heads' probabilities."""
    return encoder_bytes(network, crop_size, precision) + HEAD_ROWS * loss_tokens * prototypes * 4 * HEAD_COPIES


def training_bytes(network: NetworkPlan, pretraining: PretrainingPlan, precision: str, processes: int = 1) -> float:
    """Peak of pretraining: weights, their optimiser states, and the activations of a batch.

    processes: that share a batch, of one of which it is the peak. Blocks that it gathers for a moment are not counted.
    """
    weights = (encoder_parameters(network) + head_parameters(network, pretraining)) * WEIGHT_BYTES
    if pretraining.gram_weight > 0:
        weights += 4 * encoder_parameters(network)  # the teacher as it was
    if pretraining.sharded:
        weights /= processes
    crop = bytes_per_crop(network, pretraining.crop_size, pretraining.loss_tokens, pretraining.prototypes, precision)
    crop += pretraining.global_crops * encoder_bytes(network, pretraining.crop_size, precision)
    crop += pretraining.local_crops * encoder_bytes(network, pretraining.local_crop_size, precision)
    return weights + pretraining.batch_size / processes * crop + 0.5 * GB  # 0.5: the CUDA context and workspaces


def inference_bytes(network: NetworkPlan, window_size) -> float:
    """Peak of encoding one window: weights, and the widest layer's activations (attention never stores its matrix)."""
    tokens = tokens_of(window_size, network.patch_size)
    return 4 * encoder_parameters(network) + tokens * network.embed_dim * 4 * 12 + 4 * math.prod(window_size) + 0.5 * GB


def fingerprint_bytes(shape) -> float:
    """Peak of a worker that measures an image of `shape` voxels."""
    return WORKER_BASE + RAW_BYTES * math.prod(shape)


def preprocessing_bytes(shape, spacing_mm, target_spacings_mm) -> float:
    """Peak of a worker that preprocesses an image of `shape` voxels of spacing_mm to each of target_spacings_mm in turn."""
    raw = math.prod(shape)
    out = max(raw * math.prod(spacing_mm) / math.prod(target) for target in target_spacings_mm)
    return WORKER_BASE + RAW_BYTES * raw + RESAMPLED_BYTES * out


@dataclass(frozen=True)
class RegistrationMemory:
    """Predicted bytes of a registration on a CPU, besides those of the process before it.

    images: both as read, with a label each; maps: features of both; search: what finding the field adds; output: what
    writing, checking and drawing the result adds, in parallel to the next pair's registration if there is one.
    """

    images: float
    maps: float
    search: float
    output: float

    def peak(self, pairs: int = 1) -> float:
        """Most bytes at one time."""
        if pairs == 1:
            return self.images + self.maps + max(self.search, self.output)
        return 2 * (self.images + self.maps) + self.search + self.output


def registration_memory(
    fixed: Grid, moving: Grid, features: FeaturesPlan, registration: RegistrationPlan
) -> RegistrationMemory:
    """What registering images on these grids with MIND takes (with a model, its tokens come on top)."""
    cell_mm = np.array(features.mind_spacing_mm) * features.mind_stride
    cells = [math.prod(max(1, round(n)) for n in np.array(g.canonical().extent_mm) / cell_mm) for g in (fixed, moving)]
    context = features.context_share > 0
    hand_made = 12 * len(features.mind_scales) + 1 + CONTEXT_VARIATES * context  # 1: local intensity
    channels = max(features.components, hand_made)
    volume = 0.0
    for r in range(registration.rounds):
        block = np.maximum(1, np.round(registration.coarse_spacing_mm / 2 ** min(r, 1) / cell_mm + 1e-4))
        radius = np.maximum(1, np.round(registration.search_radius_mm / 2**r / (block * cell_mm)))
        both = (
            registration.symmetric and r == registration.rounds - 1
        )  # the rounds before are searched from the fixed image alone
        volume = max(volume, (max(cells) if both else cells[0]) / math.prod(block) * math.prod(2 * radius + 1))
    voxels = [math.prod(g.shape) for g in (fixed, moving)]
    sampled = math.prod(fixed.extent_mm) / math.prod(features.mind_spacing_mm)
    refined = registration.voxel_iterations > 0 and features.intensity_share > 0 and max(features.mind_stride) > 1
    return RegistrationMemory(
        images=IMAGE_BYTES * sum(voxels),
        maps=4 * (2 * channels + 12) * sum(cells),
        search=max(
            4 * COST_COPIES * volume + CELL_BYTES * channels * max(cells),
            SAMPLED_BYTES * sampled,
            VOXEL_BYTES * sampled * refined,
            4 * 2 * CONTEXT_CHANNELS * sum(cells) * context,
        ),
        output=OUTPUT_BYTES * voxels[0] + SLAB_BYTES * min(voxels[0], SLAB_VOXELS),
    )


def predictions_gb(configuration: Configuration, extent_mm, precision: str) -> dict[str, float]:
    """Predicted peaks in GB by step, for a table."""
    network, features = configuration.network, configuration.features
    spacing = np.array(configuration.image.spacing_mm)
    image = Grid(np.maximum(1, np.round(np.array(extent_mm) / spacing)), np.diag([*spacing, 1.0]))
    together = registration_memory(image, image, features, configuration.registration)
    return {
        "training": training_bytes(network, configuration.pretraining, precision) / GB,
        "encoding a window": inference_bytes(network, features.window_size) / GB,
        "registration (MIND)": (REGISTRATION_BASE + together.peak()) / GB,
    }


def precision_for(gpu_memory_gb: float) -> str:
    """What training computes in: bfloat16 on GPUs, float32 where a CPU or a small GPU is planned for."""
    return "bfloat16" if gpu_memory_gb >= LARGE_GPU_GB else "float32"
