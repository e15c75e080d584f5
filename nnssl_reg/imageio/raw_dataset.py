"""Raw data sets: which folder an id means, what dataset.json says (or should say), and the cases in imagesTr."""

import logging
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnssl_reg.imageio.images import FILE_ENDINGS, file_ending, file_stem, read_image
from nnssl_reg.imageio.json_files import read_json, write_json
from nnssl_reg.imageio.modality import guess_modality
from nnssl_reg.imageio.pretrain_data import FILE_NAME as PRETRAIN_DATA
from nnssl_reg.imageio.pretrain_data import read_pretrain_data

_CHANNEL_SUFFIX = re.compile(r"(.+)_(\d{4})")
_MAX_INFERRED_CHANNELS = 8
_IMAGES_PER_GUESS = 3

log = logging.getLogger("nnssl_reg")


@dataclass(frozen=True)
class RawCase:
    """One image file. name: its stem, "AbdomenCT_0001_0000"; case: "AbdomenCT_0001"; channel: "0"."""

    name: str
    case: str
    channel: str
    image: Path
    label: Path | None


@dataclass(frozen=True)
class RawDataset:
    """A data set's folder. channel_names: "0" -> "CT"; labels: name -> value."""

    name: str
    folder: Path
    channel_names: dict[str, str]
    labels: dict[str, int]
    file_ending: str
    cases: tuple[RawCase, ...]


def find_dataset(raw: Path, selection: str) -> Path:
    """The folder of a data set selected as 1, 001 or Dataset001_Name. Raises ValueError listing what is there."""
    found = sorted(folder for folder in Path(raw).iterdir() if folder.is_dir() and re.fullmatch(r"Dataset\d+_.+", folder.name))
    if selection.isdigit():
        matches = [folder for folder in found if int(folder.name[len("Dataset") :].split("_")[0]) == int(selection)]
    else:
        matches = [folder for folder in found if folder.name == selection]
    if len(matches) == 1:
        return matches[0]
    problem = "is ambiguous" if matches else "is not there"
    there = ", ".join(folder.name for folder in matches or found) or "no folder named Dataset001_Name"
    raise ValueError(f"Data set {selection} {problem} in {raw}, which holds {there}. Select one by its whole name or its id.")


def read_raw_dataset(folder: Path, write: bool = True) -> RawDataset:
    """Read a data set's dataset.json (nnU-Net's, Learn2Reg's; inferred and written where missing) and find its cases.

    write: False keeps an inferred json off the disk. Raises FileNotFoundError or ValueError, with all problems of the json and
    the file names at once. A folder without imagesTr that has nnssl's pretrain_data.json holds the images listed there.
    """
    folder = Path(folder)
    if (folder / PRETRAIN_DATA).is_file() and not (folder / "imagesTr").is_dir():
        return _listed_dataset(folder)
    files = _image_files(folder)
    path = dataset_json(folder)
    data = read_json(path) if path.exists() else _inferred_dataset_json(path, files, write)
    channel_names, labels, ending = _described(data, path, files)
    chosen = [file for file in files if file.name.endswith(ending)]
    others = [file.name for file in files if not file.name.endswith(ending)]
    if not chosen:
        raise ValueError(f"{folder / 'imagesTr'} has no file ending in {ending} (file_ending of {path}), but {others[0]}. "
                         "Correct file_ending.")  # fmt: skip
    if others:
        log.warning("%s: %d files that do not end in %s are left out: %s.", folder, len(others), ending, _some(others))
    cases = tuple(_case(file, folder, ending) for file in chosen)
    unknown = [case.image.name for case in cases if case.channel not in channel_names]
    if unknown:
        raise ValueError(f"{path}: channel_names {channel_names} has no entry for the last four digits of {_some(unknown)}. "
                         "In CASE_0001 they are the channel 1; add the channel or rename the files.")  # fmt: skip
    stated = data.get("numTraining")
    count = len({case.case for case in cases})
    if isinstance(stated, int) and stated not in (count, len(cases)):
        log.warning("%s says numTraining %d, but imagesTr holds %d cases; all of them are used.", path, stated, count)
    return RawDataset(folder.name, folder, channel_names, labels, ending, cases)


