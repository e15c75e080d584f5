"""nnssl_transform_info: what transform files map, in which units, on which grid, how far and how regularly."""

from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from nnssl_reg.commands.transform_origin import BACK, STEPS, origin_of
from nnssl_reg.evaluation.metrics import folding_percent, sd_log_jacobian
from nnssl_reg.geometry.affine import AffineTransform
from nnssl_reg.geometry.displacement import DisplacementField
from nnssl_reg.imageio.affine_checks import grid_from_affine
from nnssl_reg.imageio.learn2reg import read_learn2reg
from nnssl_reg.imageio.nifti_files import header_affine, read_nifti_header
from nnssl_reg.imageio.transforms import read_affine, read_composite, read_field

FIELDS, COMPOSITES, AFFINES = (".nii.gz", ".nii"), (".h5", ".hdf5"), (".mat", ".tfm", ".txt")
LPS_FIELD = "ITK displacement field (NIfTI, intent 1007), components in mm along LPS"
RAS_FIELD = "displacement field (NIfTI, intent 1006), components in mm along RAS"
FORWARD = "points of the fixed image to points of the moving image; so it warps the moving image onto the fixed grid"
BACKWARD = "points of the moving image to points of the fixed image; so it warps the fixed image onto the moving grid"


@dataclass(frozen=True)
class Told:
    """What a file is: kind and units in words; total: the whole way; affine: the part of it that is stored apart, if any."""

    kind: str
    total: DisplacementField | None
    affine: AffineTransform | None = None
    largest_vox: tuple[float, float] | None = None  # mean and largest displacement in voxels, where the file counts them


def run(args: Namespace) -> int:
    """Print about every file. Exit code 1 if one could not be read; the others are told."""
    failed = 0
    for i, path in enumerate(map(Path, args.files)):
        try:
            text = "\n".join(f"  {name + ':':<14}{said}" for name, said in _lines(path, _read(path)))
        except (ValueError, OSError) as error:
            failed, text = failed + 1, f"  cannot be told: {error}"
        print(("\n" if i else "") + f"{path}\n{text}")
    return 1 if failed else 0


def _read(path: Path) -> Told:
    """Read any transform file. Raises ValueError or FileNotFoundError."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist.")
    name = path.name.lower()
    if name.endswith(FIELDS):
        header = read_nifti_header(path)
        shape = header.get_data_shape()
        if len(shape) == 4 and shape[3] == 3 and int(header["intent_code"]) == 0:
            return _learn2reg(path, header)
        return Told(RAS_FIELD if int(header["intent_code"]) == 1006 else LPS_FIELD, read_field(path))
    if name.endswith(COMPOSITES):
        try:
            initial, deformation = read_composite(path)
        except ValueError:
            return Told("ITK file of linear transforms, LPS mm", None, read_affine(path))
        kind = "ITK composite: a displacement field on its own lattice, applied first, then an affine; LPS mm"
        return Told(kind, initial.after(deformation), initial)
    if name.endswith(AFFINES):
        return Told("ITK affine, LPS mm", None, read_affine(path))
    raise ValueError(f"the ending of {path} is none of {', '.join((*FIELDS, *COMPOSITES, *AFFINES))}.")


def _learn2reg(path: Path, header) -> Told:
    """A field in voxels; in mm it is known only where both images have one grid."""
    vectors = torch.from_numpy(read_learn2reg(path))
    grid = grid_from_affine(tuple(vectors.shape[1:]), header_affine(header, path), path)
    length = vectors.norm(dim=0)
    in_mm = torch.einsum("ij,j...->i...", torch.as_tensor(np.array(grid.affine[:3, :3])).float(), vectors)
    kind = "Learn2Reg field: displacement in voxels along the array axes, (X, Y, Z, 3); affines are ignored"
    return Told(kind, DisplacementField(in_mm, grid), largest_vox=(float(length.mean()), float(length.max())))


def _lines(path: Path, told: Told) -> list[tuple[str, str]]:
    """Name and text of each line to print."""
    lines = [("maps", _maps(path)), ("kind", told.kind)]
    if told.total is not None:
        lines += [("grid", str(told.total.grid)), ("displacement", _displacement(told))]
        jacobian = told.total.jacobian_determinant()
        low, high = float(jacobian.min()), float(jacobian.max())
        regular = f"{folding_percent(jacobian):.4g} % of voxels fold (J <= 0), J from {low:.3g} to {high:.3g}"
        lines.append(("volume", f"{regular}, SDlogJ {sd_log_jacobian(jacobian):.3f}"))
    if told.affine is not None:
        lines += [("affine", _affine(told.affine, told.total))]
    elif told.total is not None:
        nearest = AffineTransform(told.total.affine_part()) if min(told.total.grid.shape) > 1 else AffineTransform.identity()
        lines += [("affine part", f"{_affine(nearest, told.total)} (the nearest to the field; none is stored)")]
    return lines


def _maps(path: Path) -> str:
    """The direction in words, with the images' names where a sidecar of nnssl_register tells what the file is."""
    origin = origin_of(path)
    if origin.kind is None:
        return f"{FORWARD} (if it was written as nnssl_register writes; {origin.source})"
    way = STEPS.get(origin.kind) or (BACKWARD if origin.kind == BACK else FORWARD)
    return f"{way} ({origin.source})"


def _displacement(told: Told) -> str:
    length = told.total.vectors_mm.norm(dim=0)
    in_mm = f"mean {float(length.mean()):.2f} mm, largest {float(length.max()):.2f} mm"
    if told.largest_vox is None:
        return in_mm
    return "mean {:.2f} voxels, largest {:.2f} voxels; ".format(*told.largest_vox) + f"{in_mm} if both images have this grid"


def _affine(affine: AffineTransform, total: DisplacementField | None) -> str:
    """Rotation, scales and shift in words; the shift is that of the grid's centre, for a far origin would add to it."""
    if affine.is_identity:
        return "none (identity)"
    linear = affine.matrix[:3, :3]
    u, scales, v = np.linalg.svd(linear)
    rotation = u @ np.diag([1, 1, np.sign(np.linalg.det(u @ v))]) @ v
    degrees = np.degrees(np.arccos(np.clip((np.trace(rotation) - 1) / 2, -1, 1)))
    centre = np.zeros(3) if total is None else total.grid.center_mm
    shift = affine.apply(centre) - centre
    where = "world origin" if total is None else "grid's centre"
    mirrored = ", mirrored" if np.linalg.det(linear) < 0 else ""
    said = (f"rotation {degrees:.2f} degrees, scales {' x '.join(f'{s:.3f}' for s in scales)}{mirrored}, shift of the {where} "
            f"({', '.join(f'{s:.2f}' for s in shift)}) mm along RAS, {np.linalg.norm(shift):.2f} mm long")  # fmt: skip
    if total is None:
        return said
    left = (total.vectors_mm - affine.as_field(total.grid).vectors_mm.to(total.vectors_mm)).norm(dim=0)
    return f"{said}; without it mean {float(left.mean()):.2f} mm, largest {float(left.max()):.2f} mm are left"
