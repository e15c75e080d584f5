"""Feature maps of the images of a run, each image encoded once however many pairs it is in, within bounds of memory."""

import hashlib
import logging
import math
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import nn

from nnssl_reg.commands.image_kind import channel_key, doubt_of, seems_ct, upright_image, wanted_smoothing_mm
from nnssl_reg.commands.machine import free_memory
from nnssl_reg.features.canonical import joint_canonical
from nnssl_reg.features.discriminant import joint_discriminant
from nnssl_reg.features.encode import encode
from nnssl_reg.features.local_intensity import contrast_agreement, local_intensity, voxel_intensity
from nnssl_reg.features.mind import mind_features
from nnssl_reg.features.pca import joined, joint_pca
from nnssl_reg.features.soft_tissue import soft_tissue_contrast, with_lungs
from nnssl_reg.features.tissue_context import tissue_context
from nnssl_reg.geometry.displacement import DisplacementField
from nnssl_reg.geometry.grid import Grid
from nnssl_reg.geometry.image import FeatureMap, Image
from nnssl_reg.geometry.sampling import resample, smooth_gaussian
from nnssl_reg.imageio.images import read_image
from nnssl_reg.imageio.model_folder import WEIGHTS, sha256
from nnssl_reg.planning.foreground import is_ct
from nnssl_reg.planning.memory import CONTEXT_VARIATES
from nnssl_reg.planning.plans import Configuration, FeaturesPlan, RegistrationPlan
from nnssl_reg.preprocessing.preprocess_case import preprocess_image
from nnssl_reg.pretraining.model_card import ModelCard
from nnssl_reg.registration.cells import feature_scale

log = logging.getLogger("nnssl_reg")
ALIGNING_SCALES = ((1, 2),)  # of the MIND features that the initial alignment compares: the published ones
CELLS_SMOOTHED = 0.5  # of a feature cell: noise is not smoothed further, for features are means over cells anyway
KEPT_SHARE, KEPT_MOST = 0.2, 2**30  # of the free memory, and bytes, for images and features that a later pair may want again


