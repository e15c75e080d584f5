"""The transform files of one registered pair: written, read back by SimpleITK, compared with our own warped image."""

import logging
import math
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from nnssl_reg.commands.pair_types import RegisteredPair
from nnssl_reg.evaluation.metrics import inverse_error_mm
from nnssl_reg.geometry.displacement import DisplacementField
from nnssl_reg.geometry.grid import Grid
from nnssl_reg.geometry.image import Image
from nnssl_reg.geometry.sampling import slabs, to_voxels
from nnssl_reg.imageio.itk_warping import warp_by_itk, warp_by_itk_in_voxels
from nnssl_reg.imageio.json_files import read_json
from nnssl_reg.imageio.learn2reg import SUBMISSION, displacement_name, submission_problems, write_learn2reg, write_submission
from nnssl_reg.imageio.pairs import Pair
from nnssl_reg.imageio.transforms import write_affine, write_composite, write_field

CHECKED = 2**21  # voxels at which files are compared: evenly spread ones of larger images
LARGEST_DIFFERENCE = 1e-3  # of the intensity range; more than rounding makes
MEANING = {
    "field": "displacement in mm along LPS axes on the fixed image's grid (NIfTI intent 1007: ITK, ANTs, 3D Slicer), initial "
    "alignment included",
    "transform": "ITK composite of the initial affine transform and the deformation, for the same mapping",
    "inverse_field": "the way back, a point of the moving image to the fixed point that corresponds to it: displacement in mm "
    "along LPS axes on the moving image's grid (NIfTI intent 1007)",
    "learn2reg": "the same mapping in voxels along the array axes: moving index less fixed index, (X, Y, Z, 3)",
    "ants_affine": "ANTs: the initial affine, fixed to moving; a point goes through ants_warp first",
    "ants_warp": "ANTs: the deformation without the initial affine; antsApplyTransforms -t ants_warp -t ants_affine",
    "ants_inverse_warp": "ANTs: the deformation's inverse; antsApplyTransforms -t [ants_affine,1] -t ants_inverse_warp",
}
log = logging.getLogger("nnssl_reg")


@dataclass(frozen=True)
class Exports:
    """Which transform files are wanted beside the field and the composite, and whether submission.zip is."""

    inverse: bool = False
    learn2reg: bool = False
    ants: bool = False
    zip: bool = False

    def kinds(self) -> set[str]:
        """The files of a pair that these are, as the sidecar calls them."""
        kinds = {"field", "transform"} | ({"inverse_field"} if self.inverse else set())
        kinds |= {"learn2reg"} if self.learn2reg else set()
        kinds |= {"ants_affine", "ants_warp"} if self.ants else set()
        return kinds | ({"ants_inverse_warp"} if self.ants and self.inverse else set())


FIELD_AND_COMPOSITE = Exports()


@dataclass
class WrittenTransforms:
    """Names of the files by what they are; differences: of our warp from SimpleITK's, as shares of the intensity range."""

    files: dict[str, str] = field(default_factory=dict)
    differences: dict[str, dict[str, float | None]] = field(default_factory=dict)
    inverse_error_mm: dict[str, float] | None = None

    def sidecar(self) -> dict:
        """What the sidecar says of the transforms."""
        told = {
            "transform_check": {
                "with": "SimpleITK, files read back, share of the intensity range, at up to 2 million evenly spread voxels",
                **self.differences,
            }
        }
        return told if self.inverse_error_mm is None else told | {"inverse_error_mm": self.inverse_error_mm}

    def in_words(self) -> str:
        """One line for the console."""
        largest = [d["max"] for d in self.differences.values() if d["max"] is not None]
        said = (
            f"SimpleITK warps with the written files as we do (differs by at most {max(largest, default=0):.1g} of the range)"
        )
        if self.inverse_error_mm is None:
            return said
        return said + "; inverse misses by mean {mean:.3f} mm, 95 % below {p95:.3f} mm".format(**self.inverse_error_mm)


def chosen_exports(args: Namespace, pairs: Sequence[Pair]) -> Exports:
    """What --inverse, --export and --zip ask for. Raises ValueError with all problems of Learn2Reg's names and shapes."""
    kinds = set(args.export or ())
    if args.zip and "l2r" not in kinds:
        raise ValueError("--zip packs Learn2Reg's files: give --export l2r with it.")
    if "l2r" in kinds:
        problems = submission_problems(pairs, read_json(args.i) if args.i else None)
        if problems:
            raise ValueError("--export l2r cannot be met:\n" + "\n".join(f"  {problem}" for problem in problems))
    return Exports(args.inverse, "l2r" in kinds, "ants" in kinds, args.zip)


def pack_submission(folder: Path, pairs: Sequence[Pair]) -> str:
    """Write submission.zip from the fields that are there; says how many, and warns of those that are missing."""
    names = [displacement_name(pair) for pair in pairs]
    missing = write_submission(folder, names)
    if missing:
        log.warning("%s lacks %d of %d fields: %s", folder / SUBMISSION, len(missing), len(names), ", ".join(missing))
    return f"{folder / SUBMISSION}: {len(names) - len(missing)} of {len(names)} fields"


