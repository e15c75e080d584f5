"""nnssl_apply_transform: images, labels and landmarks go the right way, and bad requests are answered before any work."""

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch

from nnssl_reg.commands.entry import main
from nnssl_reg.evaluation.phantoms import rotation
from nnssl_reg.geometry.affine import AffineTransform
from nnssl_reg.geometry.displacement import DisplacementField
from nnssl_reg.geometry.grid import Grid
from nnssl_reg.geometry.image import Image
from nnssl_reg.imageio.images import read_grid, read_image, read_labels, write_image
from nnssl_reg.imageio.json_files import write_json
from nnssl_reg.imageio.landmarks import read_landmark_names, read_landmarks, write_landmarks
from nnssl_reg.imageio.transforms import write_affine, write_composite, write_field

FIXED = Grid((20, 18, 16), np.block([[rotation((0.1, -0.05, 0.2)) * (-2.0, 2.0, 3.0), np.array([[30], [-20], [5]])],
                                     [np.zeros((1, 3)), 1]]))  # fmt: skip
MOVING = Grid((22, 20, 24), np.array([[0, 0, 2.0, -25], [2.2, 0, 0, -15], [0, 2.5, 0, 30], [0, 0, 0, 1]]))
TURN = np.array([[0.98, -0.17, 0], [0.17, 0.98, 0], [0, 0, 1.05]])
INITIAL = AffineTransform(np.block([[TURN, (MOVING.center_mm - TURN @ FIXED.center_mm)[:, None]], [np.zeros((1, 3)), 1]]))


def deformation() -> DisplacementField:
    x, y, z = FIXED.points_mm()
    return DisplacementField(torch.stack([2 * torch.sin(y / 9), 1.5 * torch.cos(z / 11), 2 * torch.sin(x / 8)]), FIXED)


def ramp(points_mm) -> np.ndarray:
    """A smooth image of world points (..., 3)."""
    x, y, z = np.moveaxis(np.asarray(points_mm), -1, 0)
    return (300 * np.sin(x / 25) + 4 * y - 3 * z).astype(np.float32)


def world(grid: Grid) -> np.ndarray:
    return np.moveaxis(grid.points_mm().numpy(), 0, -1)


@pytest.fixture
def folder(tmp_path):
    """transform.h5, field.nii.gz and a moving image and label map."""
    total = INITIAL.after(deformation())
    write_composite(tmp_path / "transform.h5", INITIAL, deformation())
    write_field(tmp_path / "field.nii.gz", total)
    write_image(tmp_path / "moving.nii.gz", Image(ramp(world(MOVING))[None], MOVING))
    labels = np.zeros((1, *MOVING.shape), dtype=np.uint16)
    labels[:, 6:12, 5:12, 6:14], labels[:, 12:16, 5:12, 6:14] = 4, 1000
    labels[0, 0, 0, 0] = 7
    write_image(tmp_path / "moving_label.nii.gz", Image(labels, MOVING))
    return tmp_path


def apply(folder, *flags) -> int:
    return main(["-o", str(folder / "out"), *map(str, flags)], name="nnssl_apply_transform")


@pytest.mark.parametrize("transform", ["transform.h5", "field.nii.gz"])
def test_an_image_is_warped_as_by_simpleitk(folder, transform):
    write_image(folder / "fixed.nii.gz", Image(ramp(world(FIXED))[None], FIXED))
    reference = ["-r", folder / "fixed.nii.gz"] if transform.endswith(".h5") else []
    assert apply(folder, "-t", folder / transform, "-i", folder / "moving.nii.gz", *reference) == 0
    ours = sitk.ReadImage(str(folder / "out" / "moving_warped.nii.gz"))
    moving, truth = sitk.ReadImage(str(folder / "moving.nii.gz")), sitk.ReadTransform(str(folder / "transform.h5"))
    theirs = sitk.Resample(moving, ours, truth, sitk.sitkLinear, float(sitk.GetArrayViewFromImage(moving).min()))
    a, b = sitk.GetArrayViewFromImage(ours), sitk.GetArrayViewFromImage(theirs)
    differs = np.abs(a - b) > 1e-3 * (b.max() - b.min())
    assert differs.mean() < 0.02  # at the edge SimpleITK fills half a voxel more
    assert read_grid(folder / "out" / "moving_warped.nii.gz").matches(FIXED)


