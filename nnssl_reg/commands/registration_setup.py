"""What a registration uses: features, model, device and planned numbers, chosen the same way by the command and from Python."""

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path

import torch

from nnssl_reg.commands.pair_features import FeatureStore, Model
from nnssl_reg.geometry.grid import Grid
from nnssl_reg.imageio.images import read_grid
from nnssl_reg.imageio.pairs import Pair
from nnssl_reg.planning.image_plan import RegistrationSettings, plan_images, plan_images_for
from nnssl_reg.planning.memory import GB
from nnssl_reg.planning.overrides import apply_overrides
from nnssl_reg.planning.plans import FeaturesPlan, RegistrationPlan
from nnssl_reg.planning.regularisation import regularised
from nnssl_reg.planning.tuned_settings import TunedSettings, read_settings, with_tuned
from nnssl_reg.pretraining.checkpoint import versions

log = logging.getLogger("nnssl_reg")

LIBRARIES = ("nnssl_reg", "torch", "numpy", "SimpleITK", "nibabel", "numba")
CPU_GB = 8.0  # what is planned for without a GPU
KINDS = ("dino", "mind", "dino+mind", "auto")
PROJECTIONS = ("discriminant", "pca")


@dataclass(frozen=True)
class Setup:
    """All that decides a registration besides the images.

    diffeomorphic: whether the field is made exactly invertible; tuned: how a file of settings says it was found.
    """

    kind: str
    model: Model | None
    device: torch.device
    features: FeaturesPlan
    registration: RegistrationPlan
    diffeomorphic: bool = False
    tuned: str | None = None

    def store(self, volume: int | None = None) -> FeatureStore:
        """Where the features of images come from; volume: which one of 4-D files."""
        return FeatureStore(self.kind, self.features, self.model, self.device, volume)

    @cached_property
    def record(self) -> dict:
        """The settings as sidecars and summary.json keep them."""
        return {
            "features": self.kind,
            "model": None if self.model is None else str(self.model.folder),
            "model_fingerprint": None if self.model is None else self.model.fingerprint,
            "diffeomorphic": self.diffeomorphic,
            "tuned": self.tuned,
            "device": str(self.device),
            "plans": self._plans(),
            "versions": versions(LIBRARIES),
        }

    def _plans(self) -> dict:
        """The planned sections that decide the result."""
        plans = {"features": asdict(self.features), "registration": asdict(self.registration)}
        seen = {} if self.kind == "mind" or self.model.card is None else {"image": asdict(self.model.configuration.image)}
        return seen | plans

    def told(self) -> str:
        """Two lines for the console: the features, and the registration."""
        f, r = self.features, self.registration
        parts = []
        if self.kind != "dino":
            parts.append(f"MIND-SSC ({12 * len(f.mind_scales)} channels; radius, dilation {_scales(f.mind_scales)}) at "
                         f"{_times(f.mind_spacing_mm)} mm, cells of {_times(f.mind_stride)} voxels"
                         + ", with local intensity where both agree on contrast" * (f.intensity_share > 0)
                         + ", with tissue context" * (f.context_share > 0))  # fmt: skip
        if self.kind != "mind":
            image, patch = self.model.configuration.image, self.model.configuration.network.patch_size
            of_what = "principal" if f.projection == "pca" else "discriminant"
            also = "for CT beside another modality also " if self.kind == "auto" else ""
            parts.append(f"{also}{f.components} {of_what} components of the model's tokens ({_times(patch)} voxels "
                         f"of {_times(image.spacing_mm)} mm)")  # fmt: skip
        ways = ", symmetric" * r.symmetric + ", diffeomorphic" * self.diffeomorphic
        return (f"Features: {'; '.join(parts)}\nRegistration: initial alignment {r.init}, search within "
                f"{r.search_radius_mm:g} mm, {r.iterations} iterations of Adam, smoothness {r.smoothness:g}{ways}"
                + (f"\nSettings: {self.tuned}" if self.tuned else ""))  # fmt: skip


def _scales(scales) -> str:
    return " and ".join(f"{radius}, {dilation}" for radius, dilation in scales)


