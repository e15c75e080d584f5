"""Transforms as ITK, ANTs and 3D Slicer read them: fields as NIfTI (LPS mm), composites as .h5, affines as .tfm or .mat."""

from pathlib import Path

import numpy as np
import torch

from nnssl_reg.geometry.affine import AffineTransform
from nnssl_reg.geometry.displacement import DisplacementField
from nnssl_reg.geometry.host_memory import on_host
from nnssl_reg.imageio.affine_checks import grid_from_affine
from nnssl_reg.imageio.itk_files import LPS_TO_RAS, itk_grid, set_itk_grid
from nnssl_reg.imageio.json_files import atomic_path
from nnssl_reg.imageio.memory_order import in_order
from nnssl_reg.imageio.nifti_files import header_affine, read_nifti_voxels, write_nifti

_DISPLACEMENT_INTENT = 1006  # NIfTI's displacement vector: components along RAS
_VECTOR_INTENT = 1007  # what ITK and ANTs write: components along LPS
_FIELD_ENDINGS = (".nii.gz", ".nii")
_COMPOSITE_ENDINGS = (".h5", ".hdf5")
_AFFINE_ENDINGS = (".tfm", ".txt", ".mat")


def write_field(path: str | Path, field: DisplacementField) -> None:
    """Write a field as ITK's NIfTI: float32 (X, Y, Z, 1, 3), LPS mm, intent 1007, on the fixed image's grid."""
    path = Path(path)
    _check_ending(path, _FIELD_ENDINGS)
    vectors = np.empty((*field.grid.shape, 1, 3), np.float32, order="F")
    for axis, component in enumerate(on_host(field.vectors_mm)):
        vectors[..., 0, axis] = in_order(component, np.float32, "F")
    vectors[..., :2] *= -1  # RAS -> LPS
    write_nifti(path, vectors, field.grid.affine, intent_code=_VECTOR_INTENT)


def read_field(path: str | Path) -> DisplacementField:
    """A field from a NIfTI with vector intent (1007 in LPS, 1006 in RAS mm). Raises ValueError for other contents."""
    path = _existing(path)
    _check_ending(path, _FIELD_ENDINGS)
    stored, header = read_nifti_voxels(path)
    intent = int(header["intent_code"])
    if stored.ndim != 5 or stored.shape[3:] != (1, 3) or intent not in (_DISPLACEMENT_INTENT, _VECTOR_INTENT):
        voxels = ", but may be a Learn2Reg field in voxels" if stored.ndim == 4 and stored.shape[3] == 3 else ""
        raise ValueError(f"{path} is no displacement field in mm{voxels}: shape {stored.shape} with intent {intent}, expected "
                         f"(X, Y, Z, 1, 3) with intent {_VECTOR_INTENT}.")  # fmt: skip
    vectors = np.stack([in_order(stored[:, :, :, 0, axis], np.float32, "C") for axis in range(3)])
    if not np.isfinite(vectors).all():
        raise ValueError(f"{path} holds NaN or infinite displacements; make it again.")
    if intent == _VECTOR_INTENT:
        vectors[:2] *= -1
    grid = grid_from_affine(stored.shape[:3], header_affine(header, path), path)
    return DisplacementField(torch.from_numpy(vectors), grid)


def write_composite(path: str | Path, initial: AffineTransform, deformation: DisplacementField) -> None:
    """Write p -> initial(p + deformation(p)), fixed to moving, as one ITK composite (.h5)."""
    import SimpleITK as sitk  # slow to load; only transform files need it

    path = Path(path)
    _check_ending(path, _COMPOSITE_ENDINGS)
    vectors = np.moveaxis(on_host(deformation.vectors_mm), 0, -1).transpose(2, 1, 0, 3).astype(np.float64)
    vectors[..., :2] *= -1  # RAS -> LPS
    image = sitk.GetImageFromArray(vectors, isVector=True)
    set_itk_grid(image, deformation.grid)
    # ITK applies the transform added last first
    composite = sitk.CompositeTransform([_itk_affine(initial), sitk.DisplacementFieldTransform(image)])
    with atomic_path(path) as temporary:
        sitk.WriteTransform(composite, str(temporary))