def test_a_composite_asks_for_the_fixed_grid_that_it_does_not_hold(folder, capsys):
    assert apply(folder, "-t", folder / "transform.h5", "-i", folder / "moving.nii.gz") == 1
    assert "-r FIXED" in capsys.readouterr().err


def test_labels_keep_type_and_ids_and_the_lost_one_is_named(folder, capsys):
    assert apply(folder, "-t", folder / "field.nii.gz", "-i", folder / "moving_label.nii.gz") == 0
    warped = read_labels(folder / "out" / "moving_label_warped.nii.gz")
    assert warped.array.dtype == np.uint16 and set(np.unique(warped.array)) == {0, 4, 1000}
    out, err = capsys.readouterr()
    assert "taken for labels" in out and "2 of 3 kept" in out and "moving image -> fixed grid" in out
    assert "WARNING" in err and "moving_label.nii.gz: lost on the way: label 7" in err


def test_whole_numbers_can_be_forced_to_be_intensities(folder):
    assert apply(folder, "-t", folder / "field.nii.gz", "-i", folder / "moving_label.nii.gz", "--image") == 0
    assert len(np.unique(read_image(folder / "out" / "moving_label_warped.nii.gz").array)) > 10


def test_outside_the_moving_image_lies_its_minimum_and_the_share_is_said(folder, capsys):
    write_image(folder / "small.nii.gz", Image(ramp(world(MOVING))[None] - 5000, MOVING).cropped([[4, 18], [4, 16], [4, 20]]))
    assert apply(folder, "-t", folder / "field.nii.gz", "-i", folder / "small.nii.gz") == 0
    low = read_image(folder / "small.nii.gz").array.min()
    assert read_image(folder / "out" / "small_warped.nii.gz").array.min() == low
    assert f"lie outside it and got its minimum {low:g}" in capsys.readouterr().out


def test_another_reference_grid_gives_the_same_image_there(folder):
    finer = FIXED.cropped([[4, 14], [4, 14], [4, 14]]).with_spacing((1.0, 1.0, 1.5))
    write_image(
        folder / "finer.nii.gz", Image(np.arange(np.prod(finer.shape), dtype=np.float32).reshape(1, *finer.shape), finer)
    )
    assert apply(folder, "-t", folder / "field.nii.gz", "-i", folder / "moving.nii.gz", "-r", folder / "finer.nii.gz") == 0
    warped = read_image(folder / "out" / "moving_warped.nii.gz")
    truth = ramp(INITIAL.after(deformation()).apply_to_points(world(finer).reshape(-1, 3))).reshape(finer.shape)
    assert warped.grid.matches(finer)
    assert np.abs(warped.array[0] - truth).max() < 0.01 * np.ptp(truth)


def test_landmarks_of_the_fixed_image_go_to_the_moving_image_and_back(folder, capsys):
    points = FIXED.index_to_world(np.random.default_rng(0).uniform(4, 12, (9, 3)))
    names = [f"place {i}" for i in range(len(points))]
    write_landmarks(folder / "points.mrk.json", points, names=names)
    assert apply(folder, "-t", folder / "transform.h5", "-i", folder / "points.mrk.json") == 0
    moved = read_landmarks(folder / "out" / "points_in_moving.mrk.json")
    np.testing.assert_allclose(moved, INITIAL.apply(points + (deformation().apply_to_points(points) - points)), atol=0.05)
    assert "9 landmarks of the fixed image -> moving image" in capsys.readouterr().out
    back = folder / "out" / "points_in_moving.mrk.json"
    assert apply(folder, "-t", folder / "transform.h5", "-i", back, "--inverse") == 0
    np.testing.assert_allclose(read_landmarks(folder / "out" / "points_in_moving_in_fixed.mrk.json"), points, atol=1e-3)
    assert read_landmark_names(folder / "out" / "points_in_moving_in_fixed.mrk.json") == names