def _listed_dataset(folder: Path) -> RawDataset:
    """The data set that a pretrain_data.json lists; its modalities are the channels, in alphabetical order."""
    listed = read_pretrain_data(folder / PRETRAIN_DATA, folder.parent)
    names = {str(i): name for i, name in enumerate(sorted({image.modality for image in listed}))}
    numbers = {name: channel for channel, name in names.items()}
    channels = [numbers[image.modality] for image in listed]
    cases = tuple(RawCase(f"{image.case}_{int(channel):04d}", image.case, channel, image.image, None)
                  for image, channel in zip(listed, channels))  # fmt: skip
    return RawDataset(folder.name, folder, names, {}, _common_ending([image.image for image in listed]), cases)


def dataset_json(folder: Path) -> Path:
    """The json that describes a data set's folder: dataset.json, or Learn2Reg's TASK_dataset.json where only that exists."""
    own, others = folder / "dataset.json", sorted(folder.glob("*_dataset.json"))
    return others[0] if len(others) == 1 and not own.exists() else own


def split_channel(stem: str) -> tuple[str, str]:
    """ "AbdomenCT_0001_0000" -> ("AbdomenCT_0001", "0"); a stem without four final digits is a case of channel "0"."""
    match = _CHANNEL_SUFFIX.fullmatch(stem)
    return (match[1], str(int(match[2]))) if match else (stem, "0")


def channel_names_of(data: dict[str, Any]) -> dict[str, str]:
    """Channel index without leading zeros -> name, from the json of a data set (channel_names or Learn2Reg's modality)."""
    stated = data.get("channel_names", data.get("modality"))
    if not isinstance(stated, dict) or not all(key.isdigit() and isinstance(name, str) for key, name in stated.items()):
        return {}
    return {str(int(key)): name for key, name in stated.items()}


def label_candidates(image: Path, kind: str = "labels") -> list[Path]:
    """Where the labels (or masks) of imagesTr/CASE_0000.ending may lie: with the channel in the name, or without."""
    folder = image.parent.parent / image.parent.name.replace("images", kind)
    ending = file_ending(image)
    case = split_channel(file_stem(image))[0]
    return [folder / image.name, folder / f"{case}{ending}"] if folder != image.parent else []


def existing_label(image: Path, kind: str = "labels") -> Path | None:
    """The first of label_candidates that exists."""
    return next((path for path in label_candidates(image, kind) if path.is_file()), None)


def existing_landmarks(image: Path) -> Path | None:
    """The .csv of an image's landmarks in the folder keypointsXX or landmarksXX beside imagesXX, if there is one."""
    stem = file_stem(image)
    folders = [image.parent.parent / image.parent.name.replace("images", kind) for kind in ("keypoints", "landmarks")]
    files = [folder / f"{name}.csv" for folder in folders for name in (stem, split_channel(stem)[0]) if folder != image.parent]
    return next((path for path in files if path.is_file()), None)


def _image_files(folder: Path) -> list[Path]:
    """All files in imagesTr with an ending we read, by name."""
    images = folder / "imagesTr"
    if not images.is_dir():
        raise FileNotFoundError(f"{images} does not exist; a data set keeps its images there, as CASE_0000.nii.gz.")
    present = sorted(file for file in images.iterdir() if file.is_file() and not file.name.startswith("."))
    files = [file for file in present if file.name.endswith(FILE_ENDINGS)]
    if not files:
        there = _some([file.name for file in present]) if present else "nothing"
        raise ValueError(f"{images} holds no image ({', '.join(FILE_ENDINGS)}), but {there}. Convert or copy the images there.")
    return files


def _case(file: Path, folder: Path, ending: str) -> RawCase:
    stem = file.name[: -len(ending)]
    case, channel = split_channel(stem)
    return RawCase(stem, case, channel, file, existing_label(file))