def read_composite(path: str | Path) -> tuple[AffineTransform, DisplacementField]:
    """(initial, deformation) with p -> initial(p + deformation(p)), from an ITK composite: a field, then linear transforms.

    Raises ValueError for files with another content or order.
    """
    path = _existing(path)
    _check_ending(path, _COMPOSITE_ENDINGS)
    parts = _flat(_read_itk(path))
    kinds = [part.GetName() for part in parts]
    if not parts or kinds[-1] != "DisplacementFieldTransform" or not all(part.IsLinear() for part in parts[:-1]):
        raise ValueError(f"{path} holds the transforms {kinds} (applied from the last to the first); expected is one "
                         "DisplacementFieldTransform, applied first, and linear ones.")  # fmt: skip
    initial = AffineTransform.identity()
    for part in reversed(parts[:-1]):
        initial = initial.then(_affine_of(part))
    return initial, _field_of(parts[-1])


def read_transform(path: str | Path) -> DisplacementField:
    """The whole way from fixed to moving as one field, from a field (.nii.gz, .nii) or a composite (.h5)."""
    path = Path(path)
    _check_ending(path, (*_FIELD_ENDINGS, *_COMPOSITE_ENDINGS))
    if path.name.lower().endswith(_FIELD_ENDINGS):
        return read_field(path)
    initial, deformation = read_composite(path)
    return deformation if initial.is_identity else initial.after(deformation)


def write_affine(path: str | Path, affine: AffineTransform) -> None:
    """Write an affine, fixed to moving, as ITK's .tfm, .txt or .mat (LPS mm)."""
    import SimpleITK as sitk  # slow to load; only transform files need it

    path = Path(path)
    _check_ending(path, _AFFINE_ENDINGS)
    with atomic_path(path) as temporary:
        sitk.WriteTransform(_itk_affine(affine), str(temporary))


def read_affine(path: str | Path) -> AffineTransform:
    """An affine, fixed to moving, from an ITK file of one or more linear transforms."""
    path = _existing(path)
    _check_ending(path, (*_AFFINE_ENDINGS, *_COMPOSITE_ENDINGS))
    parts = _flat(_read_itk(path))
    if not all(part.IsLinear() for part in parts):
        raise ValueError(f"{path} holds {[part.GetName() for part in parts]}, an affine was expected.")
    affine = AffineTransform.identity()
    for part in reversed(parts):
        affine = affine.then(_affine_of(part))
    return affine


def _existing(path: str | Path) -> Path:
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path} does not exist.")
    return Path(path)


def _check_ending(path: Path, endings: tuple[str, ...]) -> None:
    if not path.name.lower().endswith(endings):
        raise ValueError(f"{path}: the ending is none of {', '.join(endings)}.")


def _read_itk(path: Path):
    """The SimpleITK transform of a file."""
    import SimpleITK as sitk  # slow to load; only transform files need it

    try:
        return sitk.ReadTransform(str(path))
    except RuntimeError as error:
        with open(path, "rb") as file:
            start = file.read(12)
        raise ValueError(f"{path} is no readable ITK transform: it has {path.stat().st_size} bytes and starts with {start!r}. "
                         "Copy or make it again.") from error  # fmt: skip


def _flat(transform) -> list:
    """The transforms of a (nested) composite in their own classes, in file order."""
    transform = transform.Downcast()
    if transform.GetName() != "CompositeTransform":
        return [transform]
    return [part for i in range(transform.GetNumberOfTransforms()) for part in _flat(transform.GetNthTransform(i))]


def _itk_affine(affine: AffineTransform):
    """A SimpleITK affine (LPS) around the origin."""
    import SimpleITK as sitk  # slow to load; only transform files need it

    matrix = LPS_TO_RAS @ affine.matrix @ LPS_TO_RAS
    return sitk.AffineTransform(matrix[:3, :3].ravel().tolist(), matrix[:3, 3].tolist())


def _affine_of(transform) -> AffineTransform:
    """Any linear SimpleITK transform, by what it does to the origin and the three axes."""
    origin = np.array(transform.TransformPoint((0.0, 0.0, 0.0)))
    matrix = np.eye(4)
    matrix[:3, :3] = np.stack([transform.TransformPoint(tuple(axis)) for axis in np.eye(3)], axis=1) - origin[:, None]
    matrix[:3, 3] = origin
    return AffineTransform(LPS_TO_RAS @ matrix @ LPS_TO_RAS)


def _field_of(transform) -> DisplacementField:
    """A SimpleITK displacement field transform in RAS mm."""
    import SimpleITK as sitk  # slow to load; only transform files need it

    image = transform.GetDisplacementField()
    vectors = sitk.GetArrayViewFromImage(image).transpose(3, 2, 1, 0).astype(np.float32, order="C")
    vectors[:2] *= -1  # LPS -> RAS
    return DisplacementField(torch.from_numpy(vectors), itk_grid(image))
