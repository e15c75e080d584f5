"""One pair of images to its transform: features, initial alignment, ConvexAdam, total field on the fixed image's grid."""

import logging
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from nnssl_reg.commands.pair_features import FeatureStore
from nnssl_reg.commands.pair_start import found_start, seen_from, turned_back, turned_pair
from nnssl_reg.commands.pair_types import Contrast, DeformedPair, ImagePair, RegisteredPair
from nnssl_reg.commands.voxel_refinement import mask_of_cells, refined_at_voxels, voxel_refinement
from nnssl_reg.features.local_intensity import AGREES
from nnssl_reg.geometry.affine import AffineTransform
from nnssl_reg.geometry.displacement import DisplacementField
from nnssl_reg.geometry.grid import Grid
from nnssl_reg.geometry.host_memory import give_back_free_pages
from nnssl_reg.geometry.image import FeatureMap
from nnssl_reg.planning.plans import RegistrationPlan
from nnssl_reg.registration.affine_init import InitialAlignment
from nnssl_reg.registration.convex_adam import register_features
from nnssl_reg.registration.diffeomorphic import diffeomorphic
from nnssl_reg.registration.rigid_regions import with_rigid_regions

OnStage = Callable[[str], None]
FAR_APART_MM = 500.0  # fields of view this far from overlapping hint at a wrong header


def register_pair(pair: ImagePair, store: FeatureStore, plan: RegistrationPlan, *, is_diffeomorphic: bool = False,
                  start: AffineTransform | None = None, on_stage: OnStage = lambda name: None) -> RegisteredPair:  # fmt: skip
    """Register a pair of images. start: instead of the plan's initial alignment; on_stage: called as each stage begins.

    Raises ValueError where they do not meet.
    """
    if is_diffeomorphic and pair.rigid_mask is not None:
        raise ValueError("A field with rigid regions is no flow: give either a rigid mask or diffeomorphic, not both.")
    found = deform_pair(pair, store, plan, None if start is None else InitialAlignment(start, "given", {}), on_stage)
    clock, fixed = _Clock(found.seconds, on_stage), found.images[0]
    deformation, alignment, rigid, flow = found.deformation, found.alignment, (), None
    if is_diffeomorphic:
        clock.begin("diffeomorphic")
        flow = diffeomorphic(deformation)
        deformation = flow.forward
    if pair.rigid_mask is not None:
        clock.begin("rigid regions")
        deformation, rigid = _with_rigid_regions(pair, deformation, alignment.transform)
    clock.begin("field")
    field = alignment.transform.after(deformation, None if rigid else fixed.grid)
    clock.end()
    give_back_free_pages()  # before the files are written
    return RegisteredPair(*found.images, pair.fixed.label, pair.moving.label, alignment, deformation, field, found.features,
                          found.apart_mm, clock.seconds, pair.landmarks, flow, rigid, found.counted,
                          found.contrast, found.look)  # fmt: skip