def test_csv_landmarks_in_lps_and_in_voxels_are_the_same_points(folder):
    voxels = np.random.default_rng(1).uniform(4, 12, (5, 3))
    write_landmarks(folder / "lps.csv", FIXED.index_to_world(voxels), "lps")
    np.savetxt(folder / "voxels.csv", voxels, delimiter=",", fmt="%.8f")
    write_image(folder / "fixed.nii.gz", Image(ramp(world(FIXED))[None], FIXED))
    assert apply(folder, "-t", folder / "field.nii.gz", "-i", folder / "lps.csv", "-space", "lps") == 0
    assert apply(folder, "-t", folder / "field.nii.gz", "-i", folder / "voxels.csv", "-space", "voxel",
                 "-points_image", folder / "fixed.nii.gz", "-r", folder / "moving.nii.gz") == 0  # fmt: skip
    a = read_landmarks(folder / "out" / "lps_in_moving.csv", "lps")
    b = read_landmarks(folder / "out" / "voxels_in_moving.csv", "voxel", MOVING)
    np.testing.assert_allclose(a, b, atol=1e-4)


def test_the_inverse_brings_a_fixed_image_to_the_moving_grid_and_tells_its_error(folder, capsys):
    write_image(folder / "fixed.nii.gz", Image(ramp(world(FIXED))[None], FIXED))
    reference = folder / "moving.nii.gz"
    assert apply(folder, "-t", folder / "transform.h5", "-i", folder / "fixed.nii.gz", "--inverse", "-r", reference) == 0
    assert "there and back misses by 0.0" in capsys.readouterr().out
    carried = read_image(folder / "out" / "fixed_in_moving.nii.gz")
    field = INITIAL.after(deformation())
    index = FIXED.index_to_world(np.random.default_rng(2).uniform(4, 11, (50, 3)))
    nearest = np.rint(MOVING.world_to_index(field.apply_to_points(index))).astype(int)  # voxel centres of the moving grid
    truth = ramp(field.inverse_points(MOVING.index_to_world(nearest)))
    inside = ((nearest >= 1) & (nearest < np.array(MOVING.shape) - 1)).all(axis=1)
    assert inside.sum() > 20
    np.testing.assert_allclose(carried.array[0][tuple(nearest[inside].T)], truth[inside], atol=6)


@pytest.mark.parametrize(("flags", "message"), [
    (["-i", "points.csv"], "give -space ras"),
    (["-i", "points.csv", "-space", "voxel"], "-points_image IMAGE"),
    (["-i", "moving.nii.gz", "--inverse"], "give the moving image with -r"),
    (["-i", "picture.png"], "the ending is none of"),
    (["-i", "missing.nii.gz"], "does not exist"),
    (["-i", "moving.nii.gz", "sub/moving.nii.gz"], "would be written 2 times"),
])  # fmt: skip
def test_an_impossible_request_is_refused_before_any_work(folder, capsys, monkeypatch, flags, message):
    monkeypatch.chdir(folder)
    (folder / "points.csv").write_text("1,2,3\n")
    (folder / "picture.png").write_text("")
    (folder / "sub").mkdir()
    (folder / "sub" / "moving.nii.gz").write_bytes((folder / "moving.nii.gz").read_bytes())
    assert apply(folder, "-t", "no_such_transform.h5", *flags) == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and not (folder / "out").exists()


def test_a_bad_file_among_several_fails_alone(folder, capsys):
    (folder / "broken.nii.gz").write_bytes((folder / "moving.nii.gz").read_bytes()[:500])
    files = [folder / "broken.nii.gz", folder / "moving.nii.gz"]
    assert apply(folder, "-t", folder / "field.nii.gz", "-i", *files) == 1
    assert "broken.nii.gz" in capsys.readouterr().out
    assert [p.name for p in (folder / "out").iterdir()] == ["moving_warped.nii.gz"]


