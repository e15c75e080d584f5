"""nnssl_info: what is there is told, what is broken is a line of it, and nothing makes it fail or change anything."""

import json
import os
import subprocess
import sys

import pytest
import torch

from nnssl_reg.commands import found_models, info
from nnssl_reg.commands.entry import main
from nnssl_reg.commands.found_data import dataset_states
from nnssl_reg.imageio.json_files import write_json

REAL = info.ASK_TORCH
CPU_ONLY = """print('{"cuda": [], "mps": false, "cuda_of_torch": null, "threads": 2}')"""
LIGHT = """
import sys
import nnssl_reg.commands.info
print([m for m in ("torch", "SimpleITK", "nibabel", "numba", "matplotlib", "scipy") if m in sys.modules])
"""


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Torch takes seconds to answer; a canned answer does not."""
    monkeypatch.setattr(info, "ASK_TORCH", CPU_ONLY)


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """Three folders named by variables; raw with a data set of two images."""
    for kind in info.KINDS:
        monkeypatch.setenv(f"nnssl_{kind}", str(tmp_path / kind))
    images = tmp_path / "raw" / "Dataset001_Abdomen" / "imagesTr"
    images.mkdir(parents=True)
    for name in ("a_0000.nii.gz", "b_0000.nii.gz", "notes.txt"):
        (images / name).touch()
    return tmp_path


def told(capsys, *flags) -> dict:
    assert main(["--json", *map(str, flags)], name="nnssl_info") == 0
    return json.loads(capsys.readouterr().out)


def test_everything_that_is_asked_for_is_told_as_json_and_in_words(folders, capsys, monkeypatch):
    monkeypatch.setattr(info, "ASK_TORCH", REAL)
    report = told(capsys)
    assert set(report) == {"versions", "machine", "folders", "models", "datasets", "devices", "would_run"}
    assert report["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert bool(report["devices"]["cuda"]) == torch.cuda.is_available()
    assert report["machine"]["cores_usable"] >= 1 and report["machine"]["memory_gb"] >= report["machine"]["memory_free_gb"] > 0
    monkeypatch.setattr(info, "ASK_TORCH", CPU_ONLY)
    assert main([], name="nnssl_info") == 0
    said = capsys.readouterr().out
    assert all(f"\n{title}\n" in f"\n{said}" for title in ("versions", "machine", "devices", "would run"))
    assert "2 images; not measured; not planned; no model" in said and "MIND features (no model is there)" in said


def test_how_far_data_sets_have_come_is_read_from_their_folders(folders, model_folder, capsys):
    planned = folders / "preprocessed" / "Dataset001_Abdomen"
    write_json(planned / "dataset_fingerprint.json", {"configurations": {}})
    write_json(planned / "nnsslPlans.json", {"configurations": {"3d_fullres": {}, "3d_lowres": {}}})
    write_json(planned / "nnsslPlans_3d_fullres" / "a_0000.json", {})
    model = model_folder(folders / "results", "Dataset001_Abdomen")
    state = told(capsys)["datasets"][0]
    assert (state["images"], state["fingerprint"]) == (2, True)
    assert state["preprocessed"] == {"nnsslPlans_3d_fullres": 1, "nnsslPlans_3d_lowres": 0}
    assert state["models"] == {model.name: "trained"}


def test_models_are_told_in_a_line_and_what_registration_would_use(folders, model_folder, capsys, monkeypatch):
    model = model_folder(folders / "results")
    report = told(capsys)
    assert report["models"] == [{"path": str(model), "packaged": False, "about": "trained here, 3 of 1 steps, width 24"}]
    assert f"model {model}" in report["would_run"]["nnssl_register"]
    monkeypatch.setattr(found_models, "files", lambda name: folders / "package")
    shipped = folders / "package" / "weights" / "body"
    main(["--model", str(model), "-o", str(shipped), "--licence", "CC0"], name="nnssl_export_model")
    (shipped / "model_card.json").write_text("{}")
    (folders / "results").rename(folders / "elsewhere")
    capsys.readouterr()
    report = told(capsys)
    assert report["models"][0]["packaged"] and "model_card.json was changed" in report["models"][0]["about"]


def test_nothing_is_made_and_what_is_not_set_or_not_there_is_said(tmp_path, capsys, monkeypatch):
    for kind in info.KINDS:
        monkeypatch.delenv(f"nnssl_{kind}", raising=False)
    (tmp_path / "file").write_text("")
    report = told(capsys, "-results", tmp_path / "missing" / "deep", "-raw", tmp_path / "file")
    assert report["folders"]["preprocessed"] == {"path": None, "state": "not set"}
    assert "does not exist, writable" in report["folders"]["results"]["state"]
    assert "a file, not a folder" in report["folders"]["raw"]["state"]
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


BROKEN = {"import nothing_of_this_name": "No module named", "import os; os._exit(3)": "code 3", "print('x')": "JSONDecodeError"}


@pytest.mark.parametrize(("code", "said"), BROKEN.items())
def test_a_torch_that_does_not_work_is_told_like_everything_else(folders, capsys, monkeypatch, code, said):
    monkeypatch.setattr(info, "ASK_TORCH", code)
    report = told(capsys)
    assert said in report["devices"]["problem"] and "nowhere, see devices" in report["would_run"]["nnssl_register"]
    assert main([], name="nnssl_info") == 0 and said in capsys.readouterr().out


@pytest.mark.parametrize("name", ["_versions", "_machine", "_folder", "_models", "dataset_states", "_devices", "_would_run"])
def test_no_section_can_make_the_others_fail(folders, capsys, monkeypatch, name):
    def broken(*_):
        raise RuntimeError("broken\nin two lines")

    monkeypatch.setattr(info, name, broken)
    assert main([], name="nnssl_info") == 0
    said = capsys.readouterr().out
    assert "RuntimeError: broken" in said and "in two lines" not in said and said.count("\n") > 15
    assert len(told(capsys)) == 7


def test_broken_plans_and_checkpoints_are_lines_too(folders, model_folder, capsys):
    (folders / "preprocessed" / "Dataset001_Abdomen").mkdir(parents=True)
    (folders / "preprocessed" / "Dataset001_Abdomen" / "nnsslPlans.json").write_text("{")
    (model_folder(folders / "results") / "checkpoint_final.json").write_text("[]")
    report = told(capsys)
    assert any("not valid json" in name for name in report["datasets"][0]["preprocessed"])
    assert "cannot be used" in report["models"][0]["about"]


def test_nothing_heavy_is_loaded_before_torch_is_asked_in_a_process_of_its_own():
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", LIGHT], capture_output=True, text=True, env=environment, check=False)
    assert done.stdout.strip() == "[]", done.stderr


def test_a_data_set_that_only_lists_its_images_says_so(tmp_path):
    (tmp_path / "Dataset001_Open").mkdir()
    (tmp_path / "Dataset001_Open" / "pretrain_data.json").write_text("{}")
    (state,) = dataset_states(tmp_path, None, None)
    assert state["images"] is None and state["about"].startswith("images in pretrain_data.json; not measured")
