"""The planner: from a fingerprint and the memory at hand to plans, every number with its reason."""

import math

import numpy as np

from nnssl_reg.planning.choice import Choice, numbers, section
from nnssl_reg.planning.fingerprint import Fingerprint
from nnssl_reg.planning.plans import (
    Configuration,
    FeaturesPlan,
    ImagePlan,
    NetworkPlan,
    Plans,
    PretrainingPlan,
    RegistrationPlan,
)
from nnssl_reg.planning.rules_image import (
    DataSummary,
    channel_plans,
    crop_margin,
    median_shape,
    patch_size,
    target_spacing,
)
from nnssl_reg.planning.rules_network import (
    SIZES,
    batch_size,
    crop_size,
    loss_tokens,
    network_choices,
    network_size,
    prototypes,
)
from nnssl_reg.planning.rules_pretraining import (
    crops_per_pass,
    further_view_choices,
    gram_choices,
    head_choices,
    loss_choices,
    schedule_choices,
    sharding_choice,
    steps_choices,
    view_choices,
    worker_choice,
)
from nnssl_reg.planning.rules_registration import features_choices, registration_choices

TOO_LITTLE = 1 / 16  # share of the body in a crop below which 3d_lowres is planned too
LOWRES_COVERS = 1 / 4  # share of the body in a crop of 3d_lowres, as in nnU-Net
LOWRES_AT_MOST = 2.0  # times coarser than 3d_fullres: tokens beyond that see no organs


def plan(fingerprint: Fingerprint, gpu_memory_gb: float, spacing_mm=None, plans_name: str = "nnsslPlans") -> Plans:
    """Plans for a data set. gpu_memory_gb: memory to plan for (below 16: a CPU or a small GPU).

    spacing_mm: target spacing (3,) along the canonical axes instead of the rule's. Raises ValueError for senseless values.
    """
    if not gpu_memory_gb >= 1:
        raise ValueError(f"-gpu_memory_target is in GB and at least 1, got {gpu_memory_gb:g}.")
    if spacing_mm is not None and not all(0 < s < math.inf for s in spacing_mm):
        raise ValueError(f"-overwrite_target_spacing takes three positive lengths in mm, got {list(spacing_mm)}.")
    data = DataSummary.of(fingerprint)
    spacing = target_spacing(data, spacing_mm)
    fullres = _configuration(fingerprint, data, spacing, gpu_memory_gb)
    configurations = {"3d_fullres": fullres}
    coverage = crop_coverage(fullres)
    if coverage < TOO_LITTLE:
        coarser = lowres_spacing(spacing.value, coverage)
        configurations["3d_lowres"] = _configuration(fingerprint, data, coarser, gpu_memory_gb)
    return Plans(fingerprint.dataset_name, plans_name, configurations)


def crop_coverage(configuration: Configuration) -> float:
    """Share of the median case's volume in one training crop."""
    return math.prod(configuration.pretraining.crop_size) / math.prod(configuration.image.median_shape)


def lowres_spacing(spacing_mm, coverage: float) -> Choice:
    """The spacing at which a crop of the same voxels covers LOWRES_COVERS of the body, or comes as near to it as allowed."""
    factor = min(LOWRES_AT_MOST, (LOWRES_COVERS / coverage) ** (1 / 3))
    coarser = tuple(round(float(s) * factor, 2) for s in spacing_mm)
    return Choice(coarser, f"a crop at {numbers(spacing_mm)} mm covers {coverage:.1%} of the body, less than {TOO_LITTLE:.1%}; "
                           f"{factor:.2g} times coarser it covers about {coverage * factor**3:.0%}")  # fmt: skip


def _configuration(fingerprint: Fingerprint, data: DataSummary, spacing: Choice, gpu_memory_gb: float) -> Configuration:
    """One configuration at a spacing: the sections in pipeline order, each rule's reason collected."""
    patch = patch_size(spacing.value)
    image = {
        "spacing_mm": spacing,
        "median_shape": median_shape(data, spacing.value),
        "crop_margin_mm": crop_margin(spacing.value, patch.value),
        "channels": channel_plans(fingerprint),
    }
    shape = image["median_shape"].value
    size = network_size(data.cases, gpu_memory_gb)
    network = network_choices(size, patch)
    network_plan = section(NetworkPlan, network)
    pretraining = _pretraining_choices(data, shape, size.value, network_plan, gpu_memory_gb)
    features = features_choices(data, spacing.value, shape, network_plan, gpu_memory_gb)
    features_plan = section(FeaturesPlan, features)
    registration = registration_choices(data, features_plan)
    sections = {
        "image": image,
        "network": network,
        "pretraining": pretraining,
        "features": features,
        "registration": registration,
    }
    return Configuration(
        section(ImagePlan, image),
        network_plan,
        section(PretrainingPlan, pretraining),
        features_plan,
        section(RegistrationPlan, registration),
        {f"{name}.{field}": choice.reason for name, choices in sections.items() for field, choice in choices.items()},
    )


def _pretraining_choices(data: DataSummary, shape, size: str, network: NetworkPlan, gpu_memory_gb: float) -> dict[str, Choice]:
    """Every field of the pretraining section."""
    crop = crop_size(shape, network, gpu_memory_gb)
    rows = loss_tokens(crop.value, network.patch_size, gpu_memory_gb)
    heads = prototypes(data.cases, shape, network.patch_size, rows.value)
    batch = batch_size(network, crop.value, rows.value, heads.value, gpu_memory_gb)
    steps = steps_choices(crops_per_pass(data.cases, shape, crop.value), batch.value, gpu_memory_gb)
    return {
        "crop_size": crop,
        "batch_size": batch,
        **steps,
        "prototypes": heads,
        "loss_tokens": rows,
        **head_choices(size),
        **schedule_choices(steps["steps"].value, SIZES[size].learning_rate, size),
        **loss_choices(),
        **view_choices(),
        **further_view_choices(crop.value, network.patch_size),
        "workers": worker_choice(gpu_memory_gb),
        **gram_choices(steps["steps"].value),
        "sharded": sharding_choice(size, network),
    }


def largest_extent_mm(fingerprint: Fingerprint) -> tuple[float, float, float]:
    """Largest foreground extent of any case along each canonical axis, mm."""
    return tuple(float(v) for v in np.max(DataSummary.of(fingerprint).extents_mm, axis=0))
