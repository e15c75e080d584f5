"""Images of numpy, SimpleITK and nibabel in memory to Image and back, with the checks that files get."""

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from nnssl_reg.geometry.grid import Grid
from nnssl_reg.geometry.image import Image
from nnssl_reg.imageio.affine_checks import grid_from_affine
from nnssl_reg.imageio.images import read_image, read_labels, whole_numbers
from nnssl_reg.imageio.itk_files import itk_grid, set_itk_grid


def to_image(data: Any, name: str, like: Grid | None = None) -> Image:
    """Intensities, float32, from a path, an Image, a SimpleITK or nibabel image, or (array, affine or spacing in mm).

    like: the grid of an array that comes alone. Raises ValueError, beginning with `name`, for what is no volume, holds NaN or
    infinities, or is constant.
    """
    if isinstance(data, (str, Path)):
        return read_image(data)
    array, grid = _voxels(data, name, like)
    array = np.ascontiguousarray(array, dtype=np.float32)
    bad = int((~np.isfinite(array)).sum())
    if bad:
        raise ValueError(f"{name}: {bad} voxels ({100 * bad / array.size:.3g} %) are NaN or infinite; fill them first, for "
                         "example with numpy.nan_to_num.")  # fmt: skip
    if array.min() == array.max():
        raise ValueError(f"{name} is constant ({array.min():g}), there is nothing to see in it.")
    return Image(array[None], grid)


def to_labels(data: Any, name: str, like: Grid | None = None) -> Image:
    """Labels in an integer type, from what to_image takes. Raises ValueError for fractions and for what is no volume."""
    if isinstance(data, (str, Path)):
        return read_labels(data)
    array, grid = _voxels(data, name, like)
    if array.dtype == bool:
        array = array.astype(np.uint8)
    if not np.issubdtype(array.dtype, np.integer):
        if not np.isfinite(array).all():
            raise ValueError(f"{name}: labels are whole numbers, some of these are NaN or infinite.")
        array = whole_numbers(array, name)
    return Image(np.ascontiguousarray(array)[None], grid)


def from_image(image: Image, family: Any) -> Any:
    """A single-channel Image as the kind of thing that `family` is: array, SimpleITK or nibabel image, else Image."""
    if _is_sitk(family):
        import SimpleITK as sitk  # slow to load; whoever has such an image has loaded it

        out = sitk.GetImageFromArray(np.ascontiguousarray(image.array[0].T))
        set_itk_grid(out, image.grid)
        return out
    if isinstance(family, nib.spatialimages.SpatialImage):
        return nib.Nifti1Image(image.array[0], image.grid.affine, dtype=image.array.dtype)
    return image.array[0] if isinstance(family, (np.ndarray, tuple, list)) else image


def _voxels(data: Any, name: str, like: Grid | None) -> tuple[np.ndarray, Grid]:
    """The array (X, Y, Z) of an image in memory and where its voxels are."""
    if isinstance(data, Image):
        if data.array.shape[0] != 1:
            raise ValueError(f"{name} has {data.array.shape[0]} channels, an image to register has one.")
        return data.array[0], data.grid
    if _is_sitk(data):
        import SimpleITK as sitk  # slow to load; whoever has such an image has loaded it

        if data.GetDimension() != 3 or data.GetNumberOfComponentsPerPixel() != 1:
            raise ValueError(f"{name} has {data.GetDimension()} dimensions and {data.GetNumberOfComponentsPerPixel()} values "
                             "per voxel; a volume with one value is needed.")  # fmt: skip
        return _volume(sitk.GetArrayFromImage(data).T, name), itk_grid(data)
    if isinstance(data, nib.spatialimages.SpatialImage):
        array = _volume(np.asanyarray(data.dataobj), name)
        return array, grid_from_affine(array.shape, data.affine, name)
    if isinstance(data, tuple) and len(data) == 2:
        array = _volume(np.asarray(data[0]), name)
        return array, grid_from_affine(array.shape, _affine(data[1], name), name)
    return _alone(data, name, like)


def _alone(data: Any, name: str, like: Grid | None) -> tuple[np.ndarray, Grid]:
    """An array without position: on the grid `like`."""
    if not isinstance(data, np.ndarray):
        raise ValueError(f"{name} is a {type(data).__name__}; give a path, a SimpleITK or nibabel image, an Image of this "
                         "package, or (array, affine).")  # fmt: skip
    if like is None:
        raise ValueError(f"{name}: an array alone does not say where its voxels are; give (array, affine), index to RAS mm as "
                         "in nibabel, or (array, spacing in mm).")  # fmt: skip
    array = _volume(data, name)
    if array.shape != like.shape:
        raise ValueError(f"{name} has the shape {array.shape}, the image that it belongs to {like.shape}; an array alone must "
                         "lie on the voxels of its image.")  # fmt: skip
    return array, like


def _affine(place: Any, name: str) -> np.ndarray:
    """A (4, 4) affine, or one made of a spacing in mm."""
    place = np.asarray(place, dtype=np.float64)
    if place.shape == (4, 4):
        return place
    if place.shape == (3,):
        return np.diag([*place, 1.0])
    raise ValueError(f"{name}: beside an array stands its affine (4 x 4) or its spacing (3 numbers, mm), got {place.tolist()}.")


def _volume(array: np.ndarray, name: str) -> np.ndarray:
    if array.ndim != 3 or min(array.shape) < 2:
        raise ValueError(f"{name} has the shape {array.shape}; a volume of three axes, at least two voxels each, is needed.")
    return array


def _is_sitk(data: Any) -> bool:
    return type(data).__module__.partition(".")[0] == "SimpleITK"
