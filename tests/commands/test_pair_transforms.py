"""Transform files of a pair: SimpleITK and ANTs apply all of them as we do, wrong ones are noticed, the inverse leads back."""

import csv
import json
import zipfile

import numpy as np
import pytest
import torch

from nnssl_reg.commands import pair_transforms
from nnssl_reg.commands.entry import main
from nnssl_reg.commands.pair_transforms import Exports, write_transforms
from nnssl_reg.commands.pair_types import RegisteredPair
from nnssl_reg.evaluation.phantoms import rotation
from nnssl_reg.geometry.affine import AffineTransform
from nnssl_reg.geometry.displacement import DisplacementField
from nnssl_reg.geometry.image import Image
from nnssl_reg.imageio.images import read_image, write_image
from nnssl_reg.imageio.json_files import write_json
from nnssl_reg.imageio.landmarks import write_landmarks
from nnssl_reg.imageio.pairs import Pair
from nnssl_reg.imageio.transforms import read_field
from nnssl_reg.registration.affine_init import InitialAlignment

ALL = Exports(inverse=True, learn2reg=True, ants=True)


def shrunk(points: torch.Tensor) -> torch.Tensor:
    return points / 0.92 - torch.tensor([4.0, 0.0, -3.0], dtype=points.dtype).view(3, 1, 1, 1)


def waves(points_mm: torch.Tensor, size_mm: float = 2.0) -> torch.Tensor:
    x, y, z = points_mm
    return size_mm * torch.stack([torch.sin(y / 15), torch.cos(z / 18), torch.sin((x + y) / 17)])


@pytest.fixture(scope="module")
def done(turned_grid, textured_image) -> RegisteredPair:
    """A known transform between an oblique, anisotropic fixed and a turned moving grid of one shape, as if found."""
    fixed = turned_grid((32, 28, 26), (2.2, 2.6, 3.4), (12, -8, 20), (10, -20, 5))
    moving = turned_grid((32, 28, 26), (2.5, 2.4, 3.0), (-6, 5, 0), (13, -22, 9))
    matrix = np.eye(4)
    matrix[:3, :3] = rotation((0.05, -0.04, 0.08)) * 1.04
    matrix[:3, 3] = moving.center_mm - matrix[:3, :3] @ fixed.center_mm
    initial, lattice = AffineTransform(matrix), fixed.with_spacing(fixed.spacing_mm)
    deformation = DisplacementField(waves(lattice.points_mm()), lattice)
    field = initial.after(deformation.on(fixed))
    alignment = InitialAlignment(initial, "affine", {"affine": 0.1})
    return RegisteredPair(textured_image(fixed, shortest_mm=25), textured_image(moving, shortest_mm=25), None, None, alignment,
                          deformation, field, None, None, {})  # fmt: skip


@pytest.fixture
def pair(tmp_path, done) -> Pair:
    for name, image in (("A_0001_0000", done.fixed), ("A_0002_0000", done.moving)):
        write_image(tmp_path / f"{name}.nii.gz", image)
    return Pair("p", tmp_path / "A_0001_0000.nii.gz", tmp_path / "A_0002_0000.nii.gz")


def test_every_file_is_read_back_and_simpleitk_warps_with_it_as_we_do(tmp_path, pair, done):
    written = write_transforms(tmp_path, pair, done, done.field.warp(done.moving), ALL)
    assert set(written.files) == {
        "field",
        "transform",
        "inverse_field",
        "learn2reg",
        "ants_affine",
        "ants_warp",
        "ants_inverse_warp",
    }
    assert all((tmp_path / name).is_file() for name in written.files.values())
    assert set(written.differences) == set(written.files) - {"ants_affine"}
    assert 0 < max(d["max"] for d in written.differences.values()) < pair_transforms.LARGEST_DIFFERENCE
    assert all(d["mean"] <= d["max"] for d in written.differences.values())
    assert "differs by at most" in written.in_words() and "inverse misses by mean" in written.in_words()


@pytest.mark.parametrize(("kind", "spoil"), [
    ("field", lambda field: DisplacementField(-field.vectors_mm, field.grid)),
    ("learn2reg", lambda field: DisplacementField(field.vectors_mm.flip(0), field.grid)),
])  # fmt: skip
def test_a_file_that_is_not_what_was_computed_is_warned_about(tmp_path, pair, done, caplog, monkeypatch, kind, spoil):
    name = {"field": "write_field", "learn2reg": "write_learn2reg"}[kind]
    right = getattr(pair_transforms, name)
    monkeypatch.setattr(pair_transforms, name, lambda path, field, *rest: right(path, spoil(field), *rest))
    written = write_transforms(tmp_path, pair, done, done.field.warp(done.moving), Exports(learn2reg=True))
    assert written.differences[kind]["max"] > 0.01 > 1e-3 > written.differences["transform"]["max"]
    (warning,) = [record.getMessage() for record in caplog.records]
    assert written.files[kind] in warning and "Do not trust this file" in warning


