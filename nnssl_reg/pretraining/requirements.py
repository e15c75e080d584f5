"""What a configuration must fulfil before training starts: all that is wrong with it, in one message."""

import torch

from nnssl_reg.planning.plans import Configuration

SHARDING_TORCH = (2, 6)  # has torch.distributed.fsdp.fully_shard, as the first
CENTERINGS = ("sinkhorn", "centre")


def require_trainable(configuration: Configuration, processes: int = 1) -> None:
    """Raises ValueError listing every value that cannot be trained with. processes: that share a batch."""
    network, plan = configuration.network, configuration.pretraining
    problems = []

    def require(claim: bool, name: str, expected: str) -> None:
        if not claim:
            section = network if name in vars(network) else plan
            problems.append(f"{name} is {vars(section)[name]} but should be {expected}")

    fits = all(n >= p and n % p == 0 for n, p in zip(plan.crop_size, network.patch_size))
    require(fits, "crop_size", f"whole patches of {network.patch_size} along every axis")
    head = network.embed_dim / max(1, network.num_heads)
    require(network.num_heads > 0 and head % 6 == 0, "embed_dim", f"num_heads ({network.num_heads}) times a multiple of 6")
    counts = ("batch_size", "steps", "steps_per_epoch", "warmup_steps", "loss_tokens", "head_hidden_dim",
              "head_bottleneck_dim")  # fmt: skip
    for name in counts:
        require(vars(plan)[name] >= 1, name, "at least 1")
    if processes > 1:
        require(plan.batch_size % processes == 0, "batch_size", f"a multiple of {processes}, the processes that share it")
        able = tuple(map(int, torch.__version__.split(".")[:2])) >= SHARDING_TORCH
        require(able or not plan.sharded, "sharded", f"false with torch {torch.__version__}; true needs 2.6 or newer")
    require(plan.prototypes >= 2, "prototypes", "at least 2")
    if plan.local_crops > 0:
        whole = all(n >= p and n % p == 0 for n, p in zip(plan.local_crop_size, network.patch_size))
        require(whole, "local_crop_size", f"whole patches of {network.patch_size} along every axis")
    for name in ("gram_weight", "gram_start_step", "global_crops", "local_crops"):
        require(vars(plan)[name] >= 0, name, "0 or more")
    require(plan.workers >= 0, "workers", "0 (read in the training process) or more")
    require(plan.centering in CENTERINGS, "centering", " or ".join(CENTERINGS))
    for name in ("mask_ratio", "zoom", "global_scale", "local_scale"):
        low, high = vars(plan)[name]
        require(0 < low <= high, name, "two increasing positive numbers")
    require(plan.mask_ratio[1] < 1, "mask_ratio", "below 1")
    for name in ("global_scale", "local_scale"):
        require(vars(plan)[name][1] <= 1, name, "at most 1, the whole crop")
    for name in ("teacher_temperature", "final_teacher_temperature", "student_temperature", "learning_rate", "gradient_clip"):
        require(vars(plan)[name] > 0, name, "positive")
    shares = ("teacher_momentum", "final_teacher_momentum", "foreground_share", "layer_decay", "modality_balance",
              "remap_probability", "gin_probability", "low_resolution_probability",
              "window_probability")  # fmt: skip
    for name in shares:
        require(0 <= vars(plan)[name] <= 1, name, "between 0 and 1")
    if problems:
        raise ValueError(f"This configuration cannot be trained: {'; '.join(problems)}. Change it in the plans or with --set.")
