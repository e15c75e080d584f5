"""One pair of images to its transform: features, initial alignment, ConvexAdam, total field on the fixed image's grid."""

import logging
import time
from dataclasses import asdict, dataclass

import numpy as np
import torch

from nnssl_reg.commands.pair_features import FeatureStore, ImageFeatures
from nnssl_reg.geometry.affine import AffineTransform
from nnssl_reg.geometry.displacement import DisplacementField
from nnssl_reg.geometry.grid import Grid
from nnssl_reg.geometry.image import FeatureMap, Image
from nnssl_reg.geometry.sampling import gather_nearest
from nnssl_reg.imageio.images import check_same_grid, read_labels
from nnssl_reg.imageio.pairs import Pair
from nnssl_reg.planning.plans import RegistrationPlan
from nnssl_reg.registration.affine_init import InitialAlignment, initial_alignment
from nnssl_reg.registration.convex_adam import register_features

FAR_APART_MM = 500.0  # fields of view this far from overlapping hint at a wrong header


@dataclass(frozen=True)
class RegisteredPair:
    """What a registration found: moving point = initial(p + deformation(p)) for a fixed point p.

    deformation: on a grid a little larger than the fixed image, as coarse as it was computed; field: both, on the fixed
    image's own grid. features: of fixed and moving, as registered; apart_mm: at the fixed feature cells, between the
    registrations of the two directions (X, Y, Z), None if only one was made. seconds: per stage.
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


def register_pair(pair: Pair, store: FeatureStore, plan: RegistrationPlan) -> RegisteredPair:
    """Register a pair of files. Raises ValueError or OSError for files that cannot be used."""
    clock = _Clock()
    fixed, moving = store.of(pair.fixed, pair.fixed_channel), store.of(pair.moving, pair.moving_channel)
    labels = [_labels(path, f.image) for path, f in ((pair.fixed_label, fixed), (pair.moving_label, moving))]
    maps = store.pair(fixed, moving)
    clock.lap("features")
    alignment = initial_alignment(plan.init, fixed.image, moving.image, fixed.mind, moving.mind)
    _check_overlap(pair, fixed.image, moving.image, alignment.transform)
    clock.lap("initial alignment")
    masks = {f"{side}_mask": _mask(path, f, cells) for side, path, f, cells in
             (("fixed", pair.fixed_mask, fixed, maps[0]), ("moving", pair.moving_mask, moving, maps[1]))}  # fmt: skip
    settings = {key: value for key, value in asdict(plan).items() if key != "init"}
    found = register_features(*maps, initial=alignment.transform, **settings, **masks)
    clock.lap("convex adam")
    deformation = found.field.on(_covering(found.field.grid, fixed.image.grid))
    field = alignment.transform.after(deformation.on(fixed.image.grid))
    clock.lap("field")
    return RegisteredPair(
        fixed.image, moving.image, *labels, alignment, deformation, field, maps, found.apart_mm, clock.seconds
    )


class _Clock:
    """Seconds of named stages, one after the other."""

    def __init__(self):
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[name] = round(now - self._last, 3)
        self._last = now


def _labels(path, image: Image) -> Image | None:
    if path is None:
        return None
    label = read_labels(path)
    check_same_grid(image, label, name=str(path))
    return label


def _mask(path, features: ImageFeatures, cells: FeatureMap) -> torch.Tensor | None:
    """A mask file as bool at the centres of feature cells (X, Y, Z)."""
    if path is None:
        return None
    mask = _labels(path, features.image)
    values = gather_nearest((mask.array > 0).astype(np.uint8), mask.grid, cells.grid.points_mm(), 0)[0]
    if not values.any():
        raise ValueError(f"{path}: the mask is empty, so nothing could be registered; give another or none.")
    return torch.from_numpy(values > 0).to(cells.values.device)


def _check_overlap(pair: Pair, fixed: Image, moving: Image, transform: AffineTransform) -> None:
    """Refuse a start where the images do not meet; warn where their headers lie far apart."""
    gap = _gap_mm(fixed.grid, moving.grid, transform)
    if gap > 0:
        raise ValueError(f"After the initial alignment the images are still {gap:.0f} mm apart and share no point; use --init "
                         "auto, center or moments.")  # fmt: skip
    gap = _gap_mm(fixed.grid, moving.grid, AffineTransform.identity())
    if gap > FAR_APART_MM:
        logging.getLogger("nnssl_reg").warning(
            "%s: the headers place the images %.0f mm apart; the initial alignment bridges it. Check that this is one patient "
            "region.", pair.id, gap)  # fmt: skip


def _gap_mm(fixed: Grid, moving: Grid, transform: AffineTransform) -> float:
    """Distance between the bounding boxes of two fields of view in the moving world, 0 where they overlap, mm."""
    a, b = transform.apply(fixed.corners_mm()), moving.corners_mm()
    return float(np.linalg.norm(np.maximum(0, np.maximum(a.min(0) - b.max(0), b.min(0) - a.max(0)))))


def _covering(cells: Grid, image: Grid) -> Grid:
    """The lattice of `cells` grown by whole cells until it covers every voxel of `image`."""
    corners = cells.world_to_index(image.corners_mm())
    low = np.minimum(np.floor(corners.min(0) - 1e-6), 0).astype(int)
    high = np.maximum(np.ceil(corners.max(0) + 1e-6), np.array(cells.shape) - 1).astype(int)
    return cells.cropped(np.stack([low, high + 1], axis=1))