def test_the_inverse_leads_back_and_its_error_is_that_of_all_points(tmp_path, pair, done):
    written = write_transforms(tmp_path, pair, done, done.field.warp(done.moving), Exports(inverse=True))
    back = read_field(tmp_path / written.files["inverse_field"])
    assert back.grid.matches(done.moving.grid)
    points = np.moveaxis(done.fixed.grid.points_mm().numpy(), 0, -1).reshape(-1, 3)
    there = done.field.apply_to_points(points)
    index = back.grid.world_to_index(there)
    inside = ((index > -0.5) & (index < np.array(back.grid.shape) - 0.5)).all(axis=1)
    error = np.linalg.norm(back.apply_to_points(there[inside]) - points[inside], axis=1)
    assert written.inverse_error_mm["mean"] == pytest.approx(error.mean(), rel=0.02)
    assert written.inverse_error_mm["p95"] == pytest.approx(np.percentile(error, 95), rel=0.05)
    assert inside.mean() > 0.2 and written.inverse_error_mm["mean"] < 0.05


def test_ants_applies_its_files_as_we_do_forward_and_inverse(tmp_path, pair, done):
    ants = pytest.importorskip("ants")
    written = write_transforms(tmp_path, pair, done, done.field.warp(done.moving), Exports(inverse=True, ants=True))
    affine, warp, back = (str(tmp_path / written.files[k]) for k in ("ants_affine", "ants_warp", "ants_inverse_warp"))
    fixed, moving = ants.image_read(str(pair.fixed)), ants.image_read(str(pair.moving))
    theirs = ants.apply_transforms(fixed, moving, [warp, affine], defaultvalue=float(moving.min())).numpy()
    close = np.abs(theirs - done.field.warp(done.moving).array[0]) < 1e-3 * np.ptp(done.moving.array)
    assert close[pair_transforms.inside(done.field, done.moving.grid)].all()
    theirs = ants.apply_transforms(moving, fixed, [affine, back], whichtoinvert=[True, False], defaultvalue=float(fixed.min()))
    inverse = done.field.inverse(done.moving.grid)
    inner = pair_transforms.inside(inverse, done.fixed.grid, margin_vox=-3.0)
    assert inner.mean() > 0.2
    apart = np.abs(theirs.numpy() - inverse.warp(done.fixed).array[0])[inner]
    assert apart.max() < 0.01 * np.ptp(done.fixed.array)  # two inverses, each interpolated on its own grid


def register(*flags) -> int:
    quick = ("--init", "identity", "--no_figures", "--set", "registration.iterations=10", "--no_pbar", "-device", "cpu")
    return main([*map(str, flags), *quick], name="nnssl_register")


@pytest.fixture
def challenge(tmp_path, turned_grid, body_image, monkeypatch):
    """A Learn2Reg data set of two images with landmarks in voxels."""
    monkeypatch.delenv("nnssl_results", raising=False)
    grid = turned_grid((26, 24, 22), 4.0, (0, 0, 0))
    points = np.random.default_rng(0).uniform(7, 15, (12, 3))
    there = grid.world_to_index((grid.index_to_world(points) + (4.0, 0.0, -3.0)) * 0.92)
    for name, moved, landmarks in (("T_0001_0000", None, points), ("T_0002_0000", shrunk, there)):
        image = body_image(grid, moved)
        write_image(tmp_path / "imagesTr" / f"{name}.nii.gz", image)
        write_image(tmp_path / "labelsTr" / f"{name}.nii.gz", Image((image.array > 100).astype(np.uint8), grid))
        (tmp_path / "keypointsTr").mkdir(exist_ok=True)
        np.savetxt(tmp_path / "keypointsTr" / f"{name}.csv", landmarks, delimiter=",")
    pair = {"fixed": "./imagesTr/T_0001_0000.nii.gz", "moving": "./imagesTr/T_0002_0000.nii.gz"}
    write_json(tmp_path / "T_dataset.json", {"name": "T", "tensorImageShape": {"0": [26, 24, 22]}, "modality": {"0": "MR"},
                                             "registration_val": [pair]})  # fmt: skip
    return tmp_path


