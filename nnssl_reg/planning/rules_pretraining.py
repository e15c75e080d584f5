"""Rules for the pretraining section's steps and schedules; one function per rule."""

import math

from nnssl_reg.planning.choice import Choice
from nnssl_reg.planning.memory import GB, LARGE_GPU_GB, WEIGHT_BYTES, encoder_parameters
from nnssl_reg.planning.plans import NetworkPlan

PASSES = {"small": 25, "large": 300}  # times that all the data's volume is seen, planned for a CPU, for a GPU
STEPS = {"small": (1_000, 10_000), "large": (10_000, 150_000)}  # 150,000 is the published method's
SHARDED_SIZES = ("M", "L")  # of which several processes hold shares: 3 GB and more in all

LONG_RUN = 50_000  # steps beyond which dense features decayed in DINOv3's runs without Gram anchoring
SHORT_RUN = 10_000  # steps up to which a run needs a faster teacher and sharper targets than the published 150,000


def crops_per_pass(cases: int, median_shape, crop) -> float:
    """How many crops hold as much volume as all cases together, at most 32 of one case."""
    return cases * min(32.0, max(1.0, math.prod(median_shape) / math.prod(crop)))


def steps_choices(crops: float, batch: int, gpu_memory_gb: float) -> dict[str, Choice]:
    """steps_per_epoch and steps."""
    tier = "large" if gpu_memory_gb >= LARGE_GPU_GB else "small"
    per_pass = crops / batch
    epoch = min(250, max(50, round(per_pass)))
    low, high = STEPS[tier]
    steps = math.ceil(min(high, max(low, PASSES[tier] * per_pass)) / epoch) * epoch
    return {
        "steps_per_epoch": Choice(epoch, f"one pass over the data is {per_pass:.0f} steps; 50 to 250, for regular checkpoints"),
        "steps": Choice(steps, f"{PASSES[tier]} passes over the data's volume, {low:,} to {high:,} steps, whole epochs"),
    }  # fmt: skip


