"""Pairs: lists and data sets are read, and every problem is told at once."""

import json
import re

import numpy as np
import pytest

from nnssl_reg.geometry.grid import Grid
from nnssl_reg.imageio.pairs import Pair, default_pair_id, read_pair_landmarks, read_pairs


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")


def write(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data))
    return path


def test_a_list_of_pairs_is_read_relative_to_its_folder(tmp_path):
    touch(tmp_path, "a.nii.gz", "sub/b.mha", "al.nii.gz", "bm.nii.gz")
    (tmp_path / "lists").mkdir()
    entry = {
        "fixed": "../a.nii.gz",
        "moving": str(tmp_path / "sub/b.mha"),
        "fixed_label": "../al.nii.gz",
        "moving_mask": "../bm.nii.gz",
    }
    first, second = read_pairs(
        write(tmp_path / "lists" / "pairs.json", [entry, {"fixed": "../sub/b.mha", "moving": "../a.nii.gz", "id": "x"}])
    )
    assert first.id == "a__b" == default_pair_id(first.fixed, first.moving) and second.id == "x"
    assert first.fixed.resolve() == tmp_path / "a.nii.gz" and first.moving == tmp_path / "sub/b.mha"
    assert first.fixed_label.resolve() == tmp_path / "al.nii.gz" and first.moving_mask.resolve() == tmp_path / "bm.nii.gz"
    assert (first.moving_label, first.fixed_mask, first.fixed_channel, first.moving_channel) == (None,) * 4


def test_a_tilde_in_a_path_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    touch(tmp_path, "home/a.nii.gz", "home/b.nii.gz")
    (pair,) = read_pairs(write(tmp_path / "pairs.json", [{"fixed": "~/a.nii.gz", "moving": "~/b.nii.gz"}]))
    assert (pair.fixed, pair.moving) == (tmp_path / "home" / "a.nii.gz", tmp_path / "home" / "b.nii.gz")


def test_a_learn2reg_json_is_read_with_labels_masks_and_channel_names(tmp_path):
    touch(tmp_path, "imagesTr/A_0001_0000.nii.gz", "imagesTr/A_0001_0001.nii.gz", "labelsTr/A_0001_0000.nii.gz",
          "labelsTr/A_0001_0001.nii.gz", "masksTr/A_0001_0001.nii.gz")  # fmt: skip
    data = {"modality": {"0": "MR", "1": "CT"}, "registration_val": [
        {"fixed": "./imagesTr/A_0001_0000.nii.gz", "moving": "./imagesTr/A_0001_0001.nii.gz"}]}  # fmt: skip
    (pair,) = read_pairs(write(tmp_path / "dataset.json", data))
    assert pair == Pair(
        "A_0001_0000__A_0001_0001",
        tmp_path / "imagesTr/A_0001_0000.nii.gz",
        tmp_path / "imagesTr/A_0001_0001.nii.gz",
        tmp_path / "labelsTr/A_0001_0000.nii.gz",
        tmp_path / "labelsTr/A_0001_0001.nii.gz",
        None,
        tmp_path / "masksTr/A_0001_0001.nii.gz",
        "MR",
        "CT",
    )


def test_landmarks_of_a_data_set_are_found_in_voxels_and_those_of_a_list_name_their_space(tmp_path):
    touch(tmp_path, "imagesTr/A_0001_0000.nii.gz", "imagesTr/A_0002_0000.nii.gz", "f.csv", "m.csv")
    (tmp_path / "keypointsTr").mkdir()
    for name in ("A_0001_0000", "A_0002_0000"):
        (tmp_path / "keypointsTr" / f"{name}.csv").write_text("1,2,3\n4,5,6\n")
    entry = {"fixed": "imagesTr/A_0001_0000.nii.gz", "moving": "imagesTr/A_0002_0000.nii.gz"}
    (found,) = read_pairs(write(tmp_path / "dataset.json", {"registration_val": [entry]}))
    assert found.fixed_landmarks == tmp_path / "keypointsTr/A_0001_0000.csv" and found.landmarks_space == "voxel"
    moving = Grid((9, 9, 9), np.diag([2.0, 2.0, 2.0, 1.0]))
    fixed_mm, moving_mm = read_pair_landmarks(found, Grid((9, 9, 9), np.eye(4)), moving)
    assert fixed_mm.tolist() == [[1, 2, 3], [4, 5, 6]] and moving_mm.tolist() == [[2, 4, 6], [8, 10, 12]]
    named = entry | {"fixed_landmarks": "f.csv", "moving_landmarks": "m.csv", "landmarks_space": "lps"}
    (found,) = read_pairs(write(tmp_path / "pairs.json", [named]))
    assert (found.fixed_landmarks, found.landmarks_space) == (tmp_path / "f.csv", "lps")
    (found,) = read_pairs(write(tmp_path / "pairs.json", [entry]))
    assert found.fixed_landmarks is None and read_pair_landmarks(found, moving, moving) is None


