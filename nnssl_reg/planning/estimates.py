"""What a plan will cost before it is run: hours of pretraining, seconds and bytes of preprocessing."""

import math

from nnssl_reg.planning.fingerprint import Fingerprint
from nnssl_reg.planning.memory import HEAD_ROWS, encoder_parameters, head_parameters, preprocessing_bytes, tokens_of
from nnssl_reg.planning.plans import Configuration

# FLOP/s, each an order of magnitude: the encoder's forward and backward pass ran at 20 GFLOP/s per core of a 2-core x86
# server in float32; a data-centre GPU is taken at a tenth of its bfloat16 peak of 400 TFLOP/s
CPU_CORE_FLOPS = 20e9
GPU_FLOPS = 40e12
READ_SECONDS = 0.1e-6  # per raw voxel and core, reading and measuring, on the same server
PREPROCESS_SECONDS = 0.2e-6  # per raw and per preprocessed voxel and core: foreground, smoothing, resampling, writing
STORED_BYTES = 1.0  # per voxel: float16 after compression, 0.6 to 1.3 on abdomen and brain images and mixed CT


def training_flops(configuration: Configuration) -> float:
    """Floating point operations of the whole pretraining: the teacher forwards, the student forwards and backwards."""
    network, plan = configuration.network, configuration.pretraining
    tokens = tokens_of(plan.crop_size, network.patch_size)
    encoder = tokens * (2 * encoder_parameters(network) + 4 * tokens * network.embed_dim * network.depth)
    heads = (
        HEAD_ROWS * plan.loss_tokens * head_parameters(network, plan)
    )  # 2 per weight, half of the weights are the patch head's
    return plan.steps * plan.batch_size * 4 * (encoder + heads)


def training_hours(configuration: Configuration, gpu: bool, cores: int) -> float:
    """Predicted hours of pretraining."""
    return training_flops(configuration) / (GPU_FLOPS if gpu else cores * CPU_CORE_FLOPS) / 3600


def encoding_seconds(configuration: Configuration, gpu: bool, cores: int) -> float:
    """Predicted time of encoding one median image: all windows at all shifted positions."""
    network, features = configuration.network, configuration.features
    windows = 1
    for size, window in zip(configuration.image.median_shape, features.window_size):
        windows *= 1 + max(0, math.ceil((size - window) / (window * (1 - features.window_overlap))))
    tokens = tokens_of(features.window_size, network.patch_size)
    flops = tokens * (2 * encoder_parameters(network) + 4 * tokens * network.embed_dim * network.depth)
    passes = windows * math.prod(features.token_shifts)
    return passes * flops / (GPU_FLOPS if gpu else cores * CPU_CORE_FLOPS)


def resampled_voxels(fingerprint: Fingerprint, configuration: Configuration) -> float:
    """Voxels of all preprocessed cases, without their margins."""
    voxel = math.prod(configuration.image.spacing_mm)
    return sum(math.prod(case.cropped_shape) * math.prod(case.spacing_mm) / voxel for case in fingerprint.cases.values())


def preprocessing_seconds(fingerprint: Fingerprint, configurations: list[Configuration], cores: int) -> float:
    """Predicted time of preprocessing all cases to all configurations."""
    raw = sum(math.prod(case.shape) for case in fingerprint.cases.values())
    out = sum(resampled_voxels(fingerprint, configuration) for configuration in configurations)
    return (READ_SECONDS * raw + PREPROCESS_SECONDS * (raw * len(configurations) + out)) / cores


def disk_bytes(fingerprint: Fingerprint, configurations: list[Configuration]) -> float:
    """Predicted size of the preprocessed cases."""
    return STORED_BYTES * sum(resampled_voxels(fingerprint, configuration) for configuration in configurations)


def worker_bytes(fingerprint: Fingerprint, configurations: list[Configuration]) -> float:
    """Predicted peak of one preprocessing process, for the largest case."""
    targets = [configuration.image.spacing_mm for configuration in configurations]
    return max(preprocessing_bytes(case.shape, case.spacing_mm, targets) for case in fingerprint.cases.values())
