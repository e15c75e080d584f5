"""Image files: what is written comes back in place, and every unfit file is named with a way out."""

import logging
import os

import numpy as np
import pytest

from nnssl_reg.geometry.grid import Grid
from nnssl_reg.geometry.image import Image
from nnssl_reg.imageio.images import (
    FILE_ENDINGS,
    check_same_grid,
    file_ending,
    file_stem,
    read_grid,
    read_image,
    read_labels,
    write_image,
)


@pytest.mark.parametrize("ending", FILE_ENDINGS)
def test_an_oblique_image_comes_back_equal_in_every_format(ending, tmp_path, noise, oblique_affine):
    image = Image(noise()[None], Grid((7, 8, 9), oblique_affine))
    write_image(tmp_path / f"a.b{ending}", image)
    back = read_image(tmp_path / f"a.b{ending}")
    assert np.array_equal(back.array, image.array) and back.array.dtype == np.float32
    assert back.grid.matches(image.grid, 1e-4)
    assert read_grid(tmp_path / f"a.b{ending}").matches(image.grid, 1e-4)


@pytest.mark.parametrize("ending", FILE_ENDINGS)
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.int64])
def test_labels_keep_their_integer_type(ending, dtype, tmp_path):
    labels = (np.arange(60).reshape(1, 3, 4, 5) * (2 if dtype == np.uint8 else 500)).astype(dtype)
    write_image(tmp_path / f"l{ending}", Image(labels, Grid((3, 4, 5), np.eye(4))))
    back = read_labels(tmp_path / f"l{ending}")
    assert back.array.dtype == dtype and np.array_equal(back.array, labels) and back.is_label


def test_written_files_lie_at_the_same_place_for_simpleitk(tmp_path, noise, oblique_affine):
    sitk = pytest.importorskip("SimpleITK")
    grid = Grid((7, 8, 9), oblique_affine)
    for ending in FILE_ENDINGS:
        write_image(tmp_path / f"a{ending}", Image(noise()[None], grid))
        other = sitk.ReadImage(str(tmp_path / f"a{ending}"))
        point = np.array(other.TransformContinuousIndexToPhysicalPoint((1.5, 6.0, 7.25))) * (-1, -1, 1)
        assert np.allclose(point, grid.index_to_world((1.5, 6.0, 7.25)), atol=1e-4)
        assert other.GetPixel(1, 2, 3) == noise()[1, 2, 3]


def test_nothing_is_left_beside_a_written_image(tmp_path, noise):
    write_image(tmp_path / "a.mhd", Image(noise()[None], Grid((7, 8, 9), np.eye(4))))
    write_image(tmp_path / "b.nii.gz", Image(noise()[None], Grid((7, 8, 9), np.eye(4))))
    assert sorted(os.listdir(tmp_path)) == ["a.mhd", "a.zraw", "b.nii.gz"]


@pytest.mark.parametrize("ending", [".mha", ".mhd", ".nrrd"])
def test_truncated_metaimage_and_nrrd_are_refused(ending, tmp_path, noise):
    write_image(tmp_path / f"a{ending}", Image(noise((20, 20, 20))[None], Grid((20, 20, 20), np.eye(4))))
    path = tmp_path / ("a.zraw" if ending == ".mhd" else f"a{ending}")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match=rf"a{ending} is truncated or corrupt: its header promises 32000 bytes of voxels"):
        read_image(tmp_path / f"a{ending}")


@pytest.mark.parametrize("ending", FILE_ENDINGS)
def test_text_renamed_to_an_image_and_an_empty_file_are_told_apart(ending, tmp_path):
    path = tmp_path / f"a{ending}"
    path.write_text("hello, I am no image at all" * 100)
    for read in (read_image, read_labels, read_grid):
        with pytest.raises(ValueError, match=r"is not a .*image.*starts with b'hello, I am '"):
            read(path)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match="is empty \\(0 bytes\\)"):
        read_image(path)


