"""The commands of scenarios.md, extracted from the page and run on phantoms: they work as they stand there."""

import os
import re
import shlex
import zipfile
from pathlib import Path

import numpy as np
import pytest

from nnssl_reg.commands import phantom_dataset
from nnssl_reg.commands.entry import main
from nnssl_reg.evaluation.phantoms import make_phantom
from nnssl_reg.geometry.grid import Grid
from nnssl_reg.imageio.images import read_image, read_labels, write_image
from nnssl_reg.imageio.json_files import read_json, write_json
from nnssl_reg.imageio.landmarks import read_landmarks, write_landmarks
from nnssl_reg.imageio.transforms import read_transform

PAGE = (Path(__file__).parents[1] / "documentation" / "scenarios.md").read_text(encoding="utf-8")
SHORT = {  # in place of hours of training
    "network.embed_dim": 24, "network.depth": 1, "network.num_heads": 2, "pretraining.crop_size": 8,
    "pretraining.batch_size": 4, "pretraining.prototypes": 16, "pretraining.head_hidden_dim": 16,
    "pretraining.head_bottleneck_dim": 8, "pretraining.loss_tokens": 4, "pretraining.workers": 0, "pretraining.steps": 6,
}  # fmt: skip


def section(title: str) -> str:
    return re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", PAGE, re.S | re.M)[1]


def commands(title: str) -> list[str]:
    """The lines of a section's blocks and scripts, in order, that are commands of this package or set variables."""
    lines = [line.strip() for line in section(title).splitlines() if re.match(r"( {4})?(nnssl_|export )", line)]
    return [line for line in lines if " " in line or line == "nnssl_info"]


def run(line: str, root: Path, *flags: str) -> int:
    """Type a line, /data meaning a folder of the test; training is shortened."""
    words = shlex.split(os.path.expandvars(line.replace("/data/", f"{root}/")), comments=True)
    if words[0] == "nnssl_train_dino":
        flags = (*flags, *(part for name, value in SHORT.items() for part in ("--set", f"{name}={value}")), "-device", "cpu")
    if words[0] == "nnssl_register":
        flags = (*flags, "--set", "registration.iterations=5", "--no_figures", "-device", "cpu")
    return main([*words[1:], *flags], name=words[0])


def exported(title: str, root: Path) -> dict[str, str]:
    """The variables that a section sets."""
    lines = [line.removeprefix("export ") for line in commands(title) if line.startswith("export ")]
    return dict(line.replace("/data/", f"{root}/").split("=") for line in lines)


@pytest.fixture
def coarse(monkeypatch):
    """Phantoms of voxels so large that they are made in a moment."""
    monkeypatch.setattr(phantom_dataset, "SPACING_MM", {"CT": (15, 15, 16), "MR": (15, 16, 17)})


@pytest.fixture
def two_scans(tmp_path, monkeypatch, coarse):
    """The files that the page speaks of, in the current folder."""
    monkeypatch.chdir(tmp_path)
    for name in ("raw", "preprocessed", "results"):
        monkeypatch.delenv(f"nnssl_{name}", raising=False)
    for number, name in enumerate(("fixed", "moving"), 1):
        phantom = phantom_dataset.draw_phantom(0, number, "CT")
        write_image(f"{name}.nii.gz", phantom.image)
        write_image(f"{name}_label.nii.gz", phantom.labels)
        write_landmarks(f"{name}_points.csv", phantom.landmarks_mm, "ras")
    return tmp_path


def test_two_scans(two_scans):
    lines = commands("I have two scans")
    assert [line.split()[0] for line in lines] == [
        "nnssl_register", "nnssl_transform_info", "nnssl_apply_transform", "nnssl_apply_transform", "nnssl_register",
        "nnssl_register"]  # fmt: skip
    assert [run(line, two_scans) for line in lines] == [0] * len(lines)
    field = read_transform("out/fixed__moving_field.nii.gz")
    warped = read_labels("warped/moving_label_warped.nii.gz").array
    assert (warped == field.warp(read_labels("moving_label.nii.gz")).array).all()
    carried = read_landmarks("points/fixed_points_in_moving.csv", "ras")
    assert abs(carried - field.apply_to_points(read_landmarks("fixed_points.csv", "ras"))).max() < 1e-2
    scores = read_json("scored/fixed__moving.json")["scores"]
    assert scores["dice"] > scores["dice_initial"]
    assert read_json("follow_up/fixed__moving.json")["initial"]["name"] == "identity"
    assert read_image("out/fixed__moving_warped.nii.gz").grid.matches(read_image("fixed.nii.gz").grid, 1e-3)


