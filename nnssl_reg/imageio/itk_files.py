"""MetaImage and NRRD files, read and written by SimpleITK, in our axes (X, Y, Z) and RAS mm."""

from pathlib import Path

import numpy as np

from nnssl_reg.geometry.grid import Grid
from nnssl_reg.imageio.json_files import atomic_path

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])  # its own inverse


def read_itk_header(path: Path) -> tuple[tuple[int, ...], np.ndarray]:
    """Shape (X, Y, Z, ...) and affine (4, 4) from the header alone."""
    reader = _reader(path)
    return _shape(reader), _affine(reader)


def read_itk_voxels(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Voxels (X, Y, Z, ...) in their own dtype and the affine. Raises ValueError for unreadable, truncated, colour files."""
    import SimpleITK as sitk  # slow to load; only these formats need it

    reader = _reader(path)
    shape, affine = _shape(reader), _affine(reader)
    try:
        image = reader.Execute()
    except RuntimeError as error:
        parts = [file for file in sorted(path.parent.glob(f"{path.stem}.*")) if file.suffix in (path.suffix, ".raw", ".zraw")]
        found = sum(file.stat().st_size for file in parts)
        voxels = int(np.prod(shape)) * np.dtype(sitk.extra._get_numpy_dtype(sitk.Image(1, 1, reader.GetPixelID()))).itemsize
        raise ValueError(f"{path} is truncated or corrupt: its header promises {voxels} bytes of voxels (before compression), "
                         f"{found} bytes are on disk ({_last_line(error)}). Copy it again.") from error  # fmt: skip
    return sitk.GetArrayFromImage(image).T, affine


def write_itk(path: Path, array: np.ndarray, grid: Grid) -> None:
    """Write (X, Y, Z) voxels in their own dtype, compressed, atomically."""
    import SimpleITK as sitk  # slow to load; only these formats need it

    image = sitk.GetImageFromArray(np.ascontiguousarray(array.T))
    set_itk_grid(image, grid)
    with atomic_path(path) as temporary:
        sitk.WriteImage(image, str(temporary), useCompression=True)


def set_itk_grid(image, grid: Grid) -> None:
    """Give a SimpleITK image the spacing, origin and direction (LPS mm) of a grid."""
    affine = LPS_TO_RAS @ grid.affine
    image.SetSpacing(grid.spacing_mm)
    image.SetOrigin(affine[:3, 3].tolist())
    image.SetDirection((affine[:3, :3] / np.array(grid.spacing_mm)).ravel().tolist())


def itk_grid(image) -> Grid:
    """The grid of a three-dimensional SimpleITK image."""
    return Grid(image.GetSize(), _affine(image))


def _reader(path: Path):
    """A SimpleITK reader that has read the header."""
    import SimpleITK as sitk  # slow to load; only these formats need it

    if path.stat().st_size == 0:
        raise ValueError(f"{path} is empty (0 bytes). Copy it again.")
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        with open(path, "rb") as file:
            start = file.read(12)
        raise ValueError(f"{path} is not a readable {path.suffix} image: it starts with {start!r} "
                         f"({_last_line(error)}).") from error  # fmt: skip
    components = reader.GetNumberOfComponents()
    if components > 1:
        raise ValueError(f"{path} has {components} values per voxel (colour or vectors), shape {reader.GetSize()}; one is "
                         "needed. Convert it to a single channel.")  # fmt: skip
    return reader


def _shape(image) -> tuple[int, ...]:
    return tuple(image.GetSize())


def _affine(image) -> np.ndarray:
    """Voxel index -> RAS mm from spacing, origin and direction of a SimpleITK image or reader (further axes left out)."""
    n = len(image.GetSpacing())
    linear, affine = np.eye(max(n, 3)), np.eye(4)
    linear[:n, :n] = np.reshape(image.GetDirection(), (n, n)) * np.array(image.GetSpacing())
    affine[:3, :3] = linear[:3, :3]
    affine[: min(n, 3), 3] = image.GetOrigin()[:3]
    return LPS_TO_RAS @ affine


def _last_line(error: RuntimeError) -> str:
    return str(error).strip().splitlines()[-1].strip()
