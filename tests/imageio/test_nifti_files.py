"""NIfTI files: every variant is read, and truncated, corrupt and contradictory ones are told apart."""

import gzip

import nibabel as nib
import numpy as np
import pytest

from nnssl_reg.geometry.grid import Grid
from nnssl_reg.imageio.affine_checks import grid_from_affine
from nnssl_reg.imageio.images import read_grid, read_image, read_labels


def test_slope_and_intercept_of_the_header_are_applied_in_float32(tmp_path, save_nifti, patch_header):
    stored = np.arange(60, dtype=np.int16).reshape(3, 4, 5)
    path = save_nifti(tmp_path / "a.nii", stored)
    patch_header(path, {"scl_slope": 0.5, "scl_inter": -1024})
    image = read_image(path)
    assert image.array.dtype == np.float32 and np.array_equal(image.array[0], stored * 0.5 - 1024)


def test_big_endian_and_nifti2_files_are_read(tmp_path, noise):
    big = nib.Nifti1Image(noise(), np.eye(4), header=nib.Nifti1Header(endianness=">"))
    nib.save(big, tmp_path / "big.nii.gz")
    nib.save(nib.Nifti2Image(noise(), np.eye(4)), tmp_path / "two.nii")
    for name in ("big.nii.gz", "two.nii"):
        assert np.array_equal(read_image(tmp_path / name).array[0], noise())


def test_a_gzip_of_several_members_is_read(tmp_path, noise, save_nifti):
    save_nifti(tmp_path / "a.nii", noise())
    raw = (tmp_path / "a.nii").read_bytes()
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(raw[:900]) + gzip.compress(raw[900:]))
    assert np.array_equal(read_image(tmp_path / "a.nii.gz").array[0], noise())


@pytest.mark.parametrize("share", [0.2, 0.6, 0.99])
def test_a_truncated_file_is_named_with_bytes_expected_and_found(share, tmp_path, noise, save_nifti):
    save_nifti(tmp_path / "a.nii.gz", noise((20, 20, 20)))
    save_nifti(tmp_path / "b.nii", noise((20, 20, 20)))
    for name in ("a.nii.gz", "b.nii"):
        raw = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(raw[: int(len(raw) * share)])
        with pytest.raises(ValueError, match=rf"{name} is truncated: its header promises 32352 bytes, \d+ are there") as error:
            read_image(tmp_path / name)
        assert 352 <= int(str(error.value).split("bytes, ")[1].split()[0]) < 32352


def test_a_gzip_file_without_its_final_checksum_is_truncated(tmp_path, noise, save_nifti):
    raw = save_nifti(tmp_path / "a.nii.gz", noise()).read_bytes()
    (tmp_path / "a.nii.gz").write_bytes(raw[:-6])
    with pytest.raises(ValueError, match="truncated.*checksum"):
        read_image(tmp_path / "a.nii.gz")


def test_a_flipped_byte_in_a_gzip_file_is_corrupt(tmp_path, noise, save_nifti):
    raw = bytearray(save_nifti(tmp_path / "a.nii.gz", noise((20, 20, 20))).read_bytes())
    raw[len(raw) // 2] ^= 0xFF
    (tmp_path / "a.nii.gz").write_bytes(raw)
    with pytest.raises(ValueError, match=r"a\.nii\.gz is (corrupt|truncated)"):
        read_image(tmp_path / "a.nii.gz")


def test_corrupt_headers_are_refused(tmp_path, noise, save_nifti, patch_header):
    path = save_nifti(tmp_path / "a.nii", noise())
    patch_header(path, {"dim": [3, 7, -8, 9, 1, 1, 1, 1]})
    with pytest.raises(ValueError, match="corrupt: its header has dimensions"):
        read_image(path)
    save_nifti(path, noise())
    patch_header(path, {"datatype": 4711})
    with pytest.raises(ValueError, match="unknown data type 4711"):
        read_image(path)
    save_nifti(path, noise())
    patch_header(path, {"dim": [3, 32000, 32000, 32000, 1, 1, 1, 1]})
    with pytest.raises(ValueError, match="truncated: its header promises 131072000000352 bytes"):
        read_image(path)


def test_more_voxels_than_can_be_addressed_are_refused_with_the_file_named(tmp_path):
    with pytest.raises(ValueError, match=r"huge\.nii\.gz: 1300 x 1300 x 1300 are 2,197,000,000 voxels.*resample it"):
        grid_from_affine((1300, 1300, 1300), np.eye(4), tmp_path / "huge.nii.gz")


def test_a_header_with_random_bytes_is_read_or_refused_with_the_file_named(tmp_path, noise, save_nifti):
    raw, rng = save_nifti(tmp_path / "a.nii", noise()).read_bytes(), np.random.default_rng(0)
    path = tmp_path / "random.nii"
    for _ in range(300):
        changed = bytearray(raw)
        for place in rng.integers(4, 348, 4):
            changed[place] = rng.integers(0, 256)
        path.write_bytes(changed)
        for read in (read_image, read_labels, read_grid):
            try:
                read(path)
            except ValueError as error:
                assert "random.nii" in str(error)


def test_sform_and_qform_that_disagree_are_said_and_the_sform_is_used(tmp_path, caplog, noise, oblique_affine):
    image = nib.Nifti1Image(noise(), None)
    image.set_qform(np.diag([1.0, 1, 2, 1]), code=1)
    image.set_sform(oblique_affine, code=1)
    nib.save(image, tmp_path / "a.nii.gz")
    assert read_image(tmp_path / "a.nii.gz").grid.matches(Grid((7, 8, 9), oblique_affine), 1e-3)
    assert any("sform and qform disagree by up to" in message and "sform is used" in message for message in caplog.messages)


def test_an_unusable_sform_gives_way_to_the_qform_and_it_is_said(tmp_path, caplog, noise, patch_header, oblique_affine):
    image = nib.Nifti1Image(noise(), None)
    image.set_qform(oblique_affine, code=1)
    nib.save(image, tmp_path / "a.nii")
    patch_header(tmp_path / "a.nii", {"sform_code": 1, "srow_x": [0] * 4, "srow_y": [0] * 4, "srow_z": [0] * 4})
    assert read_image(tmp_path / "a.nii").grid.matches(Grid((7, 8, 9), oblique_affine), 1e-3)
    assert any("the qform is used" in message for message in caplog.messages)


def test_without_sform_and_qform_the_place_is_that_of_itk_and_it_is_said(tmp_path, caplog, noise, save_nifti, patch_header):
    path = save_nifti(tmp_path / "a.nii", noise())
    patch_header(path, {"sform_code": 0, "qform_code": 0, "pixdim": [1, 1, 2, 3, 1, 1, 1, 1]})
    grid = read_image(path).grid
    assert any("neither sform nor qform" in message for message in caplog.messages)
    sitk = pytest.importorskip("SimpleITK")
    point = sitk.ReadImage(str(path)).TransformIndexToPhysicalPoint((3, 4, 5))
    assert np.allclose(grid.index_to_world((3, 4, 5)), np.array(point) * (-1, -1, 1))
