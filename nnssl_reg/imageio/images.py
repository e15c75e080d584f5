"""Image files to Image and back: every way a file can be unfit is found here, named, and answered with a way out."""

from pathlib import Path

import numpy as np

from nnssl_reg.geometry.grid import Grid
from nnssl_reg.geometry.image import Image
from nnssl_reg.imageio.affine_checks import grid_from_affine
from nnssl_reg.imageio.itk_files import read_itk_header, read_itk_voxels, write_itk
from nnssl_reg.imageio.memory_order import in_order
from nnssl_reg.imageio.nifti_files import header_affine, read_nifti_header, read_nifti_voxels, write_nifti

FILE_ENDINGS = (".nii.gz", ".nii", ".mha", ".mhd", ".nrrd")
OF_IMAGES = "nnssl_register, nnssl_tune_registration, nnssl_apply_transform; in Python read_image(FILE, volume=0)"
OF_LABELS = "nnssl_apply_transform; nnssl_register and nnssl_tune_registration, if their image has as many"


def file_ending(path: str | Path) -> str:
    """The one of FILE_ENDINGS that a file name ends in (lower case). Raises ValueError for another."""
    name = Path(path).name.lower()
    ending = next((ending for ending in FILE_ENDINGS if name.endswith(ending)), None)
    if ending is None:
        raise ValueError(f"{path}: the ending is none of {', '.join(FILE_ENDINGS)}. Convert it to one of them.")
    return ending


def file_stem(path: str | Path) -> str:
    """A file's name without its ending."""
    return Path(path).name[: -len(file_ending(path))]