def write_transforms(folder: Path, pair: Pair, done: RegisteredPair, warped: Image, exports: Exports) -> WrittenTransforms:
    """Write a pair's transforms, read each back and compare. warped: the moving image through done.field."""
    written = WrittenTransforms(files={"field": f"{pair.id}_field.nii.gz", "transform": f"{pair.id}_transform.h5"})
    part, some = evenly_spread(done.field)
    ours, both = Image(warped.array[(slice(None), *part)], some.grid), inside(some, done.moving.grid)
    write_field(folder / written.files["field"], done.field)
    write_composite(folder / written.files["transform"], done.alignment.transform, done.deformation)
    for kind, name in list(written.files.items()):
        found = warp_by_itk([(folder / name, False)], done.moving, some.grid)
        written.differences[kind] = _difference(ours, found, both, done.moving)
    if exports.learn2reg:
        name = written.files["learn2reg"] = displacement_name(pair)
        write_learn2reg(folder / name, done.field, done.moving.grid)
        found = warp_by_itk_in_voxels(folder / name, done.moving, done.fixed.grid, some.grid)
        written.differences["learn2reg"] = _difference(ours, found, both, done.moving)
    if exports.inverse:
        _write_inverse(folder, pair, done, written)
    if exports.ants:
        _write_ants(folder, pair, done, ours, both, exports.inverse, written)
    for kind, difference in written.differences.items():
        if difference["max"] is not None and difference["max"] > LARGEST_DIFFERENCE:
            log.warning("%s: SimpleITK warps with %s otherwise than we do, by up to %.2g and on average %.2g of the intensity "
                        "range. Do not trust this file.", pair.id, written.files[kind], *difference.values())  # fmt: skip
    return written


def _write_inverse(folder: Path, pair: Pair, done: RegisteredPair, written: WrittenTransforms) -> None:
    back = done.inverse(done.moving.grid)
    name = written.files["inverse_field"] = f"{pair.id}_inverse_field.nii.gz"
    write_field(folder / name, back)
    error = inverse_error_mm(done.field, back)
    if len(error):
        written.inverse_error_mm = {"mean": float(error.mean()), "p95": float(np.percentile(error, 95))}
    _, some = evenly_spread(back)
    found = warp_by_itk([(folder / name, False)], done.fixed, some.grid)
    written.differences["inverse_field"] = _difference(some.warp(done.fixed), found, inside(some, done.fixed.grid), done.fixed)


def _write_ants(folder: Path, pair: Pair, done: RegisteredPair, ours: Image, both: np.ndarray, inverse: bool,
                written: WrittenTransforms) -> None:  # fmt: skip
    """ANTs' pair of files, p -> affine(warp(p)), and with `inverse` the inverse of the warp, on the fixed grid.

    ours: the voxels of the warped image to compare with; both: which of them lie in the moving image.
    """
    initial, deformation = done.alignment.transform, done.deformation.on(done.fixed.grid)
    names = {"ants_affine": f"{pair.id}_0GenericAffine.mat", "ants_warp": f"{pair.id}_1Warp.nii.gz"}
    affine, warp = (folder / name for name in names.values())
    write_affine(affine, initial)
    write_field(warp, deformation)
    found = warp_by_itk([(warp, False), (affine, False)], done.moving, ours.grid)
    written.files.update(names)
    written.differences["ants_warp"] = _difference(ours, found, both, done.moving)
    if not inverse:
        return
    name = written.files["ants_inverse_warp"] = f"{pair.id}_1InverseWarp.nii.gz"
    back = deformation.inverse(done.fixed.grid)
    back = DisplacementField(back.vectors_mm.cpu(), back.grid)
    write_field(folder / name, back)
    _, start = evenly_spread(initial.inverse().as_field(done.moving.grid))
    total = start.compose(back)
    both = inside(total, done.fixed.grid) & inside(
        start, done.fixed.grid, margin_vox=-0.5
    )  # no field outside the grid, for ITK
    found = warp_by_itk([(affine, True), (folder / name, False)], done.fixed, start.grid)
    written.differences["ants_inverse_warp"] = _difference(total.warp(done.fixed), found, both, done.fixed)


def evenly_spread(field: DisplacementField) -> tuple[tuple[slice, ...], DisplacementField]:
    """Every n-th voxel of a field, at most about CHECKED of them, with the slices that they are."""
    grid = field.grid
    step = max(1, math.ceil((math.prod(grid.shape) / CHECKED) ** (1 / 3)))
    part = tuple(slice((min(n, step) - 1) // 2, None, step) for n in grid.shape)
    affine = grid.affine @ np.diag([step, step, step, 1.0])
    affine[:3, 3] = grid.index_to_world([s.start for s in part])
    vectors = field.vectors_mm[(slice(None), *part)].contiguous()
    return part, DisplacementField(vectors, Grid(tuple(vectors.shape[1:]), affine))


def inside(transform: DisplacementField, target: Grid, margin_vox: float = 0.5) -> np.ndarray:
    """Which voxels (X, Y, Z) of a field's grid land in the field of view of `target`, less a little for rounding."""
    out = np.empty(transform.grid.shape, dtype=bool)
    limit = torch.tensor(target.shape).view(3, 1, 1, 1) - 1 + margin_vox - 1e-3
    for start, stop in slabs(transform.grid.shape):
        points = transform.grid.points_mm(start, stop) + transform.vectors_mm[:, start:stop].cpu()
        landed = to_voxels(points, target)
        out[start:stop] = ((landed > 1e-3 - margin_vox) & (landed < limit)).all(dim=0).numpy()
    return out


def _difference(ours: Image, theirs: np.ndarray, where: np.ndarray, source: Image) -> dict[str, float | None]:
    """Largest and mean difference of two warped images in the overlap, as shares of the source's intensity range."""
    if not where.any():
        return {"max": None, "mean": None}
    apart = np.abs(ours.array[0][where] - theirs[where]) / float(np.ptp(source.array))
    return {"max": float(apart.max()), "mean": float(apart.mean())}