@pytest.mark.parametrize(("name", "flags", "message"), [
    ("halves.nii.gz", ["--label"], "no whole numbers"),
    ("nan.nii.gz", [], "1 voxels (0.0"),
    ("volumes.nii.gz", [], "choose one of its 2 volumes with -volume 0 ... 1"),
    ("slice.nii.gz", [], "is 2-D"),
    ("constant.nii.gz", [], "the image is constant (5)"),
    ("words.csv", ["-space", "ras"], "words.csv, line 2: expected three numbers x,y,z, got 'a,b,c'"),
    ("empty.csv", ["-space", "ras"], "holds no landmark"),
    ("scene.mrk.json", [], "is no markups file of 3D Slicer"),
    ("far.fcsv", [], "far.fcsv, line 2: the coordinate system is 'ijk', expected RAS or LPS"),
])  # fmt: skip
def test_bad_files_are_answered_with_what_is_wrong_and_nothing_is_written(folder, capsys, name, flags, message):
    array = read_image(folder / "moving.nii.gz").array[0]
    with_nan = array.copy()
    with_nan[0, 0, 0] = np.nan
    for file, voxels in {"halves": np.rint(array) + 0.5, "nan": with_nan, "volumes": np.stack([array, array], axis=-1),
                         "slice": array[:, :, 0], "constant": np.full_like(array, 5)}.items():  # fmt: skip
        nib.save(nib.Nifti1Image(voxels, MOVING.affine), folder / f"{file}.nii.gz")
    (folder / "words.csv").write_text("1,2,3\na,b,c\n")
    (folder / "empty.csv").write_text("x,y,z\n")
    (folder / "scene.mrk.json").write_text("{}")
    (folder / "far.fcsv").write_text("# Markups\n# CoordinateSystem = ijk\n")
    assert apply(folder, "-t", folder / "field.nii.gz", "-i", folder / name, *flags) == 1
    assert message in capsys.readouterr().out and not (folder / "out").exists()


def test_one_volume_of_a_4d_file_can_be_chosen(folder):
    array = read_image(folder / "moving.nii.gz").array[0]
    nib.save(nib.Nifti1Image(np.stack([0 * array, array], axis=-1), MOVING.affine), folder / "volumes.nii.gz")
    files = [folder / "volumes.nii.gz", folder / "moving.nii.gz"]
    assert apply(folder, "-t", folder / "field.nii.gz", "-volume", 1, "-i", *files) == 0
    one, other = (read_image(folder / "out" / f"{name}_warped.nii.gz").array for name in ("volumes", "moving"))
    assert np.array_equal(one, other)


@pytest.mark.parametrize(("name", "message"), [
    ("voxels.nii.gz", "may be a Learn2Reg field in voxels"),
    ("moving.nii.gz", "is no displacement field in mm"),
    ("cut.h5", "is no readable ITK transform"),
    ("cut.nii.gz", "is truncated"),
    ("text.nii.gz", "is not a NIfTI image"),
])  # fmt: skip
def test_what_is_no_whole_transform_is_refused_in_one_line(folder, capsys, name, message):
    nib.save(nib.Nifti1Image(np.zeros((4, 5, 6, 3), np.float32), np.eye(4)), folder / "voxels.nii.gz")
    (folder / "text.nii.gz").write_text("no image")
    for whole, cut in (("transform.h5", "cut.h5"), ("field.nii.gz", "cut.nii.gz")):
        (folder / cut).write_bytes((folder / whole).read_bytes()[:9000])
    flags = ["-r", folder / "moving.nii.gz"]
    assert apply(folder, "-t", folder / name, "-i", folder / "moving.nii.gz", *flags) == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and not (folder / "out").exists()