def schedule_choices(steps: int, learning_rate: float, size: str) -> dict[str, Choice]:
    """Learning rate, weight decay, teacher momentum and temperatures over the run."""
    slow = "a fast rise was the main cause of collapse, over a third of the run or more it was stable"
    return {
        "learning_rate": Choice(learning_rate, f"for size {size}; 1e-3 and below is stable, 1e-2 collapses"),
        "final_learning_rate": Choice(learning_rate / 100, "cosine decay to a hundredth"),
        "warmup_steps": Choice(max(1, steps // 10), "a tenth of the run, linear"),
        "layer_decay": Choice(0.9, "rate of each layer relative to the next: the published method's")
        if steps > SHORT_RUN
        else Choice(1.0, "all layers at one rate: a short run has to move the first layers too"),
        "weight_decay": Choice(0.04, "start of the cosine rise, the published method's"),
        "final_weight_decay": Choice(0.2, "half of the published 0.4, for runs shorter than its 150,000 steps"),
        "gradient_clip": Choice(3.0, "norm; the published method's"),
        **teacher_momentum_choices(steps),
        "student_temperature": Choice(0.1, "as in DINO"),
        **teacher_temperature_choices(steps),
        "teacher_temperature_steps": Choice(math.ceil(0.4 * steps), slow),
    }


def teacher_momentum_choices(steps: int) -> dict[str, Choice]:
    """The teacher's moving average: over the last ten to hundreds of steps, as the length of the run allows."""
    if steps <= SHORT_RUN:
        why = f"a run of {steps} steps is over before a slower teacher has left its random start"
        return {"teacher_momentum": Choice(0.9, why), "final_teacher_momentum": Choice(0.99, why)}
    return {
        "teacher_momentum": Choice(0.992, "start of the teacher's moving average"),
        "final_teacher_momentum": Choice(0.998, "not 1: the teacher fell behind and the patch loss rose again"),
    }


def teacher_temperature_choices(steps: int) -> dict[str, Choice]:
    """Sharpness of the teacher's targets."""
    if steps <= SHORT_RUN:
        why = "sharper than DINO's: in a short run soft targets keep the patch loss at ln K"
        return {"teacher_temperature": Choice(0.03, why), "final_teacher_temperature": Choice(0.04, why)}
    return {
        "teacher_temperature": Choice(0.04, "start: sharp targets"),
        "final_teacher_temperature": Choice(0.07, "as in DINO"),
    }


def gram_choices(steps: int) -> dict[str, Choice]:
    """Whether late tokens are held to the similarities of earlier ones."""
    if steps <= LONG_RUN:
        why = f"off: dense features decay in runs far longer than {steps} steps (DINOv3)"
        return {"gram_weight": Choice(0.0, why), "gram_start_step": Choice(0, "unused, as gram_weight is 0")}
    return {
        "gram_weight": Choice(2.0, "as in DINOv3: in long runs dense features decay while the class loss still falls"),
        "gram_start_step": Choice(2 * steps // 3, "after two thirds of the run: dense features are learned by then"),
    }


def loss_choices() -> dict[str, Choice]:
    """Centring, masks and the losses' weights."""
    return {
        "centering": Choice("sinkhorn", "patch targets use all prototypes in every batch, where a running centre lags (SwAV)"),
        "mask_ratio": Choice((0.3, 0.6), "share of masked tokens; a little below the published 0.4 to 0.7, for smaller crops"),
        "class_weight": Choice(0.1, "registration uses the patch tokens; at 1 the class loss of small batches drowned theirs"),
        "patch_weight": Choice(1.0, "the unit the other weights are relative to"),
        "visible_weight": Choice(1.0, "with masked tokens alone the patch loss stays at ln K for long; visible ones start it"),
        "koleo_weight": Choice(0.1, "spreads class tokens, the published method's"),
    }  # fmt: skip


def view_choices() -> dict[str, Choice]:
    """Geometry and intensity changes of the views."""
    return {
        "zoom": Choice((0.8, 1.25), "scale of a crop, drawn evenly in its logarithm: patients differ in size"),
        "rotation_degrees": Choice(10.0, "largest rotation about each axis: patients lie almost alike"),
        "intensity_strength": Choice(0.6, "of the published strength, at which the patch loss of short runs stood still"),
        "remap_probability": Choice(0.5, "half of the views: what is bright in one contrast is dark in another"),
        "gin_probability": Choice(0.5, "half of the views: the published change of contrast that depends on the surroundings"),
        "low_resolution_probability": Choice(0.0, "off: whether it helps has not been measured; blur is part of the changes"),
        "window_probability": Choice(0.0, "off: whether it helps has not been measured; curves are part of the changes"),
        "foreground_share": Choice(0.7, "share of crops centred on the body, as the published 70 % foreground"),
        "modality_balance": Choice(
            0.5, "half way from equal cases to equal modalities: the rarer is not drowned, nor worn out"
        ),
    }


def further_view_choices(crop, patch) -> dict[str, Choice]:
    """Further views of a crop for the class loss."""
    off = "off: registration uses the patch tokens, which these views do not train; each costs its tokens' time"
    local = tuple(p * max(1, n // p // 2) for n, p in zip(crop, patch))
    return {
        "global_crops": Choice(0, off),
        "global_scale": Choice((0.6, 1.0), "edge relative to the crop's, as published; unused, as global_crops is 0"),
        "local_crops": Choice(0, off),
        "local_crop_size": Choice(local, "half as many tokens as the crop along each axis; unused, as local_crops is 0"),
        "local_scale": Choice((0.3, 0.6), "edge relative to the crop's: about the voxels of the crop; unused likewise"),
    }  # fmt: skip


def worker_choice(gpu_memory_gb: float) -> Choice:
    """Processes that load and cut crops."""
    if gpu_memory_gb < LARGE_GPU_GB:
        return Choice(1, "on a CPU the network needs the other cores")
    return Choice(8, "enough to keep a GPU busy")


def sharding_choice(size: str, network: NetworkPlan) -> Choice:
    """Whether several processes hold what belongs to the weights in shares."""
    gb = WEIGHT_BYTES * encoder_parameters(network) / GB
    what = f"weights, gradients, moments and teacher of PRIMUS {size} take {gb:.1f} GB"
    if size in SHARDED_SIZES:
        return Choice(True, f"{what}, of which each of several processes holds its share; one alone holds all")
    return Choice(False, f"off: {what}, little beside a batch, and gathering shares takes time")


def head_choices(size: str) -> dict[str, Choice]:
    """Widths of the projection heads."""
    small = size == "XS"
    why = "a quarter of DINO's, in proportion to the network" if small else "as in DINO"
    return {
        "head_hidden_dim": Choice(512 if small else 2048, why),
        "head_bottleneck_dim": Choice(128 if small else 256, "half of DINO's" if small else why),
    }