def test_coming_from_ants_and_learn2reg(two_scans):
    (line,) = commands("I come from ANTs")
    assert run(line, two_scans) == 0
    assert {"fixed__moving_0GenericAffine.mat", "fixed__moving_1Warp.nii.gz", "fixed__moving_1InverseWarp.nii.gz"} <= {
        path.name for path in Path("for_ants").iterdir()
    }
    task = Path("L2R")
    for number in (1, 2):
        phantom = make_phantom(np.random.default_rng(number), Grid((26, 20, 20), np.diag([15.0, 15, 16, 1])), "CT")
        write_image(task / "imagesTr" / f"TASK_{number:04d}_0000.nii.gz", phantom.image)
        write_image(task / "labelsTr" / f"TASK_{number:04d}_0000.nii.gz", phantom.labels)
    names = {key: f"./imagesTr/TASK_{number:04d}_0000.nii.gz" for number, key in enumerate(("fixed", "moving"), 1)}
    write_json(task / "TASK_dataset.json", {"name": "TASK", "modality": {"0": "CT"}, "tensorImageShape": {"0": [26, 20, 20]},
                                            "registration_val": [names]})  # fmt: skip
    (line,) = commands("I come from Learn2Reg")
    assert run(line, two_scans) == 0
    with zipfile.ZipFile("submission/submission.zip") as archive:
        assert [Path(name).name for name in archive.namelist()] == ["disp_0001_0000_0002_0000.nii.gz"]
    assert run("nnssl_evaluate -i L2R/TASK_dataset.json -o submission", two_scans) == 0


@pytest.fixture
def two_hundred_scans(tmp_path, monkeypatch, coarse):
    """The data set that the page speaks of, of ten phantoms, and the variables that it sets; its root."""
    monkeypatch.chdir(tmp_path)
    for name, value in exported("I have 200 scans and one GPU", tmp_path).items():
        monkeypatch.setenv(name, value)
    assert set(exported("I have 200 scans and one GPU", tmp_path)) == {"nnssl_raw", "nnssl_preprocessed", "nnssl_results"}
    made = phantom_dataset.write_phantom_dataset(tmp_path / "nnssl_raw", 1, 6, 4, seed=0)
    made.rename(made.with_name("Dataset001_Abdomen"))
    return tmp_path


@pytest.mark.slow
def test_two_hundred_scans_and_one_gpu(two_hundred_scans):
    root = two_hundred_scans
    lines = [line for line in commands("I have 200 scans and one GPU") if not line.startswith("export")]
    assert [run(line, root) for line in lines] == [0] * len(lines)
    summary = read_json(root / "registered" / "summary.json")
    assert summary["settings"]["features"] == "dino+mind" and summary["failed"] == {}
    model = root / "another_machine" / "Dataset001_Abdomen" / "DINO__nnsslPlans__3d_fullres"
    assert read_json(model / "model_card.json")["notes"] == "Trained on adults only."


@pytest.mark.slow
def test_a_cluster(two_hundred_scans, monkeypatch, capsys):
    root = two_hundred_scans
    plan, over_nodes, train, part, whole = commands("I have a cluster")
    assert run(plan, root, "-np", "0") == 0
    assert run(over_nodes, root) != 0 and "No Dask scheduler answers at tcp://NODE:8786" in capsys.readouterr().err
    for _ in range(3):  # jobs of the array: the first begins and ends, the others find the run complete
        assert run(train, root) == 0
    assert list((root / "nnssl_results").rglob("checkpoint_final.safetensors"))
    data = read_json(root / "nnssl_raw" / "Dataset001_Abdomen" / "dataset.json")
    pairs = [{k: str(root / "nnssl_raw" / "Dataset001_Abdomen" / v) for k, v in p.items()} for p in data["registration_val"]]
    write_json(root / "pairs.json", pairs)
    monkeypatch.setenv("SLURM_ARRAY_TASK_COUNT", "2")
    for task in ("0", "1"):
        monkeypatch.setenv("SLURM_ARRAY_TASK_ID", task)
        assert run(part, root) == 0
    written = {path: path.stat().st_mtime_ns for path in (root / "in_parts").glob("*_field.nii.gz")}
    assert len(written) == len(pairs) and not (root / "in_parts" / "summary.json").exists()
    assert run(whole, root) == 0
    assert read_json(root / "in_parts" / "summary.json")["registered"] == len(pairs)
    assert {path: path.stat().st_mtime_ns for path in (root / "in_parts").glob("*_field.nii.gz")} == written
