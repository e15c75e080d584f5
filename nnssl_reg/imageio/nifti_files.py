"""NIfTI files as bytes, header and voxels: truncation, corruption and contradictory geometry are found here."""

import logging
import math
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
from isal import igzip, isal_zlib
from nibabel.spatialimages import HeaderDataError

from nnssl_reg.geometry.grid import Grid
from nnssl_reg.imageio.affine_checks import is_spacing, is_usable
from nnssl_reg.imageio.json_files import atomic_path
from nnssl_reg.imageio.memory_order import in_order

_HEAD_BYTES = 2**16  # of the file: enough for the header, compressed or not
_SFORM_QFORM_MM = 0.1  # below this, sform and qform are the same but for rounding

log = logging.getLogger("nnssl_reg")
Header = nib.Nifti1Header | nib.Nifti2Header


def read_nifti_header(path: Path) -> Header:
    """The header of a .nii or .nii.gz, from its first bytes only."""
    with open(path, "rb") as file:
        return _header(_first_bytes(file.read(_HEAD_BYTES), path), path)


def read_nifti_voxels(path: Path) -> tuple[np.ndarray, Header]:
    """The stored (unscaled) voxels as a read-only array of the header's shape, and the header. One read of the file.

    Raises ValueError for a file that is empty, no NIfTI, truncated (bytes expected and found) or corrupt.
    """
    raw = path.read_bytes()
    header = _header(_first_bytes(raw, path), path)
    shape, dtype = header.get_data_shape(), _dtype(header, path)
    start = _voxel_offset(header)
    count = math.prod(int(n) for n in shape)
    expected = start + count * dtype.itemsize
    if raw[:2] == b"\x1f\x8b":
        raw = _gunzipped(raw, expected, path)
    if len(raw) < expected:
        raise ValueError(f"{path} is truncated: its header promises {expected} bytes, {len(raw)} are there. Copy it again.")
    return np.frombuffer(raw, dtype, count, start).reshape(shape, order="F"), header


def header_affine(header: Header, path: Path) -> np.ndarray:
    """Voxel index -> RAS mm, (4, 4) float64: the sform if it is set and usable, else the qform, else the spacing alone.

    Logs which one is used where they contradict each other. Raises ValueError where none is usable.
    """
    spacing = np.array(header["pixdim"][1:4], dtype=np.float64)
    sform_code, qform_code = int(header["sform_code"]), int(header["qform_code"])
    sform = np.array(header.get_sform()) if sform_code > 0 else None
    qform = _qform(header) if qform_code > 0 and is_spacing(spacing) else None
    if sform is not None and is_usable(sform):
        _say_contradictions(sform, qform, spacing, header, path)
        return sform
    if qform is not None:
        if sform is not None:
            log.warning("%s: the sform is unusable (%s); the qform is used.", path, sform[:3].round(4).tolist())
        return qform
    if sform is not None:
        return sform  # refused, with its values, where the grid is made
    if not is_spacing(spacing):
        raise ValueError(f"{path}: the spacing {tuple(spacing.tolist())} is impossible and there is no sform; "
                         "write the right one into its header, e.g. with nibabel: image.header.set_zooms.")  # fmt: skip
    if qform_code > 0:
        raise ValueError(f"{path}: the quaternion of the qform is no rotation and there is no sform; write the right affine "
                         "into its header, e.g. with nibabel: image.set_sform(affine, 1).")  # fmt: skip
    log.warning("%s has neither sform nor qform, so its position and orientation are unknown; its axes are taken as left, "
                "posterior, superior from 0, as ITK does.", path)  # fmt: skip
    return np.diag([-spacing[0], -spacing[1], spacing[2], 1.0])


def write_nifti(path: Path, array: np.ndarray, affine: np.ndarray, intent_code: int = 0) -> None:
    """Write voxels in their own dtype with sform and qform = affine, mm, atomically."""
    if array.ndim == 3 and not array.flags.f_contiguous:
        array = in_order(array, array.dtype, "F")
    image = nib.Nifti1Image(array, affine, dtype=array.dtype)
    image.set_sform(affine, code=1)
    image.set_qform(affine, code=1)
    image.header.set_xyzt_units("mm")
    image.header["intent_code"] = intent_code
    with atomic_path(path) as temporary:
        if path.name.lower().endswith(".gz"):
            # as small as zlib's level 1 in a seventh of its time; without name and time the same image is the same file
            with open(temporary, "wb") as file, igzip.IGzipFile("", "wb", 1, file, mtime=0) as stream:
                image.to_stream(stream)
        else:
            nib.save(image, temporary)