def read_image(path: str | Path, volume: int | None = None, fill: float | None = None) -> Image:
    """Intensities as float32 (1, X, Y, Z). volume: which one of a 4-D file. fill: replaces NaN and infinities.

    Raises FileNotFoundError, or ValueError for files that are truncated, no image, 2-D, 4-D without `volume`, colour,
    constant, sheared, or hold NaN or infinities (without `fill`).
    """
    path = _existing(path)
    stored, slope, intercept, grid = _stored(path, volume, OF_IMAGES)
    with np.errstate(over="ignore", invalid="ignore"):  # what becomes infinite is reported below
        array = in_order(stored, np.float32, "C")
        if slope != 1:
            array *= np.float32(slope)
        if intercept != 0:
            array += np.float32(intercept)
    if fill is not None:
        array[~np.isfinite(array)] = fill
    low, high = float(array.min()), float(array.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ValueError(_not_finite_message(array, path))
    if low == high:
        raise ValueError(f"{path}: the image is constant ({low:g}), there is nothing to see in it. Leave it out.")
    return Image(array[None], grid)


def read_labels(path: str | Path, volume: int | None = None) -> Image:
    """Labels (1, X, Y, Z) in the file's integer type; floating point labels that are whole numbers become integers.

    Raises as read_image does (a constant label map is allowed), and ValueError for fractions.
    """
    path = _existing(path)
    stored, slope, intercept, grid = _stored(path, volume, OF_LABELS)
    if np.issubdtype(stored.dtype, np.integer) and (slope, intercept) == (1, 0):
        return Image(in_order(stored, stored.dtype.newbyteorder("="), "C")[None], grid)
    array = stored if (slope, intercept) == (1, 0) else stored.astype(np.float64) * slope + intercept
    if not np.isfinite(array).all():
        raise ValueError(_not_finite_message(array, path))
    return Image(whole_numbers(array, path)[None], grid)


def whole_numbers(array: np.ndarray, name: str | Path) -> np.ndarray:
    """Finite floating point labels as the smallest integer type that holds them. Raises ValueError for fractions."""
    whole = np.rint(array)
    wrong = (np.abs(array - whole) > 1e-4) | (np.abs(whole) >= 2**31)  # a slope such as 1/255 rounds
    if wrong.any():
        raise ValueError(f"{name}: {int(wrong.sum())} voxels of the labels are no whole numbers (for example "
                         f"{array[wrong][0]:g}); was it resampled linearly, or is it an image? Resample labels with nearest "
                         "neighbour.")  # fmt: skip
    dtype = np.min_scalar_type(int(whole.min())) if whole.min() < 0 else np.uint8
    dtype = np.result_type(dtype, np.min_scalar_type(int(whole.max())))
    return whole.astype(dtype, order="C")


def read_grid(path: str | Path) -> Grid:
    """The grid of an image file from its header alone, with the checks that need no voxels."""
    shape, affine = _header(_existing(path))
    return grid_from_affine(_spatial_shape(shape, path), affine, path)


def count_volumes(path: str | Path) -> int:
    """How many volumes a file's header tells of: 1, or more for a 4-D file."""
    return int(np.prod(_header(_existing(path))[0][3:]))


def write_image(path: str | Path, image: Image) -> None:
    """Write a single-channel image in its own dtype, as its file ending says, atomically."""
    path = Path(path)
    if image.array.shape[0] != 1:
        raise ValueError(f"{path}: an image file holds one channel, got {image.array.shape[0]}.")
    if file_ending(path) in (".nii", ".nii.gz"):
        write_nifti(path, image.array[0], image.grid.affine)
    else:
        write_itk(path, image.array[0], image.grid)


def check_same_grid(image: Image, label: Image, tolerance_mm: float = 0.1, name: str = "the image",
                    kind: str = "labels") -> None:  # fmt: skip
    """Raise ValueError, naming both grids, where labels (or another kind of voxels) do not lie on the grid of their image."""
    if not image.grid.matches(label.grid, tolerance_mm):
        apart = ""
        if image.grid.shape == label.grid.shape:
            mm = np.linalg.norm(image.grid.corners_mm() - label.grid.corners_mm(), axis=1).max()
            apart = f" (corners up to {mm:.2f} mm apart, tolerance {tolerance_mm:g} mm)"
        raise ValueError(f"The {kind} of {name} are on another grid{apart}: image {image.grid}, {kind} {label.grid}. They "
                         f"would be read at the wrong places; resample the {kind} onto the image's grid (nearest neighbour), "
                         "or copy the image's header if only that is wrong.")  # fmt: skip


def _existing(path: str | Path) -> Path:
    path = Path(path)
    file_ending(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist.")
    if not path.is_file():
        raise ValueError(f"{path} is a folder, an image file was expected.")
    return path


def _header(path: Path) -> tuple[tuple[int, ...], np.ndarray]:
    """Shape and affine of a file, from its header alone."""
    if file_ending(path) in (".nii", ".nii.gz"):
        header = read_nifti_header(path)
        return header.get_data_shape(), header_affine(header, path)
    return read_itk_header(path)


def _stored(path: Path, volume: int | None, who: str) -> tuple[np.ndarray, float, float, Grid]:
    """One volume (X, Y, Z) as stored, the slope and intercept to apply, and its grid. who: lets one be chosen, in words."""
    slope, intercept = None, None
    if file_ending(path) in (".nii", ".nii.gz"):
        array, header = read_nifti_voxels(path)
        slope, intercept = header.get_slope_inter()
        affine = header_affine(header, path)
    else:
        array, affine = read_itk_voxels(path)
    if array.dtype.fields is not None or np.issubdtype(array.dtype, np.complexfloating):
        kind = "colour" if array.dtype.fields is not None else "complex"
        raise ValueError(f"{path} holds {kind} values (shape {array.shape}, {array.dtype}), an image needs one real number per "
                         "voxel. Convert it to a single channel.")  # fmt: skip
    shape = _spatial_shape(array.shape, path)
    volumes = array.reshape(*shape, -1, order="F")
    count = volumes.shape[3]
    if count > 1 and volume is None:
        raise ValueError(f"{path} is 4-D, shape {array.shape}: choose one of its {count} volumes with -volume 0 ... "
                         f"{count - 1} ({who}), or split it into one file each.")  # fmt: skip
    if count > 1 and not 0 <= volume < count:
        raise ValueError(f"{path} has the volumes 0 ... {count - 1} (shape {array.shape}), not {volume}.")
    slope, intercept = 1.0 if slope is None else slope, 0.0 if intercept is None else intercept
    return volumes[..., volume if count > 1 else 0], slope, intercept, grid_from_affine(shape, affine, path)


def _spatial_shape(shape: tuple[int, ...], path: Path) -> tuple[int, int, int]:
    """The three spatial axes of a file's shape, which may go on with volumes."""
    if len(shape) > 4 and any(n > 1 for n in shape[4:]):
        raise ValueError(f"{path} holds vectors or more dimensions than volumes (shape {tuple(shape)}), not one image.")
    if len(shape) < 3 or min(shape[:3]) == 1:
        raise ValueError(f"{path} is 2-D, shape {tuple(shape)}; a volume is needed. Stack its slices into one.")
    return tuple(int(n) for n in shape[:3])


def _not_finite_message(array: np.ndarray, path: Path) -> str:
    """Count, share and box of NaN and infinite voxels, and how to fill them."""
    bad = ~np.isfinite(array)
    count = int(bad.sum())
    box = [[int(where.min()), int(where.max()) + 1] for where in np.nonzero(bad)]
    good = array[~bad]
    if good.size == 0:
        return f"{path}: all {count} voxels are NaN or infinite. Leave it out."
    return (
        f"{path}: {count} voxels ({100 * count / array.size:.3g} %) are NaN or infinite ({int(np.isnan(array).sum())} NaN), in "
        f"the box {box}. If they lie outside the body, fill them in Python: from nnssl_reg.imageio.images import *; "
        f"write_image('filled.nii.gz', read_image('{path}', fill={float(good.min()):g}))."
    )
