"""Submissions to the Learn2Reg challenge: fields in voxels under its file names, checked against its json, packed as a zip."""

import re
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nnssl_reg.geometry.displacement import DisplacementField
from nnssl_reg.geometry.grid import Grid
from nnssl_reg.imageio.images import file_stem, read_grid
from nnssl_reg.imageio.json_files import atomic_path
from nnssl_reg.imageio.nifti_files import read_nifti_voxels, write_nifti
from nnssl_reg.imageio.pairs import Pair

SUBMISSION = "submission.zip"
_NAME = re.compile(r".+_(\d{4}_(\d{4}))")  # TASK_0001_0000: subject, then channel, four digits each


def displacement_name(pair: Pair) -> str:
    """ "disp_FFFF_CCCC_MMMM_CCCC.nii.gz" of a pair. Raises ValueError for images that are not named TASK_0001_0000."""
    found = [_NAME.fullmatch(file_stem(path)) for path in (pair.fixed, pair.moving)]
    wrong = [path.name for path, match in zip((pair.fixed, pair.moving), found) if match is None]
    if wrong:
        raise ValueError(f"{' and '.join(wrong)} cannot be named in Learn2Reg's way: file names should end in subject and "
                         "channel, four digits each, as in TASK_0001_0000.nii.gz")  # fmt: skip
    return f"disp_{found[0][1]}_{found[1][1]}.nii.gz"


def submission_problems(pairs: Sequence[Pair], dataset: Any) -> list[str]:
    """What keeps pairs from a submission: file names, two pairs of one name, shapes other than the data set's json states.

    dataset: the parsed json that names the pairs, with tensorImageShape {"0": [X, Y, Z]} or [X, Y, Z]; without it the shapes
    of both images must be equal. Only headers are read; files that cannot be read are left to be reported elsewhere.
    """
    problems, names = [], {}
    for pair in pairs:
        try:
            names.setdefault(displacement_name(pair), []).append(pair.id)
        except ValueError as error:
            problems.append(f"{pair.id}: {error}")
        problems += _shape_problems(pair, dataset if isinstance(dataset, dict) else {})
    problems += [f"{' and '.join(ids)} would both be {name}" for name, ids in names.items() if len(ids) > 1]
    return problems


def write_learn2reg(path: str | Path, field: DisplacementField, moving_grid: Grid) -> None:
    """Write a field as float32 (X, Y, Z, 3): component c in voxels along array axis c, moving index less fixed index."""
    vectors = np.moveaxis(field.in_voxels(moving_grid).cpu().numpy(), 0, -1).astype(np.float32)
    write_nifti(Path(path), vectors, field.grid.affine)


def read_learn2reg(path: str | Path) -> np.ndarray:
    """The displacement in voxels, (3, X, Y, Z) float32. Raises ValueError for files of another shape."""
    stored, _ = read_nifti_voxels(Path(path))
    if stored.ndim != 4 or stored.shape[3] != 3:
        raise ValueError(f"{path} is no field of Learn2Reg: shape {stored.shape}, expected (X, Y, Z, 3).")
    return np.moveaxis(stored, -1, 0).astype(np.float32, order="C")


def write_submission(folder: str | Path, names: Iterable[str]) -> list[str]:
    """Pack these files of a folder into its submission.zip, at the top level. Returns the names that are not there."""
    folder, names = Path(folder), list(names)
    with atomic_path(folder / SUBMISSION) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        for name in names:
            if (folder / name).is_file():
                archive.write(folder / name, name)
    return [name for name in names if not (folder / name).is_file()]


def _shape_problems(pair: Pair, dataset: dict) -> list[str]:
    stated, shapes = dataset.get("tensorImageShape"), {}
    for path in (pair.fixed, pair.moving):
        try:
            shapes[path] = read_grid(path).shape
        except (ValueError, OSError):
            return []
    if stated is None:
        a, b = shapes[pair.fixed], shapes[pair.moving]
        return [] if a == b else [f"{pair.id}: fixed and moving image have the shapes {a} and {b}, Learn2Reg's have one shape"]
    expected = {path: _stated_shape(stated, path) for path in shapes}
    return [f"{path.name} has the shape {shape}, tensorImageShape of the json says {expected[path]}"
            for path, shape in shapes.items() if expected[path] is not None and shape != expected[path]]  # fmt: skip


def _stated_shape(stated: Any, path: Path) -> tuple[int, ...] | None:
    """The shape that tensorImageShape states for the channel of an image, None if it states none."""
    if isinstance(stated, dict):
        match = _NAME.fullmatch(file_stem(path))
        channel = int(match[2]) if match else 0
        stated = next((value for key, value in stated.items() if str(key).isdigit() and int(key) == channel), None)
    return tuple(stated) if isinstance(stated, (list, tuple)) else None
