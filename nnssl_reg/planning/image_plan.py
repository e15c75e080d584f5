"""Features and registration sections for images that belong to no planned data set, from their grids alone."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from nnssl_reg.geometry.grid import Grid
from nnssl_reg.planning.choice import section
from nnssl_reg.planning.plans import FeaturesPlan, NetworkPlan, RegistrationPlan
from nnssl_reg.planning.rules_image import DataSummary, patch_size, target_spacing
from nnssl_reg.planning.rules_network import network_choices, network_size
from nnssl_reg.planning.rules_registration import features_choices, registration_choices


@dataclass(frozen=True)
class RegistrationSettings:
    """What a registration needs of the plans."""

    features: FeaturesPlan
    registration: RegistrationPlan
    reasons: dict[str, str] = field(default_factory=dict)


def plan_images(grids: Sequence[Grid], gpu_memory_gb: float = 8.0) -> RegistrationSettings:
    """The sections that the planner's own rules give a data set of images on these grids, whole fields of view as body."""
    canonical = [grid.canonical() for grid in grids]
    data = DataSummary(np.array([g.spacing_mm for g in canonical]), np.array([g.extent_mm for g in canonical]))
    spacing = target_spacing(data).value
    patch = patch_size(spacing)
    network = section(NetworkPlan, network_choices(network_size(data.cases, gpu_memory_gb), patch))
    shape = np.maximum(1, np.round(data.median_extent_mm / np.array(spacing))).astype(int)
    features = section(FeaturesPlan, features_choices(data, spacing, shape, network, gpu_memory_gb))
    return RegistrationSettings(features, section(RegistrationPlan, registration_choices(data, features)))
