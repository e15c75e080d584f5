"""The plans: every number a run needs, in pipeline order, each with its reason."""

from dataclasses import asdict, dataclass, field
from typing import Any

PLANS_VERSION = 1


@dataclass(frozen=True)
class ChannelPlan:
    """How one channel (modality) is normalised. Intensities outside lower..upper are clipped, then scaled to -1..1.

    lower, upper are in the image's own units for scheme "ct"; for "mr" they are null and percentiles of each image serve.
    foreground_above: a voxel belongs to the body above this intensity (null: each image's own, planning/foreground.py).
    """

    name: str
    normalization: str
    lower: float | None
    upper: float | None
    foreground_above: float | None


@dataclass(frozen=True)
class ImagePlan:
    """From a raw image to the network's input. spacing_mm: along the canonical (closest to RAS) axes."""

    spacing_mm: tuple[float, float, float]
    median_shape: tuple[int, int, int]  # of the cropped cases at spacing_mm, voxels
    crop_margin_mm: float
    channels: dict[str, ChannelPlan]  # key: channel index as in file names without leading zeros, "0"


@dataclass(frozen=True)
class NetworkPlan:
    """PRIMUS. patch_size: voxels per token along the canonical axes."""

    embed_dim: int
    depth: int
    num_heads: int
    patch_size: tuple[int, int, int]
    register_tokens: int
    drop_path_rate: float


@dataclass(frozen=True)
class PretrainingPlan:
    """DINO/iBOT pretraining. Sizes in voxels at the plan's spacing, schedules in optimiser steps."""

    crop_size: tuple[int, int, int]
    batch_size: int
    steps: int
    steps_per_epoch: int
    prototypes: int
    head_hidden_dim: int
    head_bottleneck_dim: int
    learning_rate: float
    final_learning_rate: float
    warmup_steps: int
    layer_decay: float
    weight_decay: float
    final_weight_decay: float
    gradient_clip: float
    teacher_momentum: float
    final_teacher_momentum: float
    student_temperature: float
    teacher_temperature: float
    final_teacher_temperature: float
    teacher_temperature_steps: int  # length of the rise
    centering: str  # "sinkhorn" or "centre"
    mask_ratio: tuple[float, float]
    loss_tokens: int  # per crop, masked and as many visible tokens enter the patch losses at most
    class_weight: float
    patch_weight: float
    visible_weight: float
    koleo_weight: float
    zoom: tuple[float, float]
    rotation_degrees: float
    intensity_strength: float  # 0 switches intensity changes off, 1 is the published strength
    foreground_share: float  # share of crops centred on a foreground voxel
    workers: int
    gram_weight: float = 0.0  # of the Gram loss; 0: none
    gram_start_step: int = 0  # from here on tokens are held to the similarities that they have now
    modality_balance: float = 0.0  # 0: every case is seen equally often, 1: every modality
    remap_probability: float = 0.5  # of a random intensity curve, in each view
    gin_probability: float = 0.5  # of random shallow convolutions, in each view
    low_resolution_probability: float = 0.0  # of voxels two or three times as coarse, in each view
    window_probability: float = 0.0  # of a random intensity window, in each view
    global_crops: int = 0  # further views of each crop for the class loss, of crop_size
    global_scale: tuple[float, float] = (0.6, 1.0)  # their edge relative to the crop's
    local_crops: int = 0  # the same, of local_crop_size
    local_crop_size: tuple[int, int, int] = (0, 0, 0)  # voxels
    local_scale: tuple[float, float] = (0.3, 0.6)
    sharded: bool = False  # several processes of a run each hold a share of weights, gradients, moments and teacher


@dataclass(frozen=True)
class FeaturesPlan:
    """Feature maps for registration."""

    window_size: tuple[int, int, int]  # voxels; larger images are encoded in overlapping windows
    window_overlap: float
    token_shifts: tuple[int, int, int]  # passes per axis at sub-token shifts; 1 = one forward pass
    components: int
    mind_spacing_mm: tuple[float, float, float]
    mind_scales: tuple[tuple[int, int], ...]  # radius and dilation in voxels, 12 channels each
    mind_noise: float  # added to the local variance, in units of its mean
    mind_noise_ct: float  # the same where both images are CT
    mind_stride: tuple[int, int, int]  # voxels of mind_spacing_mm per feature cell
    projection: str = "discriminant"  # of the tokens onto the components: that, or "pca"
    intensity_share: float = 0.33  # of local intensity in its and MIND's squared distance, where images agree on contrast
    context_share: float = 0.0  # of tissue context in its and MIND's squared distance, where images differ in contrast
    dino_share: float = 0.25  # of the learned features in their and MIND's squared distance, where both are used


@dataclass(frozen=True)
class RegistrationPlan:
    """ConvexAdam. Cells are those of the feature maps (the fine grid)."""

    coarse_spacing_mm: float
    search_radius_mm: float
    rounds: int
    iterations: int
    learning_rate: float
    smoothness: float
    smoothing_passes: int
    symmetric: bool  # also register moving to fixed from the last round on: the mean of one field and the inverse of the other
    init: str  # "auto", "identity", "center", "moments", "affine"
    voxel_iterations: int = (
        30  # of Adam at every voxel, where local intensity tells more than MIND, see voxel_refinement; 0: none
    )
    voxel_smoothness: float = 0.3  # weight of the diffusion regulariser there

    @property
    def on_cells(self) -> dict[str, Any]:
        """What convex_adam takes: all but the initial alignment and what comes after, at voxels."""
        return {key: value for key, value in asdict(self).items() if key != "init" and not key.startswith("voxel_")}


@dataclass(frozen=True)
class Configuration:
    """One configuration: the sections in pipeline order, and why each number is what it is ("section.field" -> sentence)."""

    image: ImagePlan
    network: NetworkPlan
    pretraining: PretrainingPlan
    features: FeaturesPlan
    registration: RegistrationPlan
    reasons: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Plans:
    """All configurations of one data set, as stored in nnsslPlans.json."""

    dataset_name: str
    plans_name: str
    configurations: dict[str, Configuration]
    version: int = PLANS_VERSION
