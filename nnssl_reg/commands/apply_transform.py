"""Carry images, label maps and landmarks through a transform that nnssl_register wrote, in either direction."""

import logging
from argparse import Namespace
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nnssl_reg.commands.transform_origin import goes_back
from nnssl_reg.evaluation.metrics import inverse_error_mm, label_ids
from nnssl_reg.geometry.displacement import DisplacementField
from nnssl_reg.geometry.grid import Grid
from nnssl_reg.geometry.image import Image
from nnssl_reg.imageio.images import FILE_ENDINGS, read_grid, read_image, read_labels, write_image
from nnssl_reg.imageio.landmarks import LANDMARK_ENDINGS, read_landmark_names, read_landmarks, write_landmarks
from nnssl_reg.imageio.transforms import read_transform

MOST_LABELS = 64  # a file of whole numbers with more values than this is taken for an image

log = logging.getLogger("nnssl_reg")


@dataclass(frozen=True)
class Ends:
    """What a field leads from and to, "fixed" and "moving", or the reverse: near, on whose grid it lies, and far.

    Points go from near to far, images from far to near; with --inverse the other way.
    """

    near: str
    far: str


@dataclass(frozen=True)
class Way:
    """From which image to which, in words; pull: where in the source each voxel of the target lies."""

    source: str
    target: str
    pull: DisplacementField


def run(args: Namespace) -> int:
    """Exit code 0, or 1 if any file failed; the others are written."""
    ends = Ends("moving", "fixed") if goes_back(Path(args.t)) else Ends("fixed", "moving")
    outputs = _outputs(args, ends)
    field = read_transform(args.t)
    length = field.vectors_mm.norm(dim=0)
    told = f"displacement mean {float(length.mean()):.1f} mm, max {float(length.max()):.1f} mm"
    print(f"{args.t}: {ends.near} {field.grid}, {told}")
    images = [path for path in outputs if not _holds_points(path)]
    way = _image_way(args, field, ends) if images else None
    failed = 0
    for path, output in outputs.items():
        try:
            if path in images:
                print(f"{output}: {_carry_image(path, output, way, args)}")
            else:
                print(f"{output}: {_carry_points(path, output, field, ends, args)}")
        except (ValueError, OSError) as error:
            failed += 1
            print(f"failed: {error}")
    if failed:
        print(f"{failed} of {len(outputs)} files failed, the others are written to {args.o}.")
    return 1 if failed else 0


def _outputs(args: Namespace, ends: Ends) -> dict[Path, Path]:
    """Where each input's result goes. Raises ValueError with all problems of the request, before any work."""
    problems, outputs = [], {}
    for path in dict.fromkeys(map(Path, args.i)):
        ending = next((e for e in (*LANDMARK_ENDINGS, *FILE_ENDINGS) if path.name.lower().endswith(e)), None)
        if ending is None:
            problems.append(f"{path}: the ending is none of {', '.join((*FILE_ENDINGS, *LANDMARK_ENDINGS))}")
            continue
        if not path.is_file():
            problems.append(f"{path} does not exist")
        problems += _missing_flags(path, ending, ends, args)
        suffix = _suffix(_holds_points(path), ends.near if _holds_points(path) == args.inverse else ends.far)
        if ending == ".csv" and args.space == "voxel" and not args.r:
            suffix += "_ras"
        outputs[path] = Path(args.o) / f"{path.name[: -len(ending)]}_{suffix}{ending}"
    problems += [f"{name} would be written {n} times; give inputs of one name in separate calls with different -o"
                 for name, n in Counter(outputs.values()).items() if n > 1]  # fmt: skip
    if problems:
        raise ValueError("nothing was done: " + "; ".join(problems) + ".")
    return outputs


def _suffix(holds_points: bool, target: str) -> str:
    """Tells in an output's name which image it now belongs to; on the fixed grid images are "warped"."""
    return f"in_{target}" if holds_points or target == "moving" else "warped"


def _missing_flags(path: Path, ending: str, ends: Ends, args: Namespace) -> list[str]:
    if ending == ".csv" and args.space is None:
        return [f"{path}: a .csv does not say its coordinates, give -space ras, lps (mm) or voxel"]
    if ending == ".csv" and args.space == "voxel" and args.points_image is None:
        return [f"{path}: -space voxel needs the image that has these voxels, -points_image IMAGE"]
    if ending not in LANDMARK_ENDINGS and args.inverse and args.r is None:
        return [f"{path}: --inverse writes on the {ends.far} image's grid, give the {ends.far} image with -r IMAGE"]
    if ending not in LANDMARK_ENDINGS and args.t.lower().endswith((".h5", ".hdf5")) and args.r is None:
        return [f"{path}: {args.t} does not tell the fixed image's grid, give it with -r FIXED, or use the field (.nii.gz)"]
    return []