@dataclass(frozen=True)
class Model:
    """A trained encoder, what it was trained with, where it is from, and, if it is a shared one, its card.

    network: the encoder, or what loads it when it is first needed: pairs that do without it need not wait for it.
    """

    folder: Path
    configuration: Configuration
    network: nn.Module | Callable[[], nn.Module]
    card: ModelCard | None = None

    @cached_property
    def encoder(self) -> nn.Module:
        """The encoder, ready for inference."""
        return self.network if isinstance(self.network, nn.Module) else self.network()

    @cached_property
    def fingerprint(self) -> str:
        """A digest of all weights, by which a model is known again wherever its folder is."""
        if self.card is not None:
            return sha256(self.folder / WEIGHTS)
        digest = hashlib.blake2b(digest_size=16)
        for name, values in sorted(self.encoder.state_dict().items()):
            digest.update(f"{name} {tuple(values.shape)} {values.dtype}".encode())
            digest.update(values.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        return digest.hexdigest()

    @property
    def default_features(self) -> str:
        """The features to use where nobody says."""
        return "dino+mind" if self.card is None else self.card.default_features


@dataclass(frozen=True)
class Look:
    """How both images of a pair are looked at: kind "mind", "dino" or "dino+mind"; noise: of MIND, see FeaturesPlan.

    smoothing_mm: of what hand-made features see, in both images alike, where one is noisy.
    """

    kind: str
    noise: float
    smoothing_mm: float = 0.0


@dataclass(frozen=True)
class ImageFeatures:
    """An image as read, its MIND features and local intensity as the plan wants them (or none).

    tokens: the learned features, once a pair asked for them. aligning: the MIND features of the initial alignment, likewise.
    """

    image: Image
    mind: FeatureMap
    intensity: FeatureMap | None
    tokens: FeatureMap | None
    aligning: FeatureMap | None = None


class FeatureStore:
    """Encodes images on demand and keeps them while memory allows: the last two always, older ones within kept_bytes.

    kind: of features, for all pairs, or "auto": "dino+mind" for CT beside another modality, "mind" for all other pairs.
    kept_bytes: None: a share of the memory that is free now, on the computer and on the device, at most KEPT_MOST.
    """

    def __init__(self, kind: str, plan: FeaturesPlan, model: Model | None, device: torch.device, volume: int | None = None,
                 kept_bytes: float | None = None):  # fmt: skip
        self.kind, self.plan, self.model, self.device, self.volume = kind, plan, model, device, volume
        self.kept_bytes = _kept_bytes(device) if kept_bytes is None else kept_bytes
        self._kept: OrderedDict[tuple[Path, str | None, float, float], ImageFeatures] = OrderedDict()
        self._lock = threading.Lock()  # of _kept, which `read` looks into from another thread

    def look(self, *images: tuple[str | None, Image]) -> Look:
        """How the images of a pair are looked at, each given with its channel's name or None.

        MIND's noise is CT's own among CT alone: where one image counts faint texture and the other does not, flat places look
        different everywhere. So it would with noise in one of them alone, hence both are smoothed alike.
        """
        ct = [seems_ct(*image) for image in images]
        across = any(ct) and not all(ct)
        kind = self.kind if self.kind != "auto" else "dino+mind" if across else "mind"
        most = CELLS_SMOOTHED * max(np.multiply(self.plan.mind_spacing_mm, self.plan.mind_stride))
        smoothing = max(wanted_smoothing_mm(image, is_ct, most) for (_, image), is_ct in zip(images, ct))
        return Look(kind, self.plan.mind_noise_ct if all(ct) else self.plan.mind_noise, smoothing)

    def of(self, name: str | Path, channel_name: str | None, look: Look, image: Image | None = None,
           aligns: bool = True) -> ImageFeatures:  # fmt: skip
        """The features of an image: a file, read here without `image`, or one in memory that is called `name`.

        channel_name ("CT", "MR") chooses the normalisation for a model; aligns: whether those of the initial alignment, too.
        """
        key = (Path(name).resolve(), channel_name, look.noise, look.smoothing_mm)
        with self._lock:
            features = self._kept.get(key)
        learned = look.kind != "mind"
        if features is None or (aligns and features.aligning is None) or (learned and features.tokens is None):
            image = features.image if features else self.read(Path(name)) if image is None else image
            upright = upright_image(image)
            to_align = aligns and (features is None or features.aligning is None)
            if features is None or to_align:
                ct = seems_ct(channel_name, image)
                voxels = self._voxels(upright, ct, look.smoothing_mm)
                seen = _seen_by_mind(voxels, ct)
            features = features or self._computed(image, voxels, seen, look)
            if to_align:
                # flat places that say little would let backgrounds that overlap pass for patients that do
                features = replace(features, aligning=self._mind(seen, ALIGNING_SCALES, 0.0))
            if learned and features.tokens is None:
                features = replace(features, tokens=self._tokens(upright, Path(name), channel_name))
        with self._lock:
            self._kept[key] = features
            self._kept.move_to_end(key)
            while len(self._kept) > 2 and sum(map(_bytes_of, self._kept.values())) > self.kept_bytes:
                self._kept.popitem(last=False)
        return features

    def read(self, path: Path) -> Image:
        """The image of a file, from what is kept if it is there. May be called from another thread."""
        file = path.resolve()
        with self._lock:
            kept = [features.image for (name, *_), features in self._kept.items() if name == file]
        return kept[0] if kept else read_image(path, volume=self.volume)

    def needs_matches(self, look: Look) -> bool:
        """Whether `agreement` or `pair` ask for a first match of the images."""
        return self._asks_contrast or self._asks_context or self._discriminates(look)

    def matching(self, look: Look, plan: RegistrationPlan) -> RegistrationPlan:
        """The settings of that match: the search alone; one round is enough to compare contrasts, not for discriminants."""
        return replace(plan, rounds=plan.rounds if self._discriminates(look) else 1, iterations=0, symmetric=False)

    def agreement(self, fixed: ImageFeatures, moving: ImageFeatures, matches: DisplacementField | None) -> float | None:
        """The contrast_agreement of two images; None where local intensity is not wanted."""
        if matches is None or not self._asks_contrast:
            return None
        return contrast_agreement((fixed.intensity, moving.intensity), (fixed.mind, moving.mind), matches)

    def pair(self, look: Look, fixed: ImageFeatures, moving: ImageFeatures, matches: DisplacementField | None = None,
             with_intensity: bool = False, context: tuple[FeatureMap, FeatureMap] | None = None
             ) -> tuple[FeatureMap, FeatureMap]:  # fmt: skip
        """The two feature maps to register. matches: fixed to moving points, roughly; context: see `context`, or without."""
        mind = (fixed.mind, moving.mind)
        if with_intensity:
            mind = _joined((fixed.intensity, moving.intensity), mind, self.plan.intensity_share)
        if context is not None:
            mind = _joined(context, mind, self.plan.context_share)
        if look.kind == "mind":
            return mind
        tokens = fixed.tokens, moving.tokens
        if self._discriminates(look) and matches is not None:
            learned = joint_discriminant(*tokens, matches, self.plan.components)
        else:
            learned = joint_pca(*tokens, self.plan.components)
        return learned if look.kind == "dino" else _joined(learned, mind, self.plan.dino_share)

    def context(self, look: Look, matches: DisplacementField | None, *images: tuple[str | None, ImageFeatures]
                ) -> tuple[FeatureMap, FeatureMap] | None:  # fmt: skip
        """What the tissue contexts of two images, each given with its channel's name, say alike; None where not wanted."""
        if matches is None or not self._asks_context:
            return None
        maps = []
        for channel_name, features in images:
            ct = seems_ct(channel_name, features.image)
            voxels = self._voxels(upright_image(features.image), ct, look.smoothing_mm)
            maps.append(tissue_context(*voxels, self.plan.mind_stride, ct))
        return joint_canonical(*maps, matches, CONTEXT_VARIATES)

    def at_voxels(self, features: ImageFeatures, channel_name: str | None, radius: int) -> FeatureMap:
        """The voxel_intensity of all voxels that the cells of `features` are made of; lungs are shown, as to MIND."""
        upright, ct = upright_image(features.image), seems_ct(channel_name, features.image)
        values, grid, _ = _seen_by_mind(self._voxels(upright, ct), ct)
        return voxel_intensity(values, grid, self.plan.mind_stride, radius)

    @property
    def _asks_contrast(self) -> bool:
        return self.kind != "dino" and self.plan.intensity_share > 0

    @property
    def _asks_context(self) -> bool:
        return self.kind != "dino" and self.plan.context_share > 0

    def _discriminates(self, look: Look) -> bool:
        return look.kind != "mind" and self.plan.projection == "discriminant"

    def _computed(self, image: Image, voxels: tuple[torch.Tensor, Grid], seen, look: Look) -> ImageFeatures:
        mind = self._mind(seen, self.plan.mind_scales, look.noise)
        intensity = local_intensity(*voxels, self.plan.mind_stride) if self._asks_contrast else None
        return ImageFeatures(image, mind, intensity, None)

    def _mind(self, seen: tuple[torch.Tensor, Grid, float], scales, noise: float) -> FeatureMap:
        values, grid, share = seen
        return mind_features(values, grid, scales, share * noise, self.plan.mind_stride)

    def _voxels(self, upright: Image, ct: bool, smoothing_mm: float = 0.0) -> tuple[torch.Tensor, Grid]:
        """What hand-made features see of an image, (X, Y, Z) at the spacing of MIND on the device, and its grid."""
        grid = upright.grid.with_spacing(self.plan.mind_spacing_mm)
        values = torch.from_numpy(resample(upright, grid).array[0]).to(self.device)
        values = soft_tissue_contrast(values) if ct else values
        if smoothing_mm > 0:
            values = smooth_gaussian(values[None], [smoothing_mm / s for s in grid.spacing_mm])[0]
        return values, grid

    def _tokens(self, image: Image, path: Path, channel_name: str | None) -> FeatureMap:
        plan = self.model.configuration.image
        key = channel_key(plan.channels, channel_name, image, path)
        taken_for = plan.channels[key].name
        if channel_name is None or is_ct(channel_name) != is_ct(taken_for):  # else its own name was doubted when it was read
            doubt = doubt_of(image, taken_for)
            if doubt is not None:
                log.warning("%s goes to the model as %s.", path, doubt.replace("named ", "", 1))
        case = preprocess_image(image, plan, key)
        return encode(case.image, self.model.encoder, window_size=self.plan.window_size, device=self.device,
                      window_overlap=self.plan.window_overlap, token_shifts=self.plan.token_shifts)  # fmt: skip


def _seen_by_mind(voxels: tuple[torch.Tensor, Grid], ct: bool) -> tuple[torch.Tensor, Grid, float]:
    """What MIND sees of `voxels`, (X, Y, Z), its grid, and by what its noise is multiplied; see with_lungs."""
    values, grid = voxels
    values, share = with_lungs(values) if ct else (values, 1.0)
    return values, grid, share


def _joined(first: tuple[FeatureMap, FeatureMap], second: tuple[FeatureMap, FeatureMap], share: float):
    """Both pairs of maps as one, on the grids of the second; share: of the first in the squared distance of features."""
    return joined(first, second, [feature_scale(a.values, b.values) for a, b in (first, second)], share)


def _kept_bytes(device: torch.device) -> float:
    on_device = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else math.inf
    return min(KEPT_MOST, KEPT_SHARE * min(free_memory(), on_device))


def _bytes_of(features: ImageFeatures) -> int:
    maps = [f.values for f in (features.mind, features.intensity, features.aligning, features.tokens) if f is not None]
    return features.image.array.nbytes + sum(values.nbytes for values in maps)