def _first_bytes(raw: bytes, path: Path) -> bytes:
    """The start of the unpacked file, from the start of the file."""
    if not raw:
        raise ValueError(f"{path} is empty (0 bytes). Copy it again.")
    if raw[:2] != b"\x1f\x8b":
        if path.name.lower().endswith(".gz") and _kind(raw) is not None:
            log.warning("%s is not compressed although its name ends in .gz; other programs may refuse it.", path)
        return raw
    try:
        return zlib.decompressobj(31).decompress(raw, 1024)
    except zlib.error as error:
        raise ValueError(f"{path} is corrupt: it cannot be unpacked ({error}). Copy it again.") from error


def _kind(head: bytes) -> type[Header] | None:
    """The class of a header block, None if it is none."""
    kinds = (nib.Nifti1Header, nib.Nifti2Header)
    return next((k for k in kinds if len(head) >= k.sizeof_hdr and k.may_contain_header(head)), None)


def _header(head: bytes, path: Path) -> Header:
    kind = _kind(head)
    if kind is None:
        raise ValueError(f"{path} is not a NIfTI image: it starts with {head[:12]!r}, and its name ends as one. Give it its "
                         "real ending, or convert it.")  # fmt: skip
    header = kind(head[: kind.sizeof_hdr], check=False)
    if header["magic"].item() in (b"ni1", b"ni2"):
        raise ValueError(f"{path} is one half of an .hdr/.img pair; convert it to .nii.gz, e.g. with nibabel.")
    dim = header["dim"]
    if not 1 <= dim[0] <= 7 or min(dim[1 : dim[0] + 1]) < 1:
        raise ValueError(f"{path} is corrupt: its header has dimensions {dim.tolist()}.")
    return header


def _dtype(header: Header, path: Path) -> np.dtype:
    try:
        dtype = header.get_data_dtype()
    except (HeaderDataError, KeyError):
        dtype = np.dtype("V")
    if dtype.itemsize == 0:
        raise ValueError(f"{path} is corrupt: its header has the unknown data type {int(header['datatype'])}.")
    return dtype


def _voxel_offset(header: Header) -> int:
    """Where the voxels begin; headers that leave it out mean the first place possible."""
    offset = float(header["vox_offset"])
    return int(offset) if header.sizeof_hdr <= offset < 2**62 else header.single_vox_offset


def _gunzipped(raw: bytes, expected: int, path: Path) -> bytes:
    """The first `expected` unpacked bytes of a gzip file of one or more members."""
    parts, found = [], 0
    while True:
        unpacker = isal_zlib.decompressobj(31)
        try:
            parts.append(unpacker.decompress(raw, expected - found + 1))  # one more than needed, to reach the checksum
        except isal_zlib.error as error:
            raise ValueError(f"{path} is corrupt: it cannot be unpacked to the {expected} bytes that its header promises "
                             f"({error}). Copy it again.") from error  # fmt: skip
        found += len(parts[-1])
        if not unpacker.eof or found >= expected or not unpacker.unused_data:
            break
        raw = unpacker.unused_data
    if found == expected and not unpacker.eof:
        raise ValueError(f"{path} is truncated: all {expected} bytes of the image are there, but not the checksum after them. "
                         "Copy it again.")  # fmt: skip
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _qform(header: Header) -> np.ndarray | None:
    """The qform, None where its quaternion is impossible."""
    try:
        affine = np.array(header.get_qform())
    except (HeaderDataError, ValueError):
        return None
    return affine if is_usable(affine) else None


def _say_contradictions(sform: np.ndarray, qform: np.ndarray | None, spacing: np.ndarray, header: Header, path: Path) -> None:
    """Log where the qform or the spacing says something else than the sform, which is used."""
    own = np.linalg.norm(sform[:3, :3], axis=0)
    shape = (*header.get_data_shape(), 1, 1)[:3]
    if qform is not None:
        apart = float(np.abs(Grid(shape, sform).corners_mm() - Grid(shape, qform).corners_mm()).max())
        if apart > _SFORM_QFORM_MM:
            log.warning("%s: sform and qform disagree by up to %.1f mm; the sform is used.", path, apart)
    elif not is_spacing(spacing):
        log.warning("%s: the spacing %s in its header is impossible; that of the sform, (%s) mm, is used.",
                    path, tuple(spacing.tolist()), ", ".join(f"{s:.3g}" for s in own))  # fmt: skip