def _holds_points(path: Path) -> bool:
    return path.name.lower().endswith(LANDMARK_ENDINGS)


def _image_way(args: Namespace, field: DisplacementField, ends: Ends) -> Way:
    """The way images go: far -> near grid (or -r), inverse: near -> the grid of -r, the far image."""
    if not args.inverse:
        grid = read_grid(args.r) if args.r else field.grid
        target = f"the grid of {args.r}" if args.r else f"{ends.near} grid"
        return Way(f"{ends.far} image", target, field.on(grid) if args.r else field)
    pull = field.inverse(read_grid(args.r))
    error = inverse_error_mm(pull, field)
    if not len(error):
        raise ValueError(
            f"{args.r}: nothing of it lies in the {ends.near} field of view through the transform; is it the {ends.far} image?"
        )
    print(f"inverse: there and back misses by {error.mean():.3f} mm on average, at most {error.max():.3f} mm")
    return Way(f"{ends.near} image", f"{ends.far} grid ({args.r})", pull)


def _inside(grid: Grid, points_mm: np.ndarray) -> np.ndarray:
    index = grid.world_to_index(points_mm)
    return ((index >= -0.5) & (index <= np.array(grid.shape) - 0.5)).all(axis=1)


def _carry_image(path: Path, output: Path, way: Way, args: Namespace) -> str:
    """Warp one image or label map and write it. Returns what was done, in words."""
    image = _read(path, args)
    seen = way.pull.warp(Image(np.ones((1, *image.grid.shape), dtype=np.uint8), image.grid))
    outside = 100 * float(1 - seen.array.mean())
    if outside == 100:
        raise ValueError(f"{path}: no voxel of the {way.target} comes from it ({image.grid}); is it really the {way.source}?")
    warped = way.pull.warp(image)
    write_image(output, warped)
    said = f"{way.source} -> {way.target}, "
    if image.is_label:
        there, here = label_ids(image.array), label_ids(warped.array)
        lost = sorted(set(there) - set(here))
        said += f"labels ({image.array.dtype}, nearest neighbour), {len(here)} of {len(there)} kept"
        if lost:
            log.warning(
                "%s: lost on the way: label %s (too small or outside the %s).", path, ", ".join(map(str, lost)), way.target
            )
        return said
    fill = f", {outside:.1f} % lie outside it and got its minimum {image.array.min():g}" if outside else ""
    return said + "intensities (linear)" + fill


def _read(path: Path, args: Namespace) -> Image:
    """A label map if --label says or its values look so, else intensities."""
    if args.label:
        return read_labels(path, args.volume)
    image = read_image(path, args.volume)
    if args.image or not looks_like_labels(image.array):
        return image
    print(f"{path.name} holds few, whole numbers: taken for labels (--image: as intensities).")
    return read_labels(path, args.volume)


def looks_like_labels(array: np.ndarray) -> bool:
    """Whether there are only a few different values, all of them whole numbers from 0."""
    some = array[:, ::4, ::4, ::4]
    if some.min() < 0 or not np.array_equal(some, np.rint(some)) or len(np.unique(some)) > MOST_LABELS:
        return False
    return array.min() == 0 and np.array_equal(array, np.rint(array)) and len(np.unique(array)) <= MOST_LABELS


def _carry_points(path: Path, output: Path, field: DisplacementField, ends: Ends, args: Namespace) -> str:
    """Move one file of landmarks and write it. Returns what was done, in words."""
    in_voxels = args.space == "voxel" and path.suffix.lower() == ".csv"
    points = read_landmarks(path, args.space, read_grid(args.points_image) if in_voxels else None)
    names = read_landmark_names(path)
    source, target = (ends.far, ends.near) if args.inverse else (ends.near, ends.far)
    moved = field.inverse_points(points) if args.inverse else field.apply_to_points(points)
    outside = int((~_inside(field.grid, moved if args.inverse else points)).sum())
    if in_voxels:
        write_landmarks(output, moved, "voxel" if args.r else "ras", read_grid(args.r) if args.r else None, names)
    else:
        write_landmarks(output, moved, args.space, None, names)
    shift = np.linalg.norm(moved - points, axis=1)
    said = f"{len(points)} landmarks of the {source} image -> {target} image, moved by {shift.mean():.1f} mm on average"
    if in_voxels:
        said += f", in voxels of {args.r}" if args.r else ", in RAS mm (-r IMAGE: in voxels of that image)"
    if args.inverse:
        error = np.linalg.norm(field.apply_to_points(moved) - points, axis=1)
        said += f", there and back misses by at most {error.max():.3f} mm"
    return said + (
        f"; {outside} of them outside the {ends.near} field of view, where the edge's displacement counts" if outside else ""
    )
