"""Features and registration sections for images that belong to no planned data set, from their grids alone."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from nnssl_reg.geometry.grid import Grid
from nnssl_reg.planning.choice import Choice, section
from nnssl_reg.planning.plans import FeaturesPlan, ImagePlan, NetworkPlan, RegistrationPlan
from nnssl_reg.planning.rules_image import DataSummary, crop_margin, patch_size, target_spacing
from nnssl_reg.planning.rules_network import network_choices, network_size
from nnssl_reg.planning.rules_registration import features_choices, registration_choices, window_size
from nnssl_reg.planning.rules_shared import encoder_spacing, shared_token_shifts


@dataclass(frozen=True)
class RegistrationSettings:
    """What a registration needs of the plans. image: how a model's encoder sees the images, None without one."""

    features: FeaturesPlan
    registration: RegistrationPlan
    reasons: dict[str, str] = field(default_factory=dict)
    image: ImagePlan | None = None


def plan_images(grids: Sequence[Grid], gpu_memory_gb: float = 8.0) -> RegistrationSettings:
    """The sections that the planner's own rules give a data set of images on these grids, whole fields of view as body."""
    data = _summary(grids)
    spacing = target_spacing(data).value
    patch = patch_size(spacing)
    network = section(NetworkPlan, network_choices(network_size(data.cases, gpu_memory_gb), patch))
    features = section(FeaturesPlan, features_choices(data, spacing, _shape(data, spacing), network, gpu_memory_gb))
    return RegistrationSettings(features, section(RegistrationPlan, registration_choices(data, features)))


def plan_images_for(image: ImagePlan, network: NetworkPlan, grids: Sequence[Grid], gpu_memory_gb: float = 8.0
                    ) -> RegistrationSettings:  # fmt: skip
    """The sections for images on these grids and an encoder that was trained on others (its image and network sections).

    Of the model stays what its weights know: the network, and how each channel is normalised. MIND and the registration are
    planned for the images, as without a model. The encoder's spacing follows from the images' fields of view and spacings, and
    with it the margin of the crop, the windows and the shifts.
    """
    data = _summary(grids)
    settings = plan_images(grids, gpu_memory_gb)
    spacing = encoder_spacing(data, network, gpu_memory_gb)
    shape = _shape(data, spacing.value)
    margin = crop_margin(spacing.value, network.patch_size)
    window = window_size(data, spacing.value, network, gpu_memory_gb)
    shifts = shared_token_shifts(shape, network, gpu_memory_gb)
    kept = Choice(image.channels, "the model's: its weights know intensities brought to -1..1 in this way")
    median = Choice(tuple(int(n) for n in shape), "the median field of view of the images at that spacing")
    choices = {"image.spacing_mm": spacing, "image.median_shape": median, "image.crop_margin_mm": margin,
               "image.channels": kept, "features.window_size": window, "features.token_shifts": shifts}  # fmt: skip
    return RegistrationSettings(
        replace(settings.features, window_size=window.value, token_shifts=shifts.value), settings.registration,
        {name: choice.reason for name, choice in choices.items()},
        ImagePlan(spacing.value, median.value, margin.value, kept.value),
    )  # fmt: skip


def _summary(grids: Sequence[Grid]) -> DataSummary:
    canonical = [grid.canonical() for grid in grids]
    return DataSummary(np.array([g.spacing_mm for g in canonical]), np.array([g.extent_mm for g in canonical]))


def _shape(data: DataSummary, spacing_mm) -> np.ndarray:
    """Voxels of the median field of view at a spacing."""
    return np.maximum(1, np.round(data.median_extent_mm / np.array(spacing_mm))).astype(int)