def make_setup(
    grids: Sequence[Grid],
    device: torch.device,
    *,
    kind: str | None = None,
    model: Model | None = None,
    init: str | None = None,
    overrides: Sequence[str] = (),
    regularisation: str | None = None,
    diffeomorphic: bool = False,
    settings: str | Path | None = None,
) -> Setup:
    """The sections stored with a model that was trained here, else the planner's rules applied to images on these grids.

    Then the choices given. A shared model was trained on other images: of its plans stays what its weights know.
    settings: a file of nnssl_tune_registration; overrides: "section.name=value", which come after it. Raises ValueError for
    features without their model, and for choices that do not exist.
    """
    kind = kind or ("mind" if model is None else model.default_features)
    if kind not in KINDS:
        raise ValueError(f"The features '{kind}' are none of {', '.join(KINDS)}.")
    if kind != "mind" and model is None:
        raise ValueError(f"The features '{kind}' need a model that nnssl_train_dino wrote; 'mind' needs none.")
    if regularisation is not None and any(o.partition("=")[0].strip() == "registration.smoothness" for o in overrides):
        raise ValueError("Give either a regularisation (weak, medium, strong) or a value of registration.smoothness, not both.")
    plans = _planned(grids, device, model)
    tuned = None if settings is None else _tuned(settings, kind)
    if tuned is not None:
        plans = with_tuned(plans, tuned.values, tuned.reason, str(settings))
    plans = apply_overrides(plans, list(overrides))
    if plans.features.projection not in PROJECTIONS:
        raise ValueError(f"features.projection should be {' or '.join(PROJECTIONS)}, got '{plans.features.projection}'; "
                         "change it in the plans or with --set features.projection=NAME.")  # fmt: skip
    if plans.image is not None:
        model = replace(model, configuration=replace(model.configuration, image=plans.image))
    registration = regularised(plans.registration, regularisation)
    registration = registration if init is None else replace(registration, init=init)
    return Setup(kind, model, device, plans.features, registration, diffeomorphic, None if tuned is None else tuned.reason)


def _tuned(path: str | Path, kind: str) -> TunedSettings:
    """The settings of a file; warns where they were tuned with other features."""
    found = read_settings(Path(path).expanduser())
    if found.features != kind:
        log.warning("%s was tuned with %s features, and %s are used here.", path, found.features, kind)
    return found


def readable_grids(pairs: list[Pair]) -> list[Grid]:
    """The grids of all pairs whose headers can be read; the others are reported when it is their turn.

    Raises ValueError if there is none.
    """
    grids, problems = [], []
    for pair in pairs:
        try:
            grids += [read_grid(pair.fixed), read_grid(pair.moving)]
        except (ValueError, OSError) as error:
            problems.append(str(error))
    if not grids:
        raise ValueError("No pair can be read: " + "\n".join(problems))
    return grids


def _planned(grids: Sequence[Grid], device: torch.device, model: Model | None) -> RegistrationSettings:
    if model is None:
        return plan_images(grids)
    if model.card is None:
        return RegistrationSettings(model.configuration.features, model.configuration.registration)
    on_gpu = device.type == "cuda"
    memory = torch.cuda.get_device_properties(device).total_memory / GB if on_gpu else CPU_GB
    return plan_images_for(model.configuration.image, model.configuration.network, grids, memory)


def device_called(name: str | None) -> torch.device:
    """The device of a name, None: a GPU if there is one. Raises ValueError where it is not there."""
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError as error:
        raise ValueError(f"-device {name}: no device is called so; use cpu, cuda, cuda:1 or mps.") from error
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if not available.get(device.type, False):
        raise ValueError(f"-device {name}: there is no such device here; use -device cpu.")
    count = torch.cuda.device_count() if device.type == "cuda" else 1
    if (device.index or 0) >= count:
        there = "one GPU, cuda:0" if count == 1 else f"{count} GPUs, cuda:0 ... cuda:{count - 1}"
        raise ValueError(f"-device {name}: there is no such device here; torch sees {there}.")
    return device


def _times(values) -> str:
    return " x ".join(f"{v:g}" for v in values)
