"""Written transforms applied by SimpleITK: what another program makes of our files, to compare with what we make."""

from pathlib import Path

import numpy as np

from nnssl_reg.geometry.grid import Grid
from nnssl_reg.geometry.image import Image
from nnssl_reg.imageio.itk_files import set_itk_grid
from nnssl_reg.imageio.learn2reg import read_learn2reg
from nnssl_reg.imageio.memory_order import in_order


def warp_by_itk(files: list[tuple[str | Path, bool]], image: Image, grid: Grid) -> np.ndarray:
    """An image on another grid, (X, Y, Z) float32, linearly, its minimum outside, by SimpleITK.

    files: transform files in the order that a point of `grid` goes through them, each with whether its inverse is meant (of
    affines only). Raises RuntimeError where SimpleITK cannot read them.
    """
    import SimpleITK as sitk  # slow to load; only the check of transforms needs it

    parts = [_transform(path, inverted) for path, inverted in files]
    return _resampled(sitk.CompositeTransform(parts[::-1]) if len(parts) > 1 else parts[0], image, grid)


def warp_by_itk_in_voxels(path: str | Path, image: Image, fixed: Grid, grid: Grid) -> np.ndarray:
    """The same for a field of Learn2Reg: both arrays lie in one world whose unit is the voxel, their affines are ignored.

    fixed: the fixed image's grid, of whose voxels the field is; grid: some of its voxels.
    """
    import SimpleITK as sitk  # slow to load; only the check of transforms needs it

    vectors = np.ascontiguousarray(read_learn2reg(path).transpose(3, 2, 1, 0), dtype=np.float64)
    transform = sitk.DisplacementFieldTransform(sitk.GetImageFromArray(vectors, isVector=True))
    plain = np.diag([-1.0, -1.0, 1.0, 1.0])  # ITK's voxels of 1 from 0, in RAS
    some = Grid(grid.shape, plain @ np.linalg.inv(fixed.affine) @ grid.affine)
    return _resampled(transform, Image(image.array, Grid(image.grid.shape, plain)), some)


def _transform(path: str | Path, inverted: bool):
    import SimpleITK as sitk  # slow to load; only the check of transforms needs it

    if str(path).endswith((".nii.gz", ".nii")):
        return sitk.DisplacementFieldTransform(sitk.ReadImage(str(path), sitk.sitkVectorFloat64))
    transform = sitk.ReadTransform(str(path))
    return transform.GetInverse() if inverted else transform


def _resampled(transform, image: Image, grid: Grid) -> np.ndarray:
    import SimpleITK as sitk  # slow to load; only the check of transforms needs it

    moving = sitk.GetImageFromArray(in_order(image.array[0], np.float32, "F").T)
    set_itk_grid(moving, image.grid)
    reference = sitk.Image([1, 1, 1], sitk.sitkUInt8)
    set_itk_grid(reference, grid)
    result = sitk.Resample(moving, list(grid.shape), transform, sitk.sitkLinear, reference.GetOrigin(), reference.GetSpacing(),
                           reference.GetDirection(), float(image.array.min()), sitk.sitkFloat32)  # fmt: skip
    return sitk.GetArrayFromImage(result).T
