"""nnssl_register from the command line: what it writes is what it says, and bad input gets an answer while the rest goes on."""

import csv
import json

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch

from nnssl_reg.commands.entry import main
from nnssl_reg.commands.registration_setup import device_called
from nnssl_reg.geometry.grid import Grid
from nnssl_reg.geometry.image import Image
from nnssl_reg.imageio.images import read_grid, read_image, read_labels, write_image
from nnssl_reg.imageio.json_files import write_json
from nnssl_reg.imageio.transforms import read_composite, read_field

QUICK = ("--init", "identity", "--no_figures", "--set", "registration.iterations=10")


def shrunk(points: torch.Tensor) -> torch.Tensor:
    """The moving body is 8 % smaller and lies 4 mm off."""
    return points / 0.92 - torch.tensor([4.0, 0.0, -3.0], dtype=points.dtype).view(3, 1, 1, 1)


def register(*flags) -> int:
    device = () if "-device" in flags else ("-device", "cpu")
    return main([*map(str, flags), "--no_pbar", *device], name="nnssl_register")


def label_of(image: Image) -> Image:
    """1: the body, 3: its bright parts."""
    body = (image.array > 100).astype(np.uint8)
    return Image(body + 2 * (image.array > 260).astype(np.uint8) * body, image.grid)


@pytest.fixture(scope="module")
def images(turned_grid, body_image) -> dict[str, Image]:
    fixed, moving = turned_grid((30, 26, 22), (3.4, 3.5, 4.5), (12, -15, 20)), turned_grid((28, 30, 26), 3.7, (5, 30, 0))
    return {"fixed": body_image(fixed), "moving": body_image(moving, shrunk)}


def write_files(folder, images) -> None:
    for name, image in images.items():
        write_image(folder / f"{name}.nii.gz", image)
        write_image(folder / f"{name}_label.nii.gz", label_of(image))


@pytest.fixture
def folder(tmp_path, images, monkeypatch):
    """fixed.nii.gz, moving.nii.gz and their labels; no environment variable is set."""
    for name in ("raw", "preprocessed", "results"):
        monkeypatch.delenv(f"nnssl_{name}", raising=False)
    write_files(tmp_path, images)
    return tmp_path


