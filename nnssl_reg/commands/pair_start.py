"""How a registration begins: what the initial alignment sees of a pair, and a moving image that lies turned by right angles.

Such a one is found by what is in it, registered upright, and turned back.
"""

import logging
from dataclasses import replace

import numpy as np

from nnssl_reg.commands.pair_features import ImageFeatures
from nnssl_reg.commands.pair_types import DeformedPair, ImagePair, Side
from nnssl_reg.features.mind import turned_mind
from nnssl_reg.geometry.affine import AffineTransform, right_angled_rotations
from nnssl_reg.geometry.cropping import foreground_box
from nnssl_reg.geometry.grid import Grid
from nnssl_reg.geometry.image import FeatureMap, Image
from nnssl_reg.registration.affine_init import InitialAlignment, initial_alignment
from nnssl_reg.registration.likely_turns import likelier_turns

LEAST_SEEN = 8  # voxels and cells along each axis that the initial alignment compares, however thin a mask
FINALISTS = 2  # turns that are aligned as thoroughly as the image as it is
SURE = 0.6  # cost of alignment below which no turn is looked for: turned patients had 0.67 and more
BETTER = 0.03  # of that cost: what a turn must gain; true ones gained 0.043 and more, false ones of patients as they lie 0.019


def found_start(
    mode: str, sides: tuple[Side, Side], features: tuple[ImageFeatures, ImageFeatures]
) -> tuple[InitialAlignment, AffineTransform | None]:
    """The initial alignment of two Sides with these ImageFeatures; in mode "auto" also a turn of the moving image, if needed.

    Both are found in worlds whose origin is the fixed image's centre: far from it float32 would lose digits, and differences
    that small decide between matches that are as good.
    """
    centre = features[0].image.grid.center_mm
    here, there = (_seen(side, found, centre) for side, found in zip(sides, features))
    alignment = initial_alignment(mode, here[0], there[0], here[1], there[1])
    turn = better_turn(here, there, alignment) if mode == "auto" else None
    return seen_from(-centre, alignment), None if turn is None else _from_elsewhere(-centre, turn)


def better_turn(fixed: tuple[Image, FeatureMap], moving: tuple[Image, FeatureMap],
                alignment: InitialAlignment) -> AffineTransform | None:  # fmt: skip
    """The right-angled turn of the moving image about its centre with which it aligns better than as it is, None if none does.

    fixed, moving: what the initial alignment compares; alignment: what it found. Patients that lie alike resemble each other
    more than turned ones do, whatever is in the headers. What aligns well is not turned: where there is little to see but an
    outline, another turn may align as well.
    """
    (a, here), (b, there) = fixed, moving
    if alignment.costs[alignment.name] < SURE:
        return None
    turns = [AffineTransform.about(rotation, b.grid.center_mm) for rotation in right_angled_rotations()]
    best, most = None, 0.0
    for turn, coarse_gain in likelier_turns(here, there, turns, turned_mind)[:FINALISTS]:
        found = initial_alignment("affine", a, turned_image(b, turn), here, turned_mind(there, turn))
        gain = alignment.costs[alignment.name] - found.costs["affine"]
        if gain >= BETTER and coarse_gain + gain > most:  # a wrong turn may align a little better, but resembles less before
            best, most = turn, coarse_gain + gain
    return best


def turned_image(image: Image, turn: AffineTransform) -> Image:
    """The same voxels elsewhere in the world."""
    return Image(image.array, turned_grid(image.grid, turn))


def turned_grid(grid: Grid, turn: AffineTransform) -> Grid:
    """The grid of an image moved by a turn."""
    return Grid(grid.shape, turn.matrix @ grid.affine)


def degrees_of(turn: AffineTransform) -> int:
    """By how much a turn rotates."""
    return round(np.degrees(np.arccos(np.clip((np.trace(turn.matrix[:3, :3]) - 1) / 2, -1, 1))))


def turned_pair(pair: ImagePair, turn: AffineTransform) -> ImagePair:
    """The pair with its moving image, label and mask turned; says so."""
    logging.getLogger("nnssl_reg").warning(
        "%s lies turned by %d degrees against %s, by what the two show, and is registered so. Check its header.",
        pair.moving.name, degrees_of(turn), pair.fixed.name)  # fmt: skip
    parts = {name: getattr(pair.moving, name) for name in ("image", "label", "mask")}
    told = f"{pair.moving.name} (turned: {np.rint(turn.matrix[:3, :3]).astype(int).tolist()})"
    turned = {name: None if image is None else turned_image(image, turn) for name, image in parts.items()}
    return replace(pair, moving=replace(pair.moving, name=told, **turned))


def turned_back(found: DeformedPair, pair: ImagePair, turn: AffineTransform) -> DeformedPair:
    """What was found of a turned pair as that of the pair as it is."""
    back = turn.inverse()
    name = f"{found.alignment.name}, turned by {degrees_of(turn)} degrees"
    alignment = InitialAlignment(found.alignment.transform.then(back), name,
                                 found.alignment.costs | {name: found.alignment.costs[found.alignment.name]})  # fmt: skip
    features = found.features[0], FeatureMap(found.features[1].values, turned_grid(found.features[1].grid, back))
    return replace(found, images=(pair.fixed.image, pair.moving.image), alignment=alignment, features=features)


def _seen(side: Side, features: ImageFeatures, centre: np.ndarray) -> tuple[Image, FeatureMap]:
    """A Side's image and the features that the initial alignment compares: of the box around the mask, if there is one.

    In canonical axes, for what samples every few voxels gives the same however a file is stored; centre: their origin.
    """
    image, cells = features.image, features.aligning
    if side.mask is not None:
        image = image.cropped(_enough(foreground_box(side.mask.array[0] > 0), image.grid))
        index = cells.grid.world_to_index(image.grid.corners_mm())
        box = _enough(np.stack([np.ceil(index.min(0) - 0.5), np.floor(index.max(0) + 0.5) + 1], axis=1), cells.grid)
        cells = FeatureMap(cells.values[(slice(None), *(slice(*part) for part in box))], cells.grid.cropped(box))
    image = image.canonical()
    near = Image(image.array, image.grid.rounded().seen_from(centre))
    return near, FeatureMap(cells.values, cells.grid.seen_from(centre))


def seen_from(point_mm: np.ndarray, alignment: InitialAlignment) -> InitialAlignment:
    """An alignment in worlds whose origin is a point of this one."""
    return replace(alignment, transform=_from_elsewhere(point_mm, alignment.transform))


def _from_elsewhere(point_mm: np.ndarray, transform: AffineTransform) -> AffineTransform:
    """A transform in worlds whose origin is a point of this one."""
    there, back = AffineTransform.translation(point_mm), AffineTransform.translation(-point_mm)
    return there.then(transform).then(back)


def _enough(box, grid: Grid) -> np.ndarray:
    """A box within a grid, grown where it has fewer than LEAST_SEEN voxels along an axis."""
    low, high = np.clip(np.asarray(box, dtype=int).T, 0, grid.shape)
    missing = np.maximum(LEAST_SEEN - (high - low), 0)
    low = np.maximum(low - missing // 2, 0)
    high = np.minimum(np.maximum(high + missing - missing // 2, low + LEAST_SEEN), grid.shape)
    return np.stack([np.maximum(np.minimum(low, high - LEAST_SEEN), 0), high], axis=1)