def test_a_challenge_is_answered_with_a_zip_landmark_errors_and_its_own_metrics(challenge, capsys):
    out = challenge / "out"
    flags = ("--export", "l2r", "ants", "--zip", "--inverse")
    assert register("-i", challenge / "T_dataset.json", "-o", out, *flags) == 0
    (row,) = csv.DictReader((out / "metrics.csv").read_text().splitlines())
    assert float(row["tre_mm"]) < 0.5 * float(row["tre_mm_initial"]) and float(row["hd95_l2r"]) >= 0
    assert float(row["sd_log_jacobian_l2r"]) < float(row["sd_log_jacobian"])
    with zipfile.ZipFile(out / "submission.zip") as archive:
        assert archive.namelist() == ["disp_0001_0000_0002_0000.nii.gz"]
    told = json.loads((out / "T_0001_0000__T_0002_0000.json").read_text())
    assert set(told["files"]) <= set(told["meaning"]) | {"warped", "warped_label"}
    assert set(told["transform_check"]) == {"with", *pair_transforms.MEANING} - {"ants_affine"}
    assert told["inverse_error_mm"]["mean"] < told["inverse_error_mm"]["p95"] < 4
    said = capsys.readouterr().out
    assert "T_0001_0000__T_0002_0000: SimpleITK warps with the written files as we do" in said
    assert "submission.zip: 1 of 1 fields" in said and "TRE mm" in said


def test_what_is_no_submission_is_refused_before_any_work(challenge, capsys):
    dataset = json.loads((challenge / "T_dataset.json").read_text())
    write_json(challenge / "T_dataset.json", dataset | {"tensorImageShape": {"0": [26, 24, 23]}})
    assert register("-i", challenge / "T_dataset.json", "-o", challenge / "out", "--export", "l2r") == 1
    assert (
        "T_0001_0000.nii.gz has the shape (26, 24, 22), tensorImageShape of the json says (26, 24, 23)"
        in capsys.readouterr().err
    )
    assert register("-i", challenge / "T_dataset.json", "--zip") == 1
    assert "give --export l2r" in capsys.readouterr().err
    assert not (challenge / "out").exists()


def test_a_pair_that_fails_is_missing_from_the_zip_and_that_is_said(challenge, capsys):
    (challenge / "imagesTr" / "T_0003_0000.nii.gz").write_bytes(
        (challenge / "imagesTr" / "T_0001_0000.nii.gz").read_bytes()[:999]
    )
    dataset = json.loads((challenge / "T_dataset.json").read_text())
    dataset["registration_val"].append({"fixed": "./imagesTr/T_0003_0000.nii.gz", "moving": "./imagesTr/T_0002_0000.nii.gz"})
    write_json(challenge / "T_dataset.json", dataset)
    assert register("-i", challenge / "T_dataset.json", "-o", challenge / "out", "--export", "l2r", "--zip") == 1
    out, err = capsys.readouterr()
    assert "lacks 1 of 2 fields: disp_0003_0000_0002_0000.nii.gz" in err and "1 of 2 fields" in out


def test_landmarks_that_do_not_pair_up_are_named_before_the_registration(challenge):
    fixed = read_image(challenge / "imagesTr" / "T_0001_0000.nii.gz")
    write_landmarks(challenge / "f.fcsv", fixed.grid.index_to_world([[5, 5, 5], [6, 7, 8]]))
    write_landmarks(challenge / "m.fcsv", fixed.grid.index_to_world([[5, 5, 5]]))
    entry = {"fixed": "imagesTr/T_0001_0000.nii.gz", "moving": "imagesTr/T_0002_0000.nii.gz", "id": "x"}
    write_json(challenge / "pairs.json", [entry | {"fixed_landmarks": "f.fcsv", "moving_landmarks": "m.fcsv"}])
    assert register("-i", challenge / "pairs.json", "-o", challenge / "out") == 1
    (row,) = csv.DictReader((challenge / "out" / "metrics.csv").read_text().splitlines())
    assert "f.fcsv has 2 landmarks and" in row["error"] and "m.fcsv has 1" in row["error"]


@pytest.mark.parametrize("voxels", [50, 10_000])
def test_large_fields_are_compared_at_evenly_spread_voxels(done, monkeypatch, voxels):
    monkeypatch.setattr(pair_transforms, "CHECKED", voxels)
    part, some = pair_transforms.evenly_spread(done.field)
    assert some.grid.shape == some.vectors_mm.shape[1:] and 8 <= np.prod(some.grid.shape) <= max(voxels, 60)
    points = done.field.grid.points_mm()[(slice(None), *part)]
    assert torch.allclose(points, some.grid.points_mm(), atol=1e-3)
    assert torch.equal(done.field.vectors_mm[(slice(None), *part)], some.vectors_mm)
