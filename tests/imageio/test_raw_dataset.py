"""Raw data sets: selection by id, the json's spellings, and what is inferred where there is none."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from nnssl_reg.geometry.grid import Grid
from nnssl_reg.geometry.image import Image
from nnssl_reg.imageio.images import write_image
from nnssl_reg.imageio.raw_dataset import RawCase, find_dataset, read_raw_dataset, split_channel

GRID = Grid((6, 5, 4), np.eye(4))


def image_like(modality: str, seed: int = 0) -> Image:
    """Air, soft tissue and noise in HU, or positive MR intensities."""
    rng = np.random.default_rng(seed)
    array = rng.normal(40, 20, (1, *GRID.shape)) if modality == "CT" else rng.uniform(0, 900, (1, *GRID.shape))
    if modality == "CT":
        array[:, :2] = -1000
    return Image(array.astype(np.float32), GRID)


def make_dataset(folder: Path, names: dict[str, str], labels=(), ending=".nii.gz", description=None) -> Path:
    """names: file stem -> modality; labels: stems in labelsTr."""
    for stem, modality in names.items():
        write_image(folder / "imagesTr" / f"{stem}{ending}", image_like(modality))
    for stem in labels:
        write_image(folder / "labelsTr" / f"{stem}{ending}", Image(np.zeros((1, *GRID.shape), np.uint8), GRID))
    if description is not None:
        (folder / "dataset.json").write_text(json.dumps(description))
    return folder


NNUNET = {
    "channel_names": {"0": "MR", "1": "CT"},
    "labels": {"background": 0, "liver": 1},
    "numTraining": 2,
    "file_ending": ".nii.gz",
}


def test_a_dataset_is_found_by_number_padded_number_and_name(tmp_path):
    for name in ("Dataset001_Liver", "Dataset012_Brain", "notes"):
        (tmp_path / name).mkdir()
    for selection in ("1", "001", "Dataset001_Liver"):
        assert find_dataset(tmp_path, selection) == tmp_path / "Dataset001_Liver"


@pytest.mark.parametrize("selection", ["2", "Dataset001", "Liver"])
def test_an_unknown_dataset_lists_what_is_there(selection, tmp_path):
    for name in ("Dataset001_Liver", "Dataset012_Brain"):
        (tmp_path / name).mkdir()
    with pytest.raises(ValueError, match=f"Data set {selection} is not there .* Dataset001_Liver, Dataset012_Brain"):
        find_dataset(tmp_path, selection)


def test_an_id_that_two_folders_have_is_ambiguous(tmp_path):
    for name in ("Dataset001_Liver", "Dataset001_Brain", "Dataset002_X"):
        (tmp_path / name).mkdir()
    with pytest.raises(ValueError, match="is ambiguous .* Dataset001_Brain, Dataset001_Liver. "):
        find_dataset(tmp_path, "1")


def test_an_empty_raw_folder_says_how_folders_are_named(tmp_path):
    with pytest.raises(ValueError, match="no folder named Dataset001_Name"):
        find_dataset(tmp_path, "1")


def test_cases_have_channel_and_label_in_both_spellings(tmp_path):
    folder = make_dataset(tmp_path / "Dataset001_A", {"A_0001_0000": "MR", "A_0002_0001": "CT"}, ["A_0001", "A_0002_0001"],
                          description=NNUNET)  # fmt: skip
    dataset = read_raw_dataset(folder)
    assert (dataset.name, dataset.file_ending) == ("Dataset001_A", ".nii.gz")
    assert dataset.channel_names == {"0": "MR", "1": "CT"} and dataset.labels == {"background": 0, "liver": 1}
    assert dataset.cases == (
        RawCase("A_0001_0000", "A_0001", "0", folder / "imagesTr/A_0001_0000.nii.gz", folder / "labelsTr/A_0001.nii.gz"),
        RawCase("A_0002_0001", "A_0002", "1", folder / "imagesTr/A_0002_0001.nii.gz", folder / "labelsTr/A_0002_0001.nii.gz"),
    )


LEARN2REG_LABELS = {"0": {"0": "background", "1": "liver", "2": "spleen"}, "1": {"1": "liver", "4": "kidney"}}


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (LEARN2REG_LABELS, {"background": 0, "liver": 1, "spleen": 2, "kidney": 4}),
        ({"0": "background", "1": "liver"}, {"background": 0, "liver": 1}),
        ({"background": 0, "whole": [1, 2], "core": 2}, {"background": 0, "core": 2}),
        ({}, {}),
    ],
)
def test_learn2reg_decathlon_and_nnunet_labels_are_understood(labels, expected, tmp_path):
    description = {"name": "A", "modality": {"0": "MR", "1": "CT"}, "labels": labels, "tensorImageShape": {"0": [6, 5, 4]}}
    folder = make_dataset(tmp_path / "Dataset001_A", {"A_0001_0000": "MR"}, description=description)
    dataset = read_raw_dataset(folder)
    assert dataset.labels == expected and dataset.channel_names == {"0": "MR", "1": "CT"} and dataset.file_ending == ".nii.gz"


def test_learn2regs_own_json_name_serves(tmp_path):
    folder = make_dataset(tmp_path / "Dataset001_A", {"A_0001_0000": "MR"})
    (folder / "A_dataset.json").write_text(json.dumps({"modality": {"0": "T1"}, "labels": {}}))
    assert read_raw_dataset(folder).channel_names == {"0": "T1"} and not (folder / "dataset.json").exists()


def test_a_missing_json_is_inferred_written_and_said(tmp_path, caplog):
    folder = make_dataset(
        tmp_path / "Dataset007_Pool", {"P_0001_0000": "CT", "P_0002_0001": "MR", "P_0003_0001": "MR"}, ending=".mha"
    )
    dataset = read_raw_dataset(folder)
    assert dataset.channel_names == {"0": "CT", "1": "MR"} and dataset.file_ending == ".mha"
    written = json.loads((folder / "dataset.json").read_text())
    assert written == {
        "name": "Pool",
        "channel_names": {"0": "CT", "1": "MR"},
        "labels": {},
        "numTraining": 3,
        "file_ending": ".mha",
    }
    assert any(
        "dataset.json was missing; it was written with the channels 0: CT, 1: MR" in message for message in caplog.messages
    )
    caplog.clear()
    assert read_raw_dataset(folder) == dataset and not caplog.messages


def test_a_json_can_be_inferred_without_writing_it(tmp_path):
    folder = make_dataset(tmp_path / "Dataset007_Pool", {"P_0001_0000": "CT"})
    assert read_raw_dataset(folder, write=False).channel_names == {"0": "CT"}
    assert not (folder / "dataset.json").exists()


def test_a_broken_first_file_does_not_stop_the_guess(tmp_path):
    folder = make_dataset(tmp_path / "Dataset001_A", {"A_0001_0000": "CT", "A_0002_0000": "CT"})
    (folder / "imagesTr" / "A_0001_0000.nii.gz").write_bytes(b"broken")
    assert read_raw_dataset(folder).channel_names == {"0": "CT"}
    (folder / "dataset.json").unlink()
    (folder / "imagesTr" / "A_0002_0000.nii.gz").write_bytes(b"broken")
    with pytest.raises(ValueError, match="No image could be read to guess.*A_0001_0000"):
        read_raw_dataset(folder)


def test_files_without_a_channel_suffix_are_channel_0(tmp_path):
    dataset = read_raw_dataset(make_dataset(tmp_path / "Dataset001_A", {"anna": "MR", "bert": "MR"}, ["anna"]))
    assert [(c.name, c.case, c.channel) for c in dataset.cases] == [("anna", "anna", "0"), ("bert", "bert", "0")]
    assert dataset.cases[0].label.name == "anna.nii.gz"


def test_names_whose_numbers_are_no_channels_are_not_taken_for_forty_modalities(tmp_path):
    folder = make_dataset(tmp_path / "Dataset001_A", {f"patient_{i:04d}": "MR" for i in range(10)})
    with pytest.raises(ValueError, match="last four digits of the names stand for the channel, and there are 10.*Append _0000"):
        read_raw_dataset(folder)
    assert not (folder / "dataset.json").exists()


def test_a_channel_without_a_name_is_listed_with_its_files(tmp_path):
    folder = make_dataset(tmp_path / "Dataset001_A", {"A_0001_0000": "MR", "A_0002_0005": "CT"}, description=NNUNET)
    with pytest.raises(ValueError, match=r"channel_names .* has no entry for the last four digits of A_0002_0005\.nii\.gz\. "):
        read_raw_dataset(folder)


def test_all_problems_of_a_json_are_reported_at_once(tmp_path):
    description = {"channel_names": ["CT"], "labels": {"liver": "one"}, "file_ending": "nii.gz"}
    folder = make_dataset(tmp_path / "Dataset001_A", {"A_0001_0000": "MR"}, description=description)
    with pytest.raises(ValueError) as error:
        read_raw_dataset(folder)
    for part in ("dataset.json", "channel_names should be like", "file_ending should be one of", "labels should be like"):
        assert part in str(error.value)
    (folder / "dataset.json").write_text('{"channel_names": {"0": "CT"},')
    with pytest.raises(ValueError, match=r"dataset\.json is not valid json: .* line 1"):
        read_raw_dataset(folder)
    (folder / "dataset.json").write_text("[1]")
    with pytest.raises(ValueError, match="should be an object"):
        read_raw_dataset(folder)


def test_missing_and_empty_image_folders_are_said(tmp_path):
    with pytest.raises(FileNotFoundError, match="imagesTr does not exist"):
        read_raw_dataset(tmp_path)
    (tmp_path / "imagesTr").mkdir()
    with pytest.raises(ValueError, match="holds no image .*, but nothing"):
        read_raw_dataset(tmp_path)
    (tmp_path / "imagesTr" / "a.dcm").write_bytes(b"")
    with pytest.raises(ValueError, match=r"holds no image .*, but a\.dcm"):
        read_raw_dataset(tmp_path)


def test_files_of_another_ending_are_left_out_and_said(tmp_path, caplog):
    folder = make_dataset(tmp_path / "Dataset001_A", {"A_0001_0000": "MR", "A_0002_0000": "MR"}, description=NNUNET)
    write_image(folder / "imagesTr" / "A_0003_0000.mha", image_like("MR"))
    assert len(read_raw_dataset(folder).cases) == 2
    assert any("A_0003_0000.mha" in message for message in caplog.messages)
    (folder / "dataset.json").write_text(json.dumps({**NNUNET, "file_ending": ".nrrd"}))
    with pytest.raises(ValueError, match=r"has no file ending in \.nrrd .* but A_0001_0000\.nii\.gz"):
        read_raw_dataset(folder)


def test_a_case_count_that_differs_is_said(tmp_path, caplog):
    folder = make_dataset(tmp_path / "Dataset001_A", {"A_0001_0000": "MR"}, description={**NNUNET, "numTraining": 5})
    assert len(read_raw_dataset(folder).cases) == 1
    assert any("numTraining 5, but imagesTr holds 1" in message for message in caplog.messages)


def test_hidden_and_half_written_files_are_no_cases(tmp_path):
    folder = make_dataset(tmp_path / "Dataset001_A", {"A_0001_0000": "MR"}, description=NNUNET)
    (folder / "imagesTr" / "._A_0001_0000.nii.gz").write_bytes(b"mac")
    os.mkdir(folder / "imagesTr" / "folder.nii.gz")
    assert len(read_raw_dataset(folder).cases) == 1


def test_the_channel_is_split_from_a_name():
    assert split_channel("AbdomenCT_0001_0000") == ("AbdomenCT_0001", "0")
    assert split_channel("x_0012") == ("x", "12") and split_channel("x_012") == ("x_012", "0")