def deform_pair(pair: ImagePair, store: FeatureStore, plan: RegistrationPlan, alignment: InitialAlignment | None = None,
                on_stage: OnStage = lambda name: None) -> DeformedPair:  # fmt: skip
    """Features, initial alignment (if not given) and ConvexAdam; see register_pair. Raises ValueError as it does.

    Both are found in worlds whose origin is the fixed image's centre: far from it float32 would lose digits, and differences
    that small decide between matches that are as good.
    """
    clock, sides = _Clock({"reading": round(pair.reading_seconds, 3)}, on_stage), (pair.fixed, pair.moving)
    clock.begin("features")
    if alignment is None and plan.init == "identity":
        alignment = InitialAlignment(AffineTransform.identity(), "identity", {})
    look = store.look(*((side.channel, side.image) for side in sides))
    fixed, moving = (store.of(side.name, side.channel, look, side.image, alignment is None) for side in sides)
    clock.begin("initial alignment")
    if alignment is None:
        alignment, turn = found_start(plan.init, sides, (fixed, moving))
        if turn is not None:
            upright = turned_pair(pair, turn)
            return turned_back(deform_pair(upright, store, replace(plan, init="affine"), None, on_stage), pair, turn)
    _check_overlap(pair, alignment.transform)
    matches = None
    if store.needs_matches(look):
        clock.begin("first match")
        first, _, _ = _deformation(pair, (fixed.mind, moving.mind), alignment, store.matching(look, plan))
        matches = alignment.transform.after(first)
    agreement = store.agreement(fixed, moving, matches)
    give_back_free_pages()  # or what is free by now would lie idle beside what the next stage takes
    clock.begin("convex adam")
    bright = agreement is not None and agreement >= AGREES
    context = None if bright else store.context(look, matches, (pair.fixed.channel, fixed), (pair.moving.channel, moving))
    maps = store.pair(look, fixed, moving, matches, bright, context)
    field, apart_mm, counted = _deformation(pair, maps, alignment, plan)
    if agreement is not None and not bright and apart_mm is not None:  # who knows: the better of both
        tried = store.pair(look, fixed, moving, matches, True, context)
        other = _deformation(pair, tried, alignment, plan)
        bright = bool(other[1].median() < apart_mm.median())
        maps, (field, apart_mm, counted) = (tried, other) if bright else (maps, (field, apart_mm, counted))
    contrast = None if agreement is None else Contrast(agreement, bright, False)
    images = fixed.image, moving.image
    found = DeformedPair(images, alignment, field, maps, apart_mm, clock.seconds, counted, contrast, look)
    finer = voxel_refinement(plan, store.plan.mind_stride, found)
    if finer is not None:
        give_back_free_pages()
        clock.begin("refinement at voxels")
        voxels = tuple(store.at_voxels(seen, side.channel, finer.radius) for seen, side in zip((fixed, moving), sides))
        field = refined_at_voxels(pair, voxels, found, finer.settings)
        contrast = replace(contrast, one_patient=finer.one_patient)
    clock.end()
    return replace(found, deformation=field.on(_covering(field.grid, fixed.image.grid)), contrast=contrast)


def _deformation(pair: ImagePair, maps: tuple[FeatureMap, FeatureMap], alignment: InitialAlignment, plan: RegistrationPlan):
    """The deformation on the grid of the fixed features, `apart_mm` and `counted` of a DeformedPair."""
    centre = pair.fixed.image.grid.center_mm
    masks = [mask_of_cells(side, cells) for side, cells in zip((pair.fixed, pair.moving), maps)]
    cells = [FeatureMap(cells.values, cells.grid.seen_from(centre)) for cells in maps]
    near = seen_from(centre, alignment).transform
    found = register_features(*cells, initial=near, fixed_mask=masks[0], moving_mask=masks[1], **plan.on_cells)
    return DisplacementField(found.field.vectors_mm, maps[0].grid), found.apart_mm, masks[0]


def _with_rigid_regions(pair: ImagePair, deformation: DisplacementField, initial: AffineTransform):
    """The deformation on the fixed image's grid, rigid in the regions of the mask, and these; warns of folds that stay."""
    found = with_rigid_regions(deformation, pair.rigid_mask.array[0], pair.fixed.image.grid, initial)
    if found.folded_voxels:
        logging.getLogger("nnssl_reg").warning(
            "%s: the field still folds at %d voxels between rigid regions; they move too differently for the room between "
            "them. Leave some out of the rigid mask.", pair.fixed.name, found.folded_voxels)  # fmt: skip
    return found.deformation, found.regions


class _Clock:
    """Seconds of named stages, one after the other. on_stage: called with the name of each as it begins."""

    def __init__(self, seconds: dict[str, float], on_stage: OnStage):
        self.seconds, self._on_stage = seconds, on_stage
        self._name, self._began = None, 0.0

    def begin(self, name: str) -> None:
        self.end()
        self._on_stage(name)
        self._name, self._began = name, time.perf_counter()

    def end(self) -> None:
        if self._name is not None:
            self.seconds[self._name] = round(time.perf_counter() - self._began, 3)
        self._name = None


def _check_overlap(pair: ImagePair, transform: AffineTransform) -> None:
    """Refuse a start where the images do not meet; warn where their headers lie far apart."""
    grids = pair.fixed.image.grid, pair.moving.image.grid
    gap = _gap_mm(*grids, transform)
    if gap > 0:
        raise ValueError(f"After the initial alignment the images are still {gap:.0f} mm apart and share no point; use --init "
                         "auto, center or moments.")  # fmt: skip
    gap = _gap_mm(*grids, AffineTransform.identity())
    if gap > FAR_APART_MM:
        logging.getLogger("nnssl_reg").warning(
            "%s and %s: the headers place the images %.0f mm apart; the initial alignment bridges it. Check that this is one "
            "patient region.", pair.fixed.name, pair.moving.name, gap)  # fmt: skip


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