def test_another_ending_lists_those_accepted(tmp_path):
    (tmp_path / "a.png").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"a\.png: the ending is none of \.nii\.gz, \.nii, \.mha, \.mhd, \.nrrd"):
        read_image(tmp_path / "a.png")
    assert file_ending("X.NII.GZ") == ".nii.gz" and file_stem("/a/b.c.nii.gz") == "b.c"


def test_missing_files_and_folders_are_said(tmp_path):
    with pytest.raises(FileNotFoundError, match="a.nii.gz does not exist"):
        read_image(tmp_path / "a.nii.gz")
    (tmp_path / "b.nii").mkdir()
    with pytest.raises(ValueError, match="b.nii is a folder"):
        read_image(tmp_path / "b.nii")


def test_nan_and_infinite_voxels_are_counted_and_located_and_can_be_filled(tmp_path, noise, save_nifti):
    array = noise((10, 10, 10))
    array[2:4, 5, 6:8] = np.nan
    array[3, 5, 7] = np.inf
    path = save_nifti(tmp_path / "a.nii.gz", array)
    with pytest.raises(
        ValueError, match=r"4 voxels \(0\.4 %\) are NaN or infinite \(3 NaN\), in the box \[\[2, 4\], \[5, 6\], \[6, 8\]\]"
    ):
        read_image(path)
    filled = read_image(path, fill=-1).array[0]
    assert (filled[2:4, 5, 6:8] == -1).all() and np.isfinite(filled).all()
    with pytest.raises(ValueError, match="all 1000 voxels are NaN"):
        read_image(save_nifti(tmp_path / "b.nii.gz", np.full((10, 10, 10), np.nan, np.float32)))


def test_the_way_out_for_nan_voxels_works_as_printed(tmp_path, monkeypatch, noise, save_nifti):
    array = noise()
    array[0, 0, 0] = np.nan
    save_nifti(tmp_path / "a.nii.gz", array)
    with pytest.raises(ValueError) as error:
        read_image(tmp_path / "a.nii.gz")
    monkeypatch.chdir(tmp_path)
    exec(str(error.value).split("in Python: ")[1].rstrip("."))
    assert read_image(tmp_path / "filled.nii.gz").array[0, 0, 0, 0] == pytest.approx(np.nanmin(array), rel=1e-5)


def test_a_constant_image_is_refused_but_constant_labels_are_not(tmp_path, save_nifti):
    path = save_nifti(tmp_path / "a.nii.gz", np.zeros((3, 4, 5), np.int16))
    with pytest.raises(ValueError, match=r"image is constant \(0\)"):
        read_image(path)
    assert read_labels(path).array.max() == 0


@pytest.mark.parametrize("shape", [(8, 9), (8, 9, 1), (1, 8, 9), (8, 1, 9)])
def test_a_2d_image_is_refused_with_its_shape(shape, tmp_path, noise, save_nifti):
    path = save_nifti(tmp_path / "a.nii", noise(shape))
    for read in (read_image, read_labels, read_grid):
        with pytest.raises(ValueError, match="is 2-D, shape .*Stack"):
            read(path)


@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd"])
def test_a_4d_image_asks_for_a_volume_and_gives_it(ending, tmp_path, noise, save_nifti):
    array = noise((4, 5, 6, 3))
    if ending == ".nrrd":
        sitk = pytest.importorskip("SimpleITK")
        sitk.WriteImage(sitk.GetImageFromArray(array.T, isVector=False), str(tmp_path / "a.nrrd"))
    else:
        save_nifti(tmp_path / "a.nii.gz", array)
    with pytest.raises(
        ValueError, match=r"is 4-D, shape \(4, 5, 6, 3\): choose one of its 3 volumes with -volume 0 ... 2 .*, or split"
    ):
        read_image(tmp_path / f"a{ending}")
    assert np.array_equal(read_image(tmp_path / f"a{ending}", volume=1).array[0], array[..., 1])
    with pytest.raises(ValueError, match="has the volumes 0 ... 2 .*, not 3"):
        read_image(tmp_path / f"a{ending}", volume=3)
    assert read_grid(tmp_path / f"a{ending}").shape == (4, 5, 6)


