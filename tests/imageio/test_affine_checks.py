"""Affines: small shears are repaired and said, large ones and broken spacings are refused with their values."""

import nibabel as nib
import numpy as np
import pytest

from nnssl_reg.geometry.grid import Grid
from nnssl_reg.imageio.images import read_grid, read_image


def sheared(affine: np.ndarray, degrees: float) -> np.ndarray:
    """The affine with its second axis leaning towards its first, spacing kept."""
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    shear = np.eye(3)
    shear[:2, 1] = np.sin(np.radians(degrees)), np.cos(np.radians(degrees))
    out = affine.copy()
    out[:3, :3] = affine[:3, :3] / spacing @ shear * spacing
    return out


def test_a_small_shear_is_straightened_about_the_centre_and_said(tmp_path, caplog, noise, save_nifti, oblique_affine):
    path = save_nifti(tmp_path / "a.nii.gz", noise((60, 60, 30)), sheared(oblique_affine, 0.3))
    grid = read_grid(path)
    cosines = grid.affine[:3, :3] / np.array(grid.spacing_mm)
    assert np.allclose(cosines.T @ cosines, np.eye(3), atol=1e-12)
    truth = Grid(grid.shape, nib.load(path).affine)
    assert np.allclose(grid.center_mm, truth.center_mm) and np.allclose(grid.spacing_mm, truth.spacing_mm)
    assert 0.01 < np.abs(grid.corners_mm() - truth.corners_mm()).max() < 0.3
    assert any("0.300 degrees off perpendicular" in message for message in caplog.messages)


def test_rounded_direction_cosines_are_straightened_silently(tmp_path, caplog, noise, save_nifti, oblique_affine):
    path = save_nifti(tmp_path / "a.nii.gz", noise(), oblique_affine.round(5))
    assert read_grid(path).matches(Grid((7, 8, 9), oblique_affine), 0.01)
    assert not caplog.messages


@pytest.mark.parametrize("degrees", [0.7, 12.0])
def test_a_large_shear_is_refused_with_its_angle(degrees, tmp_path, noise, save_nifti, oblique_affine):
    path = save_nifti(tmp_path / "a.nii.gz", noise(), sheared(oblique_affine, degrees))
    for read in (read_image, read_grid):
        with pytest.raises(ValueError, match=rf"{degrees:.2f} degrees off perpendicular.*Resample"):
            read(path)


def test_a_singular_affine_is_refused(tmp_path, noise, save_nifti, patch_header):
    affine = np.eye(4)
    affine[:3, 2] = affine[:3, 0]
    path = save_nifti(tmp_path / "a.nii", noise())
    patch_header(path, {"srow_x": affine[0], "srow_y": affine[1], "srow_z": affine[2], "sform_code": 1, "qform_code": 0})
    with pytest.raises(ValueError, match="affine is singular"):
        read_image(path)


@pytest.mark.parametrize("spacing", [0.0, -1.5, np.nan])
def test_a_spacing_that_is_zero_negative_or_nan_is_refused_with_its_values(spacing, tmp_path, noise, save_nifti, patch_header):
    path = save_nifti(tmp_path / "a.nii", noise())
    patch_header(path, {"pixdim": [1, 1, spacing, 1, 1, 1, 1, 1], "sform_code": 0, "qform_code": 1})
    with pytest.raises(ValueError, match=rf"spacing \(1\.0, {spacing}, 1\.0\) is impossible"):
        read_image(path)


@pytest.mark.parametrize("spacing", [0.0, -1.5, np.nan])
def test_with_a_good_sform_a_bad_spacing_is_said_and_not_used(
    spacing, tmp_path, caplog, noise, save_nifti, patch_header, oblique_affine
):
    path = save_nifti(tmp_path / "a.nii", noise(), oblique_affine)
    patch_header(path, {"pixdim": [1, 1, spacing, 1, 1, 1, 1, 1], "sform_code": 1, "qform_code": 1})
    assert read_image(path).grid.matches(Grid((7, 8, 9), oblique_affine), 1e-3)
    assert any("that of the sform, (1.2, 0.8, 3) mm, is used" in message for message in caplog.messages)


def test_a_zero_or_nan_sform_without_a_qform_is_refused(tmp_path, noise, save_nifti, patch_header):
    path = save_nifti(tmp_path / "a.nii", noise())
    for bad in (0.0, np.nan):
        patch_header(path, {"srow_y": [0, bad, 0, 0], "sform_code": 1, "qform_code": 0})
        with pytest.raises(ValueError, match="spacing .* is not within"):
            read_image(path)
