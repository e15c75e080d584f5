"""Truths about the way from raw files to preprocessed cases: bad ones are named, done ones kept, results always the same."""

import csv
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from nnssl_reg.commands.entry import main
from nnssl_reg.imageio.case_store import case_names, read_case

SHAPE = (22, 24, 20)


def write_raw(folder: Path, cases: int = 3, channel: str = "CT", shape=SHAPE) -> Path:
    """A raw data set of balls in air, each case with its own noise and spacing."""
    (folder / "imagesTr").mkdir(parents=True)
    for i in range(cases):
        write_ball(folder / "imagesTr" / f"Ball_{i:04d}_0000.nii.gz", i, shape)
    data = {"channel_names": {"0": channel}, "labels": {}, "numTraining": cases, "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps(data))
    return folder


def write_ball(path: Path, seed: int, shape=SHAPE) -> None:
    rng = np.random.default_rng(seed)
    axes = np.meshgrid(*[np.arange(n) - (n - 1) / 2 for n in shape], indexing="ij")
    body = sum(a**2 for a in axes) < (min(shape) / 2 - 2) ** 2
    array = np.where(body, rng.normal(40, 30, shape), -1000).astype(np.int16)
    nib.save(nib.Nifti1Image(array, np.diag([2 + 0.01 * seed, 2, 2, 1])), path)


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """raw and preprocessed folders, set in the environment; one data set of three cases."""
    monkeypatch.setenv("nnssl_raw", str(tmp_path / "raw"))
    monkeypatch.setenv("nnssl_preprocessed", str(tmp_path / "pre"))
    write_raw(tmp_path / "raw" / "Dataset001_Balls")
    return tmp_path / "raw" / "Dataset001_Balls", tmp_path / "pre" / "Dataset001_Balls"


def do(*flags: str, command: str = "nnssl_plan_and_preprocess") -> int:
    in_this_process = {
        "nnssl_plan_and_preprocess": ["-np", "0", "-npfp", "0", "--no_pbar"],
        "nnssl_extract_fingerprint": ["-npfp", "0", "--no_pbar"],
        "nnssl_plan_experiment": [],
        "nnssl_preprocess": ["-np", "0", "--no_pbar"],
    }
    return main([*flags, *in_this_process[command]], command)


def fullres(preprocessed: Path) -> Path:
    return preprocessed / "nnsslPlans_3d_fullres"


def contents(folder: Path) -> dict:
    """All that matters of a preprocessed data set, to compare two of them."""
    found = {str(p.relative_to(folder)): p.read_text() for p in sorted(folder.rglob("*.json"))}
    return found | {n: read_case(fullres(folder), n)[0].array.tobytes() for n in case_names(fullres(folder))}


def failures(preprocessed: Path) -> list[dict]:
    with open(preprocessed / "failed_cases.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_the_whole_way_leaves_fingerprint_plans_and_cases_and_prints_the_reasons(folders, capsys):
    _, preprocessed = folders
    assert do("-d", "1") == 0
    said = capsys.readouterr().out
    assert (preprocessed / "dataset_fingerprint.json").is_file() and (preprocessed / "nnsslPlans.json").is_file()
    assert case_names(fullres(preprocessed)) == ["Ball_0000_0000", "Ball_0001_0000", "Ball_0002_0000"]
    image, properties = read_case(fullres(preprocessed), "Ball_0001_0000")
    spacing = json.loads((preprocessed / "nnsslPlans.json").read_text())["configurations"]["3d_fullres"]["image"]["spacing_mm"]
    assert np.allclose(image.grid.spacing_mm, spacing) and image.array.min() >= -1 and properties.channel_name == "CT"
    assert "network.patch_size" in said and "near-cubes" in said and str(fullres(preprocessed)) in said
    assert not (preprocessed / "failed_cases.csv").exists()


def test_single_steps_give_the_same_as_all_in_one(folders, tmp_path):
    _, preprocessed = folders
    assert do("-d", "1") == 0
    at_once = contents(preprocessed)
    flags = ("-d", "1", "-preprocessed", str(tmp_path / "steps"))
    for command in ("nnssl_extract_fingerprint", "nnssl_plan_experiment", "nnssl_preprocess"):
        assert do(*flags, command=command) == 0
    assert contents(tmp_path / "steps" / "Dataset001_Balls") == at_once


def test_bad_files_are_named_with_their_reason_the_rest_goes_on_and_the_exit_code_says_so(folders, capsys):
    raw, preprocessed = folders
    whole = (raw / "imagesTr" / "Ball_0001_0000.nii.gz").read_bytes()
    (raw / "imagesTr" / "Ball_0001_0000.nii.gz").write_bytes(whole[: len(whole) // 2])
    nib.save(nib.Nifti1Image(np.zeros(SHAPE, np.int16), np.eye(4)), raw / "imagesTr" / "Ball_0002_0000.nii.gz")
    assert do("-d", "1") == 1
    assert case_names(fullres(preprocessed)) == ["Ball_0000_0000"]
    rows = {row["case"]: row for row in failures(preprocessed)}
    assert set(rows) == {"Ball_0001_0000", "Ball_0002_0000"}
    assert "Ball_0001_0000.nii.gz" in rows["Ball_0001_0000"]["file"] and "constant" in rows["Ball_0002_0000"]["reason"]
    assert "2 cases left out" in capsys.readouterr().out

    for i in (1, 2):
        write_ball(raw / "imagesTr" / f"Ball_{i:04d}_0000.nii.gz", i)
    assert do("-d", "1") == 0 and not (preprocessed / "failed_cases.csv").exists()


def test_a_case_that_has_become_bad_does_not_stay_as_it_once_was(folders):
    raw, preprocessed = folders
    assert do("-d", "1") == 0
    (raw / "imagesTr" / "Ball_0001_0000.nii.gz").write_bytes(b"no image")
    assert do("-d", "1", command="nnssl_preprocess") == 1
    assert case_names(fullres(preprocessed)) == ["Ball_0000_0000", "Ball_0002_0000"]


def test_done_cases_are_kept_and_those_with_other_bytes_or_plans_made_again(folders, capsys):
    raw, preprocessed = folders
    assert do("-d", "1") == 0
    files = [fullres(preprocessed) / f"Ball_{i:04d}_0000.b2nd" for i in range(3)]
    first = [file.stat().st_mtime_ns for file in files]
    assert do("-d", "1") == 0
    assert [
        file.stat().st_mtime_ns for file in files
    ] == first and "3 cases preprocessed, 3 of them before" in capsys.readouterr().out

    write_ball(raw / "imagesTr" / "Ball_0001_0000.nii.gz", 77)  # same name, other content
    assert do("-d", "1", command="nnssl_preprocess") == 0
    second = [file.stat().st_mtime_ns for file in files]
    assert [a == b for a, b in zip(first, second)] == [True, False, True]

    assert do("-d", "1", "-overwrite_target_spacing", "3", "3", "3") == 0
    assert all(file.stat().st_mtime_ns != before for file, before in zip(files, second))
    assert np.allclose(read_case(fullres(preprocessed), "Ball_0000_0000")[0].grid.spacing_mm, 3)

    third = [file.stat().st_mtime_ns for file in files]
    assert do("-d", "1", "--clean", command="nnssl_preprocess") == 0
    assert all(file.stat().st_mtime_ns != before for file, before in zip(files, third))


def test_a_run_that_was_killed_is_finished_by_the_next_with_the_same_result(folders, tmp_path):
    _, preprocessed = folders
    assert do("-d", "1") == 0
    whole = contents(preprocessed)
    # as kill -9 leaves it: no json for one case, half a file for another, no fingerprint of a third, no plans
    (fullres(preprocessed) / "Ball_0000_0000.json").unlink()
    voxels = fullres(preprocessed) / "Ball_0001_0000.b2nd"
    voxels.write_bytes(voxels.read_bytes()[:100])
    (preprocessed / "fingerprint_cases" / "Ball_0002_0000.json").unlink()
    (preprocessed / "fingerprint_cases" / "Ball_0001_0000.json").write_text('{"case": {"chan')
    (preprocessed / "nnsslPlans.json").unlink()
    kept = (fullres(preprocessed) / "Ball_0002_0000.b2nd").stat().st_mtime_ns
    assert do("-d", "1") == 0
    assert contents(preprocessed) == whole
    assert (fullres(preprocessed) / "Ball_0002_0000.b2nd").stat().st_mtime_ns == kept


def test_a_dry_run_prints_memory_time_and_disk_and_writes_nothing(folders, tmp_path, capsys):
    raw, _ = folders
    (raw / "dataset.json").unlink()
    before = sorted(tmp_path.rglob("*"))
    assert do("-d", "1", "--dry_run") == 0
    said = capsys.readouterr().out
    assert sorted(tmp_path.rglob("*")) == before
    assert "GB on disk" in said and "GB per process" in said and "training" in said and "image.spacing_mm" in said


def test_no_pp_stops_after_the_plans(folders):
    _, preprocessed = folders
    assert do("-d", "1", "--no_pp") == 0
    assert (preprocessed / "nnsslPlans.json").is_file() and not fullres(preprocessed).exists()


def test_several_data_sets_and_all_wrong_ids_at_once(folders, capsys):
    raw, preprocessed = folders
    write_raw(raw.parent / "Dataset002_More", cases=1)
    assert do("-d", "1", "Dataset002_More", "1") == 0
    assert case_names(fullres(preprocessed.parent / "Dataset002_More")) == ["Ball_0000_0000"]
    assert do("-d", "7", "8") == 1
    said = capsys.readouterr().err
    assert "Data set 7 is not there" in said and "Data set 8 is not there" in said and "Dataset002_More" in said


def test_a_data_set_without_a_readable_image_does_not_stop_the_others(folders, capsys):
    raw, preprocessed = folders
    other = write_raw(raw.parent / "Dataset000_Broken", cases=1)
    (other / "imagesTr" / "Ball_0000_0000.nii.gz").write_bytes(b"")
    assert do("-d", "0", "1") == 1
    assert "Dataset000_Broken has no readable image" in capsys.readouterr().err
    assert len(case_names(fullres(preprocessed))) == 3


def test_verifying_lists_all_that_is_wrong_and_goes_no_further(folders, capsys):
    raw, preprocessed = folders
    (raw / "labelsTr").mkdir()
    nib.save(nib.Nifti1Image(np.ones((5, 5, 5), np.uint8), np.eye(4)), raw / "labelsTr" / "Ball_0000.nii.gz")
    (raw / "imagesTr" / "Ball_0002_0000.nii.gz").write_bytes(b"no image")
    assert do("-d", "1", "--verify_dataset_integrity") == 1
    said = capsys.readouterr().err
    assert "2 cases are not as they should be" in said and "another grid" in said and "Ball_0002_0000.nii.gz" in said
    assert not preprocessed.exists()


def test_ct_given_as_mr_is_warned_about_with_its_intensities(folders, capsys):
    raw, _ = folders
    write_raw(raw.parent / "Dataset002_Misnamed", cases=2, channel="MR")
    assert do("-d", "2", command="nnssl_extract_fingerprint") == 0
    said = capsys.readouterr().out
    assert "2 cases look like another modality" in said and "-1000" in said and "Hounsfield" in said


def test_an_image_below_one_token_is_padded_and_that_is_said(folders, capsys):
    raw, preprocessed = folders
    write_ball(raw / "imagesTr" / "Ball_0003_0000.nii.gz", 3, (9, 9, 3))
    assert do("-d", "1") == 0
    assert "Ball_0003_0000 is smaller than one token" in capsys.readouterr().err
    assert len(case_names(fullres(preprocessed))) == 4


def test_cases_without_a_raw_file_are_pointed_out(folders, capsys):
    raw, _ = folders
    assert do("-d", "1") == 0
    (raw / "imagesTr" / "Ball_0002_0000.nii.gz").unlink()
    assert do("-d", "1", command="nnssl_preprocess") == 0
    assert "1 cases there have no raw file (any more)" in capsys.readouterr().out


def test_missing_steps_and_names_say_what_to_do(folders, capsys):
    assert do("-d", "1", command="nnssl_preprocess") == 1
    assert "run nnssl_plan_and_preprocess -d Dataset001_Balls first" in capsys.readouterr().err
    assert do("-d", "1", "--no_pp") == 0
    assert do("-d", "1", "-c", "3d_huge", command="nnssl_preprocess") == 1
    assert "no configuration 3d_huge, but 3d_fullres" in capsys.readouterr().err
    assert do("-d", "1", "-overwrite_plans_name", "a/b") == 1
    assert "cannot be a file name" in capsys.readouterr().err


def test_plans_edited_by_hand_are_followed_and_their_mistakes_named(folders, capsys):
    _, preprocessed = folders
    assert do("-d", "1", "--no_pp") == 0
    path = preprocessed / "nnsslPlans.json"
    plans = json.loads(path.read_text())
    plans["configurations"]["3d_fullres"]["image"]["spacing_mm"] = [4.0, 4.0, 4.0]
    path.write_text(json.dumps(plans))
    assert do("-d", "1", command="nnssl_preprocess") == 0
    assert np.allclose(read_case(fullres(preprocessed), "Ball_0000_0000")[0].grid.spacing_mm, 4)
    assert do("-d", "1", command="nnssl_plan_experiment") == 0
    assert "image.spacing_mm: 4 x 4 x 4 ->" in capsys.readouterr().out
    plans["configurations"]["3d_fullres"]["image"]["spacing"] = plans["configurations"]["3d_fullres"]["image"].pop("spacing_mm")
    path.write_text(json.dumps(plans))
    assert do("-d", "1", command="nnssl_preprocess") == 1
    said = capsys.readouterr().err
    assert "nnsslPlans.json" in said and "'spacing_mm'" in said and "'spacing'" in said


@pytest.mark.slow
def test_kill_minus_nine_in_the_middle_leaves_no_orphans_and_a_rerun_finishes_the_work(tmp_path):
    write_raw(tmp_path / "raw" / "Dataset001_Balls", cases=12, shape=(90, 90, 90))
    code = "import sys; from nnssl_reg.commands.entry import script; sys.argv[0] = 'nnssl_plan_and_preprocess'; script()"
    line = [sys.executable, "-c", code, "-d", "1", "-np", "2", "--no_pbar", "-raw", str(tmp_path / "raw"), "-preprocessed"]
    subprocess.run([*line, str(tmp_path / "whole")], check=True, stdout=subprocess.DEVNULL)
    killed = tmp_path / "killed" / "Dataset001_Balls"
    process = subprocess.Popen([*line, str(tmp_path / "killed")], stdout=subprocess.DEVNULL)
    while len(list(killed.glob("nnsslPlans_3d_fullres/*.json"))) < 3:
        assert process.poll() is None
        time.sleep(0.02)
    process.kill()
    process.wait()
    time.sleep(2)
    with_it = [p for p in Path("/proc").glob("[0-9]*/cmdline") if os.access(p, os.R_OK) and str(process.pid) in p.read_text()]
    assert not with_it  # spawned workers have their parent's id in their command line
    done = {file: file.stat().st_mtime_ns for file in fullres(killed).glob("*.b2nd") if file.with_suffix(".json").is_file()}
    assert 3 <= len(done) < 12
    subprocess.run([*line, str(tmp_path / "killed")], check=True, stdout=subprocess.DEVNULL)
    assert contents(killed) == contents(tmp_path / "whole" / "Dataset001_Balls")
    assert all(file.stat().st_mtime_ns == before for file, before in done.items())
    assert not list(killed.rglob("*.partial*"))
