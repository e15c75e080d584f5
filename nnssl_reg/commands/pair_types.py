"""The types of a registration in memory: a pair of images, what was found of it, and all that is written of it."""

from dataclasses import dataclass

import numpy as np
import torch

from nnssl_reg.commands.pair_features import Look
from nnssl_reg.geometry.displacement import DisplacementField
from nnssl_reg.geometry.grid import Grid
from nnssl_reg.geometry.image import FeatureMap, Image
from nnssl_reg.registration.affine_init import InitialAlignment
from nnssl_reg.registration.diffeomorphic import Diffeomorphism
from nnssl_reg.registration.rigid_regions import RigidRegion


@dataclass(frozen=True)
class Side:
    """One image of a pair, its label and mask on its grid.

    name: its file, or what messages call it; channel: "CT", "MR", if known.
    """

    image: Image
    name: str
    channel: str | None = None
    label: Image | None = None
    mask: Image | None = None


@dataclass(frozen=True)
class ImagePair:
    """A pair of images in memory, corresponding landmarks (N, 3) RAS mm of both, and how long reading them took.

    rigid_mask: regions of the fixed image, on its grid, that shall move as rigid bodies.
    """

    fixed: Side
    moving: Side
    landmarks: tuple[np.ndarray, np.ndarray] | None = None
    reading_seconds: float = 0.0
    rigid_mask: Image | None = None


@dataclass(frozen=True)
class Contrast:
    """agreement: of the contrasts of two images, see contrast_agreement; used: whether their local intensity was, therefore.

    one_patient: whether a refinement at voxels found images so alike that they were taken for one patient's.
    """

    agreement: float
    used: bool
    one_patient: bool


@dataclass(frozen=True)
class RegisteredPair:
    """What a registration found: moving point = initial(p + deformation(p)) for a fixed point p.

    deformation: on a grid a little larger than the fixed image, as coarse as it was computed (with rigid regions: on the fixed
    image's own); field: both, on the fixed image's own grid. features: of fixed and moving, as registered; apart_mm: at the
    fixed feature cells, between the registrations of the two directions (X, Y, Z), None if only one was made.
    counted: the fixed cells that its mask leaves, (X, Y, Z) bool, None without one. seconds: per stage.
    contrast: None where local intensity was not wanted. look: with which both images were seen.
    landmarks: of the fixed and of the moving image, (N, 3) RAS mm each, if there are any.
    flow: the deformation and its inverse, if it was made diffeomorphic. rigid: the regions that move as rigid bodies.
    """

    fixed: Image
    moving: Image
    fixed_label: Image | None
    moving_label: Image | None
    alignment: InitialAlignment
    deformation: DisplacementField
    field: DisplacementField
    features: tuple[FeatureMap, FeatureMap]
    apart_mm: torch.Tensor | None
    seconds: dict[str, float]
    landmarks: tuple[np.ndarray, np.ndarray] | None = None
    flow: Diffeomorphism | None = None
    rigid: tuple[RigidRegion, ...] = ()
    counted: torch.Tensor | None = None
    contrast: Contrast | None = None
    look: Look = Look("mind", 0.0)

    def inverse(self, grid: Grid) -> DisplacementField:
        """The field that leads moving points back to fixed points, on a grid in the moving world."""
        if self.flow is None:
            return self.field.inverse(grid)
        back, device = self.alignment.transform.inverse().as_field(grid), self.flow.inverse.vectors_mm.device
        return DisplacementField(back.vectors_mm.to(device), grid).compose(self.flow.inverse)


@dataclass(frozen=True)
class DeformedPair:
    """The first part of a registration: see RegisteredPair. images: fixed and moving."""

    images: tuple[Image, Image]
    alignment: InitialAlignment
    deformation: DisplacementField
    features: tuple[FeatureMap, FeatureMap]
    apart_mm: torch.Tensor | None
    seconds: dict[str, float]
    counted: torch.Tensor | None = None
    contrast: Contrast | None = None
    look: Look = Look("mind", 0.0)