def test_a_4d_file_of_one_volume_is_an_image(tmp_path, noise, save_nifti):
    path = save_nifti(tmp_path / "a.nii.gz", noise((4, 5, 6, 1)))
    assert read_image(path).array.shape == (1, 4, 5, 6)


def test_colour_complex_and_vector_files_are_refused(tmp_path, noise, save_nifti):
    colour = np.zeros((3, 4, 5), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    with pytest.raises(ValueError, match=r"holds colour values \(shape \(3, 4, 5\)"):
        read_image(save_nifti(tmp_path / "a.nii", colour))
    with pytest.raises(ValueError, match="complex"):
        read_image(save_nifti(tmp_path / "b.nii", noise().astype(np.complex64)))
    with pytest.raises(ValueError, match="holds vectors"):
        read_image(save_nifti(tmp_path / "c.nii", noise((3, 4, 5, 1, 3))))
    sitk = pytest.importorskip("SimpleITK")
    sitk.WriteImage(sitk.GetImageFromArray(noise((5, 4, 3, 3)), isVector=True), str(tmp_path / "d.mha"))
    with pytest.raises(ValueError, match="3 values per voxel"):
        read_image(tmp_path / "d.mha")


def test_good_files_are_read_in_silence(tmp_path, caplog, noise, oblique_affine):
    caplog.set_level(logging.INFO)
    write_image(tmp_path / "a.nii.gz", Image(noise()[None], Grid((7, 8, 9), oblique_affine)))
    read_image(tmp_path / "a.nii.gz")
    assert not caplog.messages


def test_floating_point_labels_are_cast_when_they_are_whole_and_refused_when_not(tmp_path, save_nifti):
    whole = np.arange(60, dtype=np.float32).reshape(3, 4, 5)
    assert read_labels(save_nifti(tmp_path / "a.nii.gz", whole)).array.dtype == np.uint8
    assert read_labels(save_nifti(tmp_path / "b.nii.gz", -whole)).array.dtype == np.int16
    whole[1, 1, 1] = 2.5
    with pytest.raises(ValueError, match=r"1 voxels of the labels are no whole numbers \(for example 2\.5\).*nearest"):
        read_labels(save_nifti(tmp_path / "c.nii.gz", whole))


def test_scaled_labels_are_read_as_what_they_mean(tmp_path, save_nifti, patch_header):
    path = save_nifti(tmp_path / "a.nii", np.arange(0, 120, 2, dtype=np.int16).reshape(3, 4, 5))
    patch_header(path, {"scl_slope": 0.5, "scl_inter": 0})
    assert np.array_equal(read_labels(path).array.ravel(), np.arange(60))


def test_labels_on_another_grid_are_refused_with_both_grids(noise):
    image = Image(noise()[None], Grid((7, 8, 9), np.eye(4)))
    moved = np.eye(4)
    moved[0, 3] = 0.5
    same = Image(np.zeros((1, 7, 8, 9), np.uint8), Grid((7, 8, 9), np.eye(4)))
    check_same_grid(image, same)
    other = Image(same.array, Grid((7, 8, 9), moved))
    check_same_grid(image, other, tolerance_mm=0.6)
    with pytest.raises(
        ValueError, match=r"labels of case_1 are on another grid \(corners up to 0\.50 mm apart, tolerance 0\.1 mm\)"
    ) as e:
        check_same_grid(image, other, 0.1, "case_1")
    assert repr(image.grid) in str(e.value) and repr(other.grid) in str(e.value)
    with pytest.raises(ValueError, match="another grid: image Grid"):
        check_same_grid(image, Image(np.zeros((1, 7, 8, 8), np.uint8), Grid((7, 8, 8), np.eye(4))))