@pytest.fixture(scope="module")
def registered(tmp_path_factory, images):
    """The output of one pair among broken ones, registered with all defaults; exit code in `code`."""
    folder = tmp_path_factory.mktemp("study")
    write_files(folder, images)
    whole = (folder / "moving.nii.gz").read_bytes()
    (folder / "cut.nii.gz").write_bytes(whole[: len(whole) // 2])
    pair = {"fixed": "fixed.nii.gz", "moving": "moving.nii.gz", "fixed_label": "fixed_label.nii.gz",
            "moving_label": "moving_label.nii.gz"}  # fmt: skip
    write_json(folder / "pairs.json", [{"fixed": "fixed.nii.gz", "moving": "cut.nii.gz"}, pair | {"id": "good"}])
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("nnssl_results", raising=False)
        (folder / "code").write_text(str(register("-i", folder / "pairs.json")))
    return folder


def test_a_broken_file_does_not_stop_the_others_and_the_exit_code_tells(registered):
    assert (registered / "code").read_text() == "1"
    summary = json.loads((registered / "pairs_registered" / "summary.json").read_text())
    rows = {r["id"]: r for r in csv.DictReader((registered / "pairs_registered" / "metrics.csv").read_text().splitlines())}
    assert "cut.nii.gz" in rows["fixed__cut"]["error"] and "bytes" in rows["fixed__cut"]["error"]
    assert rows["good"]["error"] == "" and float(rows["good"]["dice"]) > 0.8 > float(rows["good"]["dice_initial"])
    assert summary["registered"] == 1 and summary["settings"]["features"] == "mind"
    assert not list((registered / "pairs_registered").glob("fixed__cut*"))


def test_everything_about_a_pair_is_written_and_the_sidecar_explains_it(registered, images):
    out = registered / "pairs_registered"
    told = json.loads((out / "good.json").read_text())
    assert set(told["files"]) == {"warped", "warped_label", "field", "transform", "picture", "report"}
    assert {p.name for p in out.glob("good*")} == {"good.json", *told["files"].values()}
    assert "warped(p) = moving(p + field(p))" in told["meaning"]["maps"] and "LPS" in told["meaning"]["field"]
    assert told["settings"]["plans"]["registration"]["init"] == "auto" and "torch" in told["settings"]["versions"]
    assert told["initial"]["name"] in told["initial"]["costs"] and told["seconds"] > 0 and told["peak_memory_gb"] > 0.05
    field = read_field(out / told["files"]["field"])
    length = field.vectors_mm.norm(dim=0)
    assert np.allclose(
        (told["displacement_mm"]["mean"], told["displacement_mm"]["max"]), (length.mean(), length.max()), rtol=1e-4
    )
    assert np.allclose(told["initial_matrix"], read_composite(out / told["files"]["transform"])[0].matrix, atol=1e-6)
    for name in ("warped", "warped_label"):
        assert read_grid(out / told["files"][name]).matches(images["fixed"].grid, 1e-2)
    assert nib.load(out / "good_field.nii.gz").header["intent_code"] == 1007


def test_labels_keep_their_type_and_values(registered):
    warped = read_labels(registered / "pairs_registered" / "good_warped_label.nii.gz")
    assert warped.array.dtype == np.uint8 and set(np.unique(warped.array)) == {0, 1, 3}


@pytest.mark.parametrize("transform", ["good_transform.h5", "good_field.nii.gz"])
def test_simpleitk_applies_our_transforms_as_we_do(registered, transform):
    out = registered / "pairs_registered"
    fixed, moving = sitk.ReadImage(str(registered / "fixed.nii.gz")), sitk.ReadImage(str(registered / "moving.nii.gz"))
    if transform.endswith(".h5"):
        applied = sitk.ReadTransform(str(out / transform))
    else:
        applied = sitk.DisplacementFieldTransform(sitk.ReadImage(str(out / transform), sitk.sitkVectorFloat64))
    low = float(sitk.GetArrayViewFromImage(moving).min())
    theirs = sitk.GetArrayFromImage(sitk.Resample(moving, fixed, applied, sitk.sitkLinear, low)).T
    ours, intensity_range = read_image(out / "good_warped.nii.gz").array[0], np.ptp(sitk.GetArrayViewFromImage(moving))
    field, grid = read_field(out / "good_field.nii.gz"), read_grid(registered / "moving.nii.gz")
    moved = grid.world_to_index(np.moveaxis((field.grid.points_mm() + field.vectors_mm).numpy(), 0, -1))
    at_edge = (np.minimum(np.abs(moved + 0.5), np.abs(moved - (np.array(grid.shape) - 0.5))) < 1e-3).any(axis=-1)
    assert at_edge.mean() < 0.01
    assert np.abs(ours - theirs)[~at_edge].max() < 1e-3 * intensity_range


def test_two_files_and_no_variables_are_enough_and_a_rerun_gives_the_same(folder, capsys, monkeypatch):
    (folder / "elsewhere").mkdir()
    monkeypatch.chdir(folder / "elsewhere")
    flags = ("-f", folder / "fixed.nii.gz", "-m", folder / "moving.nii.gz", *QUICK)
    assert register(*flags) == 0
    out = folder / "elsewhere" / "fixed_registered"  # not beside the images, which may lie in a data set
    assert not (folder / "fixed_registered").exists()
    assert "Model: none (nnssl_results is not set); MIND features are used." in capsys.readouterr().out
    assert "picture" not in json.loads((out / "fixed__moving.json").read_text())["files"]
    first = nib.load(out / "fixed__moving_field.nii.gz").get_fdata()
    assert register(*flags, "--overwrite") == 0
    assert np.array_equal(first, nib.load(out / "fixed__moving_field.nii.gz").get_fdata())


def test_all_missing_files_are_listed_at_once(folder, capsys):
    write_json(
        folder / "pairs.json", [{"fixed": "a.nii.gz", "moving": "moving.nii.gz"}, {"fixed": "fixed.nii.gz", "moving": "b.mha"}]
    )
    assert register("-i", folder / "pairs.json") == 1
    said = capsys.readouterr().err
    assert "a.nii.gz" in said and "b.mha" in said and "pair 1" in said
    (folder / "e.png").touch()
    assert register("-f", folder / "c.nii.gz", "-m", folder / "d.nii.gz", "-fl", folder / "e.png", "-fmask", "f.txt") == 1
    said = capsys.readouterr().err
    assert all(f"{name} does not exist" in said for name in ("c.nii.gz", "d.nii.gz", "f.txt"))
    assert all(f"{name}: the ending is none of" in said for name in ("e.png", "f.txt"))


@pytest.mark.parametrize(("flags", "answer"), [
    (("-i", "pairs.json", "-f", "fixed.nii.gz"), "not both"), ((), "Give -i PAIRS.json, or -f FIXED and -m MOVING"),
    (("-f", "fixed.nii.gz"), "-m MOVING"), (("-f", "fixed.nii.gz", "-m", "notes.txt"), "the ending is none of .nii.gz"),
    (("-f", "fixed.nii.gz", "-m", "moving.nii.gz", "-o", "notes.txt/out"), "choose another output folder with -o"),
    (("-f", "fixed.nii.gz", "-m", "moving.nii.gz", "--set", "registration.smothness=1"), "registration.smoothness"),
    (("-f", "fixed.nii.gz", "-m", "moving.nii.gz", "-limit", "0"), "-limit"),
    (("-f", "fixed.nii.gz", "-m", "moving.nii.gz", "-device", "gpu"), "-device gpu: no device is called so; use cpu, cuda"),
    (("-f", "fixed.nii.gz", "-m", "moving.nii.gz", "-device", "cuda:99"), "-device cuda:99: there is no such device here"),
])  # fmt: skip
def test_requests_that_cannot_be_met_are_answered_in_one_line(folder, capsys, monkeypatch, flags, answer):
    monkeypatch.chdir(folder)
    (folder / "notes.txt").write_text("hello")
    assert register(*flags) == 1
    said = capsys.readouterr().err
    assert answer in said and "Traceback" not in said


def run_pair(folder, *flags, **pair) -> str:
    """Register one pair (files by name) and return the error of its row, empty if there is none."""
    write_json(folder / "pairs.json", [{"fixed": "fixed.nii.gz", "moving": "moving.nii.gz"} | pair | {"id": "x"}])
    code = register("-i", folder / "pairs.json", "-o", folder / "out", *QUICK, *flags)
    (row,) = csv.DictReader((folder / "out" / "metrics.csv").read_text().splitlines())
    assert code == (1 if row["error"] else 0)
    return row["error"]


def test_files_that_are_no_images_are_named(folder, capsys):
    (folder / "text.nii.gz").write_text("not an image")
    (folder / "empty.nii").touch()
    assert register("-f", folder / "text.nii.gz", "-m", folder / "moving.nii.gz") == 1
    assert "text.nii.gz" in capsys.readouterr().err
    write_json(
        folder / "pairs.json", [{"fixed": f, "moving": "moving.nii.gz"} for f in ("fixed.nii.gz", "text.nii.gz", "empty.nii")]
    )
    assert register("-i", folder / "pairs.json", *QUICK) == 1
    said = capsys.readouterr().out
    assert "3 pairs, 2 failed" in said and "text.nii.gz" in said and "empty.nii" in said


def test_nan_voxels_are_counted_and_the_image_named(folder, images):
    array = images["moving"].array.copy()
    array[0, 3:5, 2, 2] = np.nan
    write_image(folder / "holes.nii.gz", Image(array, images["moving"].grid))
    error = run_pair(folder, moving="holes.nii.gz")
    assert "holes.nii.gz: 2 voxels" in error and "NaN" in error


def test_labels_on_another_grid_are_named_with_both_grids(folder, images):
    wrong = Grid(images["fixed"].grid.shape, images["fixed"].grid.affine @ np.diag([1, 1, 1.1, 1]))
    write_image(folder / "wrong.nii.gz", Image(label_of(images["fixed"]).array, wrong))
    error = run_pair(folder, fixed_label="wrong.nii.gz")
    assert "wrong.nii.gz" in error and error.count("Grid(") == 2


def test_a_file_of_several_volumes_needs_to_be_told_which(folder, images):
    stack = np.stack([images["moving"].array[0], 3 * images["moving"].array[0]], axis=-1)
    nib.save(nib.Nifti1Image(stack, images["moving"].grid.affine), folder / "stack.nii.gz")
    assert "-volume 0 ... 1" in run_pair(folder, moving="stack.nii.gz")
    assert run_pair(folder, "-volume", 1, moving="stack.nii.gz") == ""
    assert read_image(folder / "out" / "x_warped.nii.gz").array.max() > 700


def far_away(image: Image, distance_mm: float) -> Image:
    affine = np.array(image.grid.affine)
    affine[0, 3] += distance_mm
    return Image(image.array, Grid(image.grid.shape, affine))


def test_headers_far_apart_are_bridged_by_auto_and_refused_with_identity_saying_the_distance(folder, images, capsys):
    write_image(folder / "far.nii.gz", far_away(images["moving"], 2000))
    error = run_pair(folder, moving="far.nii.gz")
    gap = float(error.split("still ")[1].split(" mm apart")[0])
    assert 1800 < gap < 2000 and "--init auto" in error
    assert "bridges" not in capsys.readouterr().err
    assert run_pair(folder, "--init", "auto", moving="far.nii.gz") == ""
    assert "mm apart; the initial alignment bridges it" in capsys.readouterr().err
    near, far = (read_image(folder / "fixed.nii.gz").array, read_image(folder / "out" / "x_warped.nii.gz").array)
    assert np.corrcoef(near.ravel(), far.ravel())[0, 1] > 0.9


@pytest.mark.parametrize("shape", [(2, 2, 2), (3, 3, 3), (40, 3, 2), (12, 2, 14)])
@pytest.mark.parametrize("init", ["identity", "auto"])
def test_tiny_images_are_registered(folder, turned_grid, body_image, shape, init):
    write_image(folder / "tiny.nii.gz", body_image(turned_grid(shape, 3.0), radii_mm=(5.0, 5.0, 5.0)))
    assert run_pair(folder, "--init", init, fixed="tiny.nii.gz") == ""
    assert run_pair(folder, "--init", init, fixed="tiny.nii.gz", moving="tiny.nii.gz") == ""
    field = read_field(folder / "out" / "x_field.nii.gz")
    assert field.grid.shape == shape and not field.vectors_mm.any()


@pytest.mark.parametrize("features", ["dino", "dino+mind"])
def test_learned_features_register_with_the_settings_of_their_model(folder, model_folder, features, capsys):
    model = model_folder(folder / "results")
    assert run_pair(folder, "-results", folder / "results", "--features", features) == ""
    assert f"Model: {model}" in capsys.readouterr().out
    settings = json.loads((folder / "out" / "x.json").read_text())["settings"]
    assert settings["features"] == features and settings["model"] == str(model)
    assert settings["plans"]["features"]["components"] == 6 and settings["plans"]["registration"]["search_radius_mm"] == 32
    assert run_pair(folder, "-results", folder / "results", "--features", features, moving="fixed.nii.gz") == ""
    assert not read_field(folder / "out" / "x_field.nii.gz").vectors_mm.any()


def test_an_image_below_one_patch_is_padded_for_the_encoder(folder, turned_grid, body_image, model_folder):
    write_image(folder / "tiny.nii.gz", body_image(turned_grid((3, 3, 3), 3.0), radii_mm=(5.0, 5.0, 5.0)))
    assert run_pair(folder, "--model", model_folder(folder / "results"), fixed="tiny.nii.gz") == ""
    assert read_field(folder / "out" / "x_field.nii.gz").grid.shape == (3, 3, 3)


def test_a_rigid_mask_of_a_flag_or_a_pair_stands_in_the_sidecar_and_in_the_written_field(folder, images):
    mask = np.zeros(images["fixed"].array.shape, np.uint8)
    mask[:, 8:12, 10:14, 8:12], mask[:, 17:21, 10:14, 9:13] = 5, 2
    write_image(folder / "bones.nii.gz", Image(mask, images["fixed"].grid))
    files = ("-f", folder / "fixed.nii.gz", "-m", folder / "moving.nii.gz", "--rigid_mask", folder / "bones.nii.gz")
    assert register(*files, "-o", folder / "out", *QUICK) == 0
    told = json.loads((folder / "out" / "fixed__moving.json").read_text())
    assert [region["id"] for region in told["rigid_regions"]] == [2, 5]
    index = np.argwhere(mask[0] == 5)
    points, matrix = images["fixed"].grid.index_to_world(index), np.array(told["rigid_regions"][1]["matrix"])
    led = read_field(folder / "out" / "fixed__moving_field.nii.gz").apply_to_points(points)
    np.testing.assert_allclose(led, points @ matrix[:3, :3].T + matrix[:3, 3], atol=1e-3)
    write_json(folder / "pairs.json", [{"fixed": "fixed.nii.gz", "moving": "moving.nii.gz", "rigid_mask": "bones.nii.gz"}])
    assert register("-i", folder / "pairs.json", "-o", folder / "out", *QUICK) == 0
    assert json.loads((folder / "out" / "fixed__moving.json").read_text())["rigid_regions"] == told["rigid_regions"]


def test_rigid_regions_and_a_flow_exclude_each_other(folder, images, capsys):
    files = ("-f", folder / "fixed.nii.gz", "-m", folder / "moving.nii.gz", "--rigid_mask", folder / "fixed_label.nii.gz")
    assert register(*files, "-o", folder / "out", "--diffeomorphic", *QUICK) == 1
    assert "rigid regions is no flow" in capsys.readouterr().err


def test_a_gpu_beyond_those_that_are_there_is_refused_with_their_number(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert device_called("cuda:1").index == 1 and device_called(None).type == "cuda"
    with pytest.raises(ValueError, match="-device cuda:9: there is no such device here; torch sees 2 GPUs, cuda:0 ... cuda:1"):
        device_called("cuda:9")