@pytest.mark.parametrize(("change", "problem"), [
    ({"fixed_landmarks": "f.csv"}, "fixed_landmarks is given without moving_landmarks"),
    ({"fixed_landmarks": "f.csv", "moving_landmarks": "m.csv"}, r".csv landmarks do not say their coordinates; add"),
    ({"fixed_landmarks": "f.csv", "moving_landmarks": "m.csv", "landmarks_space": "mm"}, "landmarks_space 'mm' is none of"),
    ({"fixed_landmarks": "f.txt", "moving_landmarks": "m.csv", "landmarks_space": "ras"}, "fixed_landmarks .*the ending is"),
])  # fmt: skip
def test_landmarks_that_cannot_be_used_are_told_with_their_pair(tmp_path, change, problem):
    touch(tmp_path, "a.nii.gz", "b.nii.gz", "f.csv", "f.txt", "m.csv")
    with pytest.raises(ValueError, match=f"pair 0: {problem}"):
        read_pairs(write(tmp_path / "pairs.json", [{"fixed": "a.nii.gz", "moving": "b.nii.gz"} | change]))


def test_learn2regs_own_file_name_serves_for_the_channel_names(tmp_path):
    touch(tmp_path, "imagesTr/A_0001_0000.nii.gz", "imagesTr/A_0001_0001.nii.gz")
    data = {"modality": {"0": "MR", "1": "CT"}, "registration_val": [
        {"fixed": "./imagesTr/A_0001_0000.nii.gz", "moving": "./imagesTr/A_0001_0001.nii.gz"}]}  # fmt: skip
    (pair,) = read_pairs(write(tmp_path / "A_dataset.json", data))
    assert (pair.fixed_channel, pair.moving_channel) == ("MR", "CT")


def test_own_datasets_have_labels_without_the_channel(tmp_path):
    touch(tmp_path, "imagesTr/A_0001_0000.nii.gz", "imagesTr/A_0002_0000.nii.gz", "labelsTr/A_0001.nii.gz")
    data = {"channel_names": {"0": "CT"}, "registration_val": [
        {"fixed": "imagesTr/A_0001_0000.nii.gz", "moving": "imagesTr/A_0002_0000.nii.gz"}]}  # fmt: skip
    (pair,) = read_pairs(write(tmp_path / "dataset.json", data))
    assert pair.fixed_label == tmp_path / "labelsTr/A_0001.nii.gz" and pair.moving_label is None
    assert pair.fixed_channel == "CT"


def test_a_list_takes_channel_names_from_the_images_own_dataset_or_from_the_entry(tmp_path):
    touch(tmp_path, "D/imagesTr/A_0001_0001.nii.gz", "b.nii.gz")
    write(tmp_path / "D" / "dataset.json", {"channel_names": {"0": "MR", "1": "CT"}})
    entry = {"fixed": "D/imagesTr/A_0001_0001.nii.gz", "moving": "b.nii.gz", "moving_channel": "MR"}
    (pair,) = read_pairs(write(tmp_path / "pairs.json", [entry]))
    assert (pair.fixed_channel, pair.moving_channel) == ("CT", "MR")


def test_every_problem_of_every_pair_is_told_at_once_with_its_index(tmp_path):
    touch(tmp_path, "a.nii.gz", "b.nii.gz", "c.png", "s/a.nii.gz")
    entries = [
        {"fixed": "a.nii.gz", "moving": "b.nii.gz"},
        {"fixed": "a.nii.gz", "moving": "gone.nii.gz", "fixed_label": "no.nii.gz"},
        {"fixed": "a.nii.gz", "movign": "b.nii.gz"},
        {"fixed": "./a.nii.gz", "moving": "b.nii.gz"},
        {"fixed": 7, "moving": "b.nii.gz"},
        ["a.nii.gz", "b.nii.gz"],
        {"fixed": "s/a.nii.gz", "moving": "b.nii.gz"},
        {"fixed": "c.png", "moving": "b.nii.gz"},
        {"fixed": "b.nii.gz", "moving": "a.nii.gz", "id": "../x"},
    ]
    with pytest.raises(ValueError) as error:
        read_pairs(write(tmp_path / "pairs.json", entries))
    lines = str(error.value).splitlines()
    assert lines[0].endswith("pairs.json has 10 problems (pairs count from 0):")
    expected = [
        "pair 1: moving .*gone.nii.gz does not exist",
        "pair 1: fixed_label .*no.nii.gz does not exist",
        "pair 2: moving is missing",
        "pair 2: unknown key 'movign', did you mean 'moving'",
        "pair 3 is pair 0 again",
        "pair 4: fixed should be text, but is 7",
        "pair 5: should be an object",
        "pairs 0 and 6 have the same id 'a__b'",
        "pair 7: fixed .*c.png: the ending is none of",
        "pair 8: id '../x' cannot name a file",
    ]
    for pattern in expected:
        assert any(re.search(pattern, line) for line in lines), pattern


def test_wrong_json_is_named_with_its_line(tmp_path):
    (tmp_path / "pairs.json").write_text('[\n {"fixed": "a",\n "moving" "b"}]')
    with pytest.raises(ValueError, match=r"pairs\.json is not valid json: .* line 3, column 11"):
        read_pairs(tmp_path / "pairs.json")
    with pytest.raises(FileNotFoundError, match="gone.json does not exist"):
        read_pairs(tmp_path / "gone.json")


@pytest.mark.parametrize("data", [[], {"name": "x", "training": []}, {"registration_val": []}, 3])
def test_a_json_without_pairs_says_what_it_should_be(data, tmp_path):
    with pytest.raises(ValueError, match="should be a list of .* or a dataset.json whose registration_val is one, but is"):
        read_pairs(write(tmp_path / "pairs.json", data))
