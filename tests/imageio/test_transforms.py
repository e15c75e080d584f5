"""Transform files: SimpleITK and ANTsPy move points and images as our field does, between oblique, different grids."""

import nibabel as nib
import numpy as np
import pytest
import torch

from nnssl_reg.geometry.affine import AffineTransform
from nnssl_reg.geometry.displacement import DisplacementField
from nnssl_reg.geometry.grid import Grid
from nnssl_reg.geometry.image import Image
from nnssl_reg.imageio.images import write_image
from nnssl_reg.imageio.transforms import (
    read_affine,
    read_composite,
    read_field,
    read_transform,
    write_affine,
    write_composite,
    write_field,
)

LPS = np.array([-1.0, -1.0, 1.0])


def rotation(degrees: tuple[float, float, float]) -> np.ndarray:
    """Rotation about x, then y, then z."""
    out = np.eye(3)
    for (i, j), angle in zip(((1, 2), (2, 0), (0, 1)), np.radians(degrees)):
        turn = np.eye(3)
        turn[i, i] = turn[j, j] = np.cos(angle)
        turn[i, j], turn[j, i] = -np.sin(angle), np.sin(angle)
        out = turn @ out
    return out


def oblique_grid(shape, spacing, degrees, center) -> Grid:
    affine = np.eye(4)
    affine[:3, :3] = rotation(degrees) * np.array(spacing)
    affine[:3, 3] = np.array(center) - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return Grid(shape, affine)


FIXED = oblique_grid((24, 20, 13), (1.3, 1.6, 2.9), (12, -20, 35), (10, -40, 25))
MOVING = oblique_grid((26, 17, 30), (1.7, 2.4, 1.2), (-30, 8, -15), (14, -44, 31))


def smooth_field() -> DisplacementField:
    """A field of up to about 5 mm with a different wave along each world axis."""
    points = FIXED.points_mm()
    waves = [torch.sin(points[a] / 9 + points[(a + 1) % 3] / 14 + a) * (3 + a) for a in range(3)]
    return DisplacementField(torch.stack(waves), FIXED)


def initial() -> AffineTransform:
    matrix = np.eye(4)
    matrix[:3, :3] = rotation((4, -6, 9)) @ np.diag([1.05, 0.97, 1.02])
    matrix[:3, 3] = (3.0, -7.0, 5.0)
    return AffineTransform(matrix)


def moving_image() -> Image:
    """Smooth structure on the moving grid, away from 0."""
    x, y, z = MOVING.points_mm().numpy()
    return Image((np.sin(x / 5) + np.cos(y / 6) + np.sin(z / 4) * 2 + 5).astype(np.float32)[None], MOVING)


def some_points(count: int = 50) -> np.ndarray:
    """World points inside the fixed image, (N, 3) RAS mm."""
    index = np.random.default_rng(0).uniform(0.5, np.array(FIXED.shape) - 1.5, (count, 3))
    return FIXED.index_to_world(index)


@pytest.fixture
def written(tmp_path):
    """Field, composite, moving and fixed image in files."""
    write_field(tmp_path / "field.nii.gz", initial().after(smooth_field()))
    write_composite(tmp_path / "composite.h5", initial(), smooth_field())
    write_image(tmp_path / "moving.nii.gz", moving_image())
    write_image(tmp_path / "fixed.nii.gz", Image(np.ones((1, *FIXED.shape), np.float32), FIXED))
    return tmp_path


def itk_transform(folder, name):
    sitk = pytest.importorskip("SimpleITK")
    if name == "composite.h5":
        return sitk.ReadTransform(str(folder / name))
    return sitk.DisplacementFieldTransform(sitk.ReadImage(str(folder / name), sitk.sitkVectorFloat64))


@pytest.mark.parametrize("name", ["field.nii.gz", "composite.h5"])
def test_simpleitk_moves_points_as_we_do(written, name):
    transform = itk_transform(written, name)
    points = some_points()
    theirs = np.array([transform.TransformPoint((p * LPS).tolist()) for p in points]) * LPS
    if name == "composite.h5":
        ours = initial().apply(smooth_field().apply_to_points(points))
    else:
        ours = initial().after(smooth_field()).apply_to_points(points)
    assert np.abs(ours - points).max() > 5
    assert np.abs(theirs - ours).max() < 1e-4


def assert_same(ours: np.ndarray, theirs: np.ndarray, image: Image) -> None:
    """Equal within 1e-3 of the intensity range, on a warped image of which most is no fill."""
    assert np.abs(ours - theirs).max() <= 1e-3 * np.ptp(image.array)
    assert (ours != image.array.min()).mean() > 0.5


@pytest.mark.parametrize("name", ["field.nii.gz", "composite.h5"])
def test_simpleitk_warps_an_image_as_we_do(written, name):
    sitk = pytest.importorskip("SimpleITK")
    image = moving_image()
    ours = initial().after(smooth_field()).warp(image).array[0]
    fixed, moving = (sitk.ReadImage(str(written / f"{side}.nii.gz")) for side in ("fixed", "moving"))
    theirs = sitk.Resample(moving, fixed, itk_transform(written, name), sitk.sitkLinear, float(image.array.min()))
    assert_same(ours, sitk.GetArrayFromImage(theirs).T, image)


@pytest.mark.parametrize("name", ["field.nii.gz", "composite.h5"])
def test_antspy_warps_an_image_as_we_do(written, name):
    ants = pytest.importorskip("ants")
    image = moving_image()
    ours = initial().after(smooth_field()).warp(image).array[0]
    fixed, moving = (ants.image_read(str(written / f"{side}.nii.gz")) for side in ("fixed", "moving"))
    theirs = ants.apply_transforms(fixed, moving, [str(written / name)], defaultvalue=float(image.array.min()))
    assert_same(ours, theirs.numpy(), image)