def _described(data: Any, path: Path, files: list[Path]) -> tuple[dict[str, str], dict[str, int], str]:
    """Channel names, labels and file ending of a parsed dataset.json; all its problems in one ValueError."""
    if not isinstance(data, dict):
        raise ValueError(
            f"{path} should be an object with channel_names, labels and file_ending, but is a {type(data).__name__}."
        )
    problems = []
    names = channel_names_of(data)
    if not names:
        stated = data.get("channel_names", data.get("modality"))
        problems.append(f'channel_names should be like {{"0": "CT"}}, but is {stated!r}')
    ending = data.get("file_ending", _common_ending(files))
    if ending not in FILE_ENDINGS:
        problems.append(f"file_ending should be one of {', '.join(FILE_ENDINGS)}, but is {ending!r}")
    labels: dict[str, int] = {}
    try:
        labels = _labels(data.get("labels", {}))
    except (TypeError, ValueError, AttributeError):
        problems.append(f'labels should be like {{"background": 0, "liver": 1}}, but is {str(data["labels"])[:80]}')
    if problems:
        raise ValueError(f"{path}: {'; '.join(problems)}.")
    return names, labels, ending


def _labels(stated: dict) -> dict[str, int]:
    """Label name -> value from nnU-Net's {name: value}, the Decathlon's {value: name}, Learn2Reg's {channel: {value: name}}."""
    found: dict[str, int] = {}
    for key, value in stated.items():
        if isinstance(value, dict):
            found.update(_labels(value))
        elif isinstance(value, str) and key.isdigit():
            found[value] = int(key)
        elif not isinstance(value, list):  # a list is a region of nnU-Net's, made of the labels beside it
            found[key] = int(value)
    return found


def _common_ending(files: Iterable[Path]) -> str:
    """The ending that most files have."""
    endings = [file_ending(file) for file in files]
    return max(FILE_ENDINGS, key=endings.count)


def _inferred_dataset_json(path: Path, files: list[Path], write: bool) -> dict[str, Any]:
    """The dataset.json that the files suggest, written unless told not to; says so."""
    ending = _common_ending(files)
    chosen = [file for file in files if file_ending(file) == ending]
    by_channel: dict[str, list[Path]] = {}
    for file in chosen:
        by_channel.setdefault(split_channel(file_stem(file))[1], []).append(file)
    if len(by_channel) > _MAX_INFERRED_CHANNELS:
        raise ValueError(f"{path.parent / 'imagesTr'}: the last four digits of the names stand for the channel, and there are "
                         f"{len(by_channel)} of them. Append _0000 to each name, or write {path}.")  # fmt: skip
    names = {channel: _guess_of_files(by_channel[channel]) for channel in sorted(by_channel, key=int)}
    cases = len({split_channel(file_stem(file))[0] for file in chosen})
    name = path.parent.name.partition("_")[2] or path.parent.name
    data = {"name": name, "channel_names": names, "labels": {}, "numTraining": cases, "file_ending": ending}
    if write:
        write_json(path, data)
    said = ", ".join(f"{channel}: {name}" for channel, name in names.items())
    log.warning("%s was missing; it %s the channels %s, guessed from the intensities. Correct it if it is wrong.",
                path, "was written with" if write else "would be written with", said)  # fmt: skip
    return data


def _guess_of_files(files: list[Path]) -> str:
    """The modality that most of a few readable images suggest."""
    guesses, errors = [], []
    for file in files:
        try:
            guesses.append(guess_modality(read_image(file)))
        except (ValueError, OSError) as error:
            errors.append(str(error))
        if len(guesses) == _IMAGES_PER_GUESS:
            break
    if not guesses:
        raise ValueError(f"No image could be read to guess its modality from: {errors[0]}")
    return max(("CT", "MR"), key=guesses.count)


def _some(names: list[str]) -> str:
    """A few names for a message."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