def test_an_image_from_elsewhere_is_refused(folder, capsys):
    far = Grid(MOVING.shape, AffineTransform.translation((900, 0, 0)).matrix @ MOVING.affine)
    write_image(folder / "far.nii.gz", Image(ramp(world(MOVING))[None], far))
    assert apply(folder, "-t", folder / "field.nii.gz", "-i", folder / "far.nii.gz") == 1
    assert "is it really the moving image?" in capsys.readouterr().out


@pytest.fixture
def backward(folder):
    """The field of the way back with its sidecar, and a fixed image."""
    write_image(folder / "fixed.nii.gz", Image(ramp(world(FIXED))[None], FIXED))
    write_field(folder / "back.nii.gz", INITIAL.after(deformation()).inverse(MOVING))
    files = {"field": "field.nii.gz", "inverse_field": "back.nii.gz", "ants_warp": "b_1Warp.nii.gz"}
    write_json(folder / "b.json", {"fixed": "fixed.nii.gz", "moving": "moving.nii.gz", "files": files})
    return folder / "back.nii.gz"


def test_an_inverse_field_brings_fixed_images_to_the_moving_grid_and_its_inverse_back(folder, backward, capsys):
    assert apply(folder, "-t", backward, "-i", folder / "fixed.nii.gz") == 0
    assert "fixed image -> moving grid" in capsys.readouterr().out
    assert read_grid(folder / "out" / "fixed_in_moving.nii.gz").matches(MOVING)
    assert apply(folder, "-t", backward, "-i", folder / "moving.nii.gz", "--inverse") == 1
    assert "give the fixed image with -r IMAGE" in capsys.readouterr().err
    assert apply(folder, "-t", backward, "-i", folder / "moving.nii.gz", "--inverse", "-r", folder / "fixed.nii.gz") == 0
    assert "moving image -> fixed grid" in capsys.readouterr().out
    back = read_image(folder / "out" / "moving_warped.nii.gz")
    truth = ramp(INITIAL.after(deformation()).apply_to_points(world(FIXED).reshape(-1, 3))).reshape(FIXED.shape)
    inner = (slice(5, -5),) * 3
    assert back.grid.matches(FIXED) and np.abs(back.array[0] - truth)[inner].max() < 0.05 * np.ptp(truth)


@pytest.mark.parametrize("told", ["by the sidecar", "by the name"])
def test_landmarks_of_the_moving_image_go_through_an_inverse_field_to_the_fixed_image(folder, backward, capsys, told):
    if told == "by the name":
        backward = backward.rename(folder / "b_inverse_field.nii.gz")
    points = FIXED.index_to_world(np.random.default_rng(0).uniform(6, 10, (9, 3)))
    write_landmarks(folder / "points.mrk.json", INITIAL.after(deformation()).apply_to_points(points))
    assert apply(folder, "-t", backward, "-i", folder / "points.mrk.json") == 0
    assert "9 landmarks of the moving image -> fixed image" in capsys.readouterr().out
    np.testing.assert_allclose(read_landmarks(folder / "out" / "points_in_fixed.mrk.json"), points, atol=0.1)


@pytest.mark.parametrize(("name", "way_out"), [("b_1Warp.nii.gz", "give the whole one, {folder}/field.nii.gz"),
                                               ("a1Warp.nii.gz", "antsApplyTransforms -o")])  # fmt: skip
def test_a_warp_of_ants_without_its_affine_is_refused_with_the_whole_way(folder, backward, capsys, name, way_out):
    write_field(folder / name, deformation())
    if name.startswith("a"):
        assert apply(folder, "-t", folder / name, "-i", folder / "moving.nii.gz") == 0  # no affine: it may be the whole way
        write_affine(folder / "a0GenericAffine.mat", INITIAL)
    assert apply(folder, "-t", folder / name, "-i", folder / "moving.nii.gz") == 1
    error = capsys.readouterr().err
    assert "Alone it maps nothing" in error and way_out.format(folder=folder) in error