def test_the_field_file_has_the_header_that_itk_expects(written):
    header = nib.load(written / "field.nii.gz").header
    assert header["dim"].tolist()[:6] == [5, *FIXED.shape, 1, 3] and int(header["intent_code"]) == 1007
    assert header.get_data_dtype() == np.float32 and header.get_xyzt_units()[0] == "mm"


def test_field_and_composite_come_back_equal(written):
    total = initial().after(smooth_field())
    field = read_field(written / "field.nii.gz")
    assert torch.equal(field.vectors_mm, total.vectors_mm) and field.grid.matches(FIXED, 1e-4)
    affine, deformation = read_composite(written / "composite.h5")
    assert np.allclose(affine.matrix, initial().matrix, atol=1e-9)
    assert torch.equal(deformation.vectors_mm, smooth_field().vectors_mm) and deformation.grid.matches(FIXED, 1e-9)
    for name in ("field.nii.gz", "composite.h5"):
        assert torch.allclose(read_transform(written / name).vectors_mm, total.vectors_mm, atol=1e-4)


def test_no_motion_stays_exactly_no_motion(tmp_path):
    still = DisplacementField(torch.zeros(3, *FIXED.shape), FIXED)
    write_field(tmp_path / "a.nii.gz", still)
    write_composite(tmp_path / "a.h5", AffineTransform.identity(), still)
    for name in ("a.nii.gz", "a.h5"):
        assert read_transform(tmp_path / name).vectors_mm.abs().max() == 0


def test_a_field_of_intent_1006_has_ras_components(tmp_path, written):
    image = nib.load(written / "field.nii.gz")
    ras = np.asanyarray(image.dataobj) * np.array([-1, -1, 1], np.float32)
    other = nib.Nifti1Image(ras, image.affine)
    other.header["intent_code"] = 1006
    nib.save(other, tmp_path / "ras.nii.gz")
    assert torch.equal(read_field(tmp_path / "ras.nii.gz").vectors_mm, read_field(written / "field.nii.gz").vectors_mm)


def test_composites_of_several_linear_transforms_are_read_in_itks_order(tmp_path):
    sitk = pytest.importorskip("SimpleITK")
    write_composite(tmp_path / "a.h5", initial(), smooth_field())
    euler = sitk.Euler3DTransform((1, 2, 3), 0.1, -0.2, 0.3, (4, 5, 6))
    composite = sitk.CompositeTransform([euler, sitk.ReadTransform(str(tmp_path / "a.h5"))])
    composite.FlattenTransform()
    sitk.WriteTransform(composite, str(tmp_path / "b.h5"))
    affine, deformation = read_composite(tmp_path / "b.h5")
    points = some_points()
    ours = affine.apply(deformation.apply_to_points(points))
    theirs = np.array([composite.TransformPoint((p * LPS).tolist()) for p in points]) * LPS
    assert np.abs(theirs - ours).max() < 1e-4


@pytest.mark.parametrize("ending", [".tfm", ".mat", ".txt"])
def test_an_affine_comes_back_and_moves_points_as_simpleitk_does(ending, tmp_path):
    sitk = pytest.importorskip("SimpleITK")
    write_affine(tmp_path / f"a{ending}", initial())
    assert np.allclose(read_affine(tmp_path / f"a{ending}").matrix, initial().matrix, atol=1e-9)
    theirs = np.array(sitk.ReadTransform(str(tmp_path / f"a{ending}")).TransformPoint((-10.0, -20.0, 30.0))) * LPS
    assert np.allclose(theirs, initial().apply((10, 20, 30)), atol=1e-6)


def test_what_is_no_field_in_mm_is_refused_with_what_it_is(tmp_path, written):
    with pytest.raises(ValueError, match=r"is no displacement field in mm: shape \(26, 17, 30\) with intent 0"):
        read_field(written / "moving.nii.gz")
    voxels = nib.Nifti1Image(np.zeros((4, 5, 6, 3), np.float32), np.eye(4))
    nib.save(voxels, tmp_path / "disp.nii.gz")
    with pytest.raises(ValueError, match="Learn2Reg field in voxels"):
        read_transform(tmp_path / "disp.nii.gz")
    with pytest.raises(ValueError, match=r"the ending is none of \.nii\.gz, \.nii, \.h5"):
        read_transform(tmp_path / "a.mat")
    with pytest.raises(FileNotFoundError, match="gone.h5 does not exist"):
        read_transform(tmp_path / "gone.h5")


def test_a_composite_with_another_content_or_order_is_refused(tmp_path, written):
    sitk = pytest.importorskip("SimpleITK")
    composite = sitk.CompositeTransform([sitk.ReadTransform(str(written / "composite.h5")), sitk.AffineTransform(3)])
    composite.FlattenTransform()
    sitk.WriteTransform(composite, str(tmp_path / "b.h5"))
    with pytest.raises(
        ValueError, match="holds the transforms .*'AffineTransform', 'DisplacementFieldTransform', 'AffineTransform'"
    ):
        read_composite(tmp_path / "b.h5")
    with pytest.raises(ValueError, match="an affine was expected"):
        read_affine(written / "composite.h5")


@pytest.mark.parametrize("name", ["field.nii.gz", "composite.h5"])
def test_truncated_transforms_are_refused_with_the_file_named(written, name):
    path = written / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match=f"{name} is (truncated|no readable ITK transform)"):
        read_transform(path)
