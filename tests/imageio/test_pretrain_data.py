"""nnssl's pretrain_data.json as a raw data set: its images become cases, its modalities channels, its slips one message."""

import json
from pathlib import Path

import pytest

from nnssl_reg.imageio.pretrain_data import read_pretrain_data
from nnssl_reg.imageio.raw_dataset import read_raw_dataset


def collection(images: dict[tuple[str, str, str], list[dict]]) -> dict:
    """A collection by (data set, subject, session)."""
    datasets: dict = {}
    for (dataset, subject, session), entries in images.items():
        subjects = datasets.setdefault(dataset, {"name": dataset, "subjects": {}})["subjects"]
        sessions = subjects.setdefault(subject, {"subject_id": subject, "sessions": {}})["sessions"]
        sessions[session] = {"session_id": session, "images": entries}
    return {"collection_index": 1, "collection_name": "Dataset001_Open", "datasets": datasets}


def image(path: str, modality: str) -> dict:
    return {"name": Path(path).name, "modality": modality, "image_info": {}, "image_path": path, "associated_masks": {}}


GOOD = collection({
    ("ds01", "sub-01", "ses-1"): [image("$nnssl_raw/Dataset001_Open/a/t1.nii.gz", "T1w"), image("a/t2.nii.gz", "T2w")],
    ("ds01", "sub-01", "ses-2"): [image("$nnssl_raw/Dataset001_Open/b/t1.nii.gz", "T1w")],
    ("ds02", "sub-01", "ses-DEFAULT"): [image("/data/body ct.mha", "CT")],
})  # fmt: skip


def written(tmp_path: Path, data) -> Path:
    folder = tmp_path / "Dataset001_Open"
    folder.mkdir()
    (folder / "pretrain_data.json").write_text(json.dumps(data))
    return folder


def test_images_of_all_subjects_and_sessions_become_cases_with_their_modality(tmp_path):
    folder = written(tmp_path, GOOD)
    found = read_pretrain_data(folder / "pretrain_data.json", tmp_path)
    assert [(f.case, f.modality) for f in found] == [
        ("ds01_sub-01_ses-1_t1", "T1w"), ("ds01_sub-01_ses-1_t2", "T2w"), ("ds01_sub-01_ses-2_t1", "T1w"),
        ("ds02_sub-01_body-ct", "CT")]  # fmt: skip
    assert [f.image for f in found] == [folder / "a/t1.nii.gz", folder / "a/t2.nii.gz", folder / "b/t1.nii.gz",
                                        Path("/data/body ct.mha")]  # fmt: skip


def test_a_folder_without_images_but_with_the_json_is_a_raw_data_set(tmp_path):
    dataset = read_raw_dataset(written(tmp_path, GOOD))
    assert dataset.channel_names == {"0": "CT", "1": "T1w", "2": "T2w"} and dataset.labels == {}
    assert [(case.name, case.channel) for case in dataset.cases] == [
        ("ds01_sub-01_ses-1_t1_0001", "1"), ("ds01_sub-01_ses-1_t2_0002", "2"), ("ds01_sub-01_ses-2_t1_0001", "1"),
        ("ds02_sub-01_body-ct_0000", "0")]  # fmt: skip
    assert not (tmp_path / "Dataset001_Open" / "dataset.json").exists()


def test_everything_that_is_wrong_is_said_at_once(tmp_path):
    bad = collection({
        ("ds01", "s1", "a"): [image("$nnssl_raw/x.nii.gz", "T1w"), image("$nnssl_raw/x.nii.gz", "T1w")],
        ("ds01", "s2", "a"): [image("$other/x.nii.gz", "T1w"), image("x.dcm", "T1w"), {"name": "x"}],
    })  # fmt: skip
    bad["datasets"]["ds02"] = {"name": "ds02"}
    with pytest.raises(ValueError) as caught:
        read_pretrain_data(written(tmp_path, bad) / "pretrain_data.json", tmp_path)
    for part in (
        "same case name",
        "$other/x.nii.gz",
        "x.dcm ends in none",
        "modality and image_path missing",
        "ds02 has no subj",
    ):
        assert part in str(caught.value)


@pytest.mark.parametrize("data", [[], {"datasets": {}}, {"datasets": {"a": {"subjects": {"b": {"sessions": {}}}}}}])
def test_a_json_without_images_is_refused(tmp_path, data):
    with pytest.raises(ValueError, match=r"has no datasets|lists no image"):
        read_pretrain_data(written(tmp_path, data) / "pretrain_data.json", tmp_path)
