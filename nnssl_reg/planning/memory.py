"""Predicted bytes: of training, of encoding an image, of preprocessing a case and of a registration."""

import math

import numpy as np

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


def bytes_per_crop(network: NetworkPlan, crop_size, loss_tokens: int, prototypes: int, precision: str) -> float:
    """What one more crop in the batch costs in training: the student's activations and both heads' probabilities."""
    encoder = tokens_of(crop_size, network.patch_size) * network.embed_dim * network.depth * SAVED_BYTES[precision]
    return encoder + HEAD_ROWS * loss_tokens * prototypes * 4 * HEAD_COPIES


def training_bytes(network: NetworkPlan, pretraining: PretrainingPlan, precision: str) -> float:
    """Peak of pretraining: weights, their optimiser states, and the activations of a batch."""
    weights = (encoder_parameters(network) + head_parameters(network, pretraining)) * WEIGHT_BYTES
    if pretraining.gram_weight > 0:
        weights += 4 * encoder_parameters(network)  # the teacher as it was
    crop = bytes_per_crop(network, pretraining.crop_size, pretraining.loss_tokens, pretraining.prototypes, precision)
    return weights + pretraining.batch_size * crop + 0.5 * GB  # 0.5: the CUDA context and workspaces


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


def registration_bytes(extent_mm, features: FeaturesPlan, registration: RegistrationPlan) -> float:
    """Peak of registering images of this extent with MIND: features of both, the cost volume, the optimiser's fields."""
    cell_mm = np.array(features.mind_spacing_mm) * features.mind_stride
    cells = float(np.prod(np.array(extent_mm) / cell_mm))
    voxels = float(np.prod(np.array(extent_mm) / features.mind_spacing_mm))
    coarse = float(np.prod(np.array(extent_mm) / registration.coarse_spacing_mm))
    displacements = (2 * round(registration.search_radius_mm / registration.coarse_spacing_mm) + 1) ** 3
    channels = max(features.components, 12 * len(features.mind_scales))
    return 4 * (3 * channels * voxels / 2 + 6 * channels * cells + 2 * coarse * displacements + 30 * cells) + WORKER_BASE


def predictions_gb(configuration: Configuration, extent_mm, precision: str) -> dict[str, float]:
    """Predicted peaks in GB by step, for a table."""
    network, features = configuration.network, configuration.features
    return {
        "training": training_bytes(network, configuration.pretraining, precision) / GB,
        "encoding a window": inference_bytes(network, features.window_size) / GB,
        "registration (MIND)": registration_bytes(extent_mm, features, configuration.registration) / GB,
    }


def precision_for(gpu_memory_gb: float) -> str:
    """What training computes in: bfloat16 on GPUs, float32 where a CPU or a small GPU is planned for."""
    return "bfloat16" if gpu_memory_gb >= LARGE_GPU_GB else "float32"
