"""What a registration uses: features, model, device and planned numbers, chosen the same way by the command and from Python."""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property

import torch

from nnssl_reg.commands.pair_features import FeatureStore, Model
from nnssl_reg.geometry.grid import Grid
from nnssl_reg.planning.image_plan import RegistrationSettings, plan_images
from nnssl_reg.planning.overrides import apply_overrides
from nnssl_reg.planning.plans import FeaturesPlan, RegistrationPlan
from nnssl_reg.planning.regularisation import regularised
from nnssl_reg.pretraining.checkpoint import versions

LIBRARIES = ("nnssl_reg", "torch", "numpy", "SimpleITK", "nibabel", "numba")
KINDS = ("dino", "mind", "dino+mind")


@dataclass(frozen=True)
class Setup:
    """All that decides a registration besides the images. diffeomorphic: whether the field is made exactly invertible."""

    kind: str
    model: Model | None
    device: torch.device
    features: FeaturesPlan
    registration: RegistrationPlan
    diffeomorphic: bool = False

    def store(self, volume: int | None = None) -> FeatureStore:
        """Where the features of images come from; volume: which one of 4-D files."""
        return FeatureStore(self.kind, self.features, self.model, self.device, volume)

    @cached_property
    def record(self) -> dict:
        """The settings as sidecars and summary.json keep them."""
        return {
            "features": self.kind,
            "model": None if self.model is None else str(self.model.folder),
            "model_fingerprint": None if self.model is None else weights_fingerprint(self.model.encoder),
            "diffeomorphic": self.diffeomorphic,
            "device": str(self.device),
            "plans": {"features": asdict(self.features), "registration": asdict(self.registration)},
            "versions": versions(LIBRARIES),
        }

    def told(self) -> str:
        """Two lines for the console: the features, and the registration."""
        f, r = self.features, self.registration
        parts = []
        if self.kind != "mind":
            parts.append(f"{f.components} principal components of the tokens of {self.model.folder}")
        if self.kind != "dino":
            parts.append(f"MIND-SSC (12 channels, radius {f.mind_radius}, dilation {f.mind_dilation}) at "
                         f"{_times(f.mind_spacing_mm)} mm, cells of {_times(f.mind_stride)} voxels")  # fmt: skip
        ways = ", symmetric" * r.symmetric + ", diffeomorphic" * self.diffeomorphic
        return (f"Features: {' and '.join(parts)}\nRegistration: initial alignment {r.init}, search within "
                f"{r.search_radius_mm:g} mm, {r.iterations} iterations of Adam, smoothness {r.smoothness:g}{ways}")  # fmt: skip


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
) -> Setup:
    """The model's stored sections, or the planner's rules applied to images on these grids; then the choices given.

    overrides: "section.name=value". Raises ValueError for features without their model, and for choices that do not exist.
    """
    kind = kind or ("mind" if model is None else "dino")
    if kind not in KINDS:
        raise ValueError(f"The features '{kind}' are none of {', '.join(KINDS)}.")
    if kind != "mind" and model is None:
        raise ValueError(f"The features '{kind}' need a model that nnssl_train_dino wrote; 'mind' needs none.")
    if regularisation is not None and any(o.partition("=")[0].strip() == "registration.smoothness" for o in overrides):
        raise ValueError("Give either a regularisation (weak, medium, strong) or a value of registration.smoothness, not both.")
    if model is None:
        plans = plan_images(grids)
    else:
        plans = RegistrationSettings(model.configuration.features, model.configuration.registration)
    plans = apply_overrides(plans, list(overrides))
    registration = regularised(plans.registration, regularisation)
    registration = registration if init is None else replace(registration, init=init)
    return Setup(kind, model, device, plans.features, registration, diffeomorphic)


def device_called(name: str | None) -> torch.device:
    """The device of a name, None: a GPU if there is one. Raises ValueError where it is not there."""
    device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if not available.get(device.type, False):
        raise ValueError(f"-device {name}: there is no such device here; use -device cpu.")
    return device


def weights_fingerprint(network: torch.nn.Module) -> str:
    """A digest of all weights, by which a model is known again wherever its folder is."""
    digest = hashlib.blake2b(digest_size=16)
    for name, values in sorted(network.state_dict().items()):
        digest.update(f"{name} {tuple(values.shape)} {values.dtype}".encode())
        digest.update(values.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def _times(values) -> str:
    return " x ".join(f"{v:g}" for v in values)
