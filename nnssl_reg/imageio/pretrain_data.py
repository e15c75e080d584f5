"""pretrain_data.json of nnssl: a collection of data sets, subjects, sessions and images, read as a source of raw cases."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnssl_reg.imageio.images import FILE_ENDINGS
from nnssl_reg.imageio.json_files import read_json

FILE_NAME = "pretrain_data.json"
_RAW = "$nnssl_raw"
_SHOWN = 5  # problems in one message


@dataclass(frozen=True)
class ListedImage:
    """One image of the collection. case: unique, of its data set, subject, session and own name; modality: as the file says."""

    case: str
    modality: str
    image: Path


def read_pretrain_data(path: Path, raw: Path) -> tuple[ListedImage, ...]:
    """The images that a pretrain_data.json lists, in its order. raw: what $nnssl_raw stands for at the beginning of a path.

    Other relative paths begin at the json. Raises ValueError with what is wrong with the entries, all at once.
    """
    problems: list[str] = []
    found: dict[str, ListedImage] = {}
    for where, names, entry in _entries(read_json(path), problems):
        listed = _listed(entry, names, path, raw)
        if isinstance(listed, str):
            problems.append(f"{where}: {listed}")
        elif listed.case in found:
            problems.append(f"{where}: {listed.image.name} would have the same case name as {found[listed.case].image}")
        else:
            found[listed.case] = listed
    if problems:
        more = f" and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        raise ValueError(f"{path} cannot be used: {'; '.join(problems[:_SHOWN])}{more}. nnssl writes data sets, their "
                         "subjects, their sessions, and their images with modality and image_path.")  # fmt: skip
    if not found:
        raise ValueError(f"{path} lists no image.")
    return tuple(found.values())


def _entries(data: Any, problems: list[str]) -> Iterator[tuple[str, tuple[str, ...], Any]]:
    """Every image entry, where it stands, and the names of its data set, subject and session."""
    for dataset, in_dataset in _children(data, "datasets", "the collection", problems):
        for subject, in_subject in _children(in_dataset, "subjects", dataset, problems):
            place = f"{dataset}, {subject}"
            for session, in_session in _children(in_subject, "sessions", place, problems):
                images = in_session.get("images") if isinstance(in_session, dict) else None
                if not isinstance(images, list):
                    problems.append(f"{place}, {session} has no list of images")
                    continue
                for number, image in enumerate(images):
                    yield f"{place}, {session}, image {number}", (dataset, subject, session), image


def _children(data: Any, key: str, where: str, problems: list[str]) -> list[tuple[str, Any]]:
    children = data.get(key) if isinstance(data, dict) else None
    if isinstance(children, dict):
        return list(children.items())
    problems.append(f"{where} has no {key}")
    return []


def _listed(entry: Any, names: tuple[str, ...], path: Path, raw: Path) -> ListedImage | str:
    """An image of the collection, or what is wrong with its entry."""
    missing = [key for key in ("modality", "image_path") if not isinstance(entry, dict) or not isinstance(entry.get(key), str)]
    if missing:
        return f"{' and '.join(missing)} missing"
    stated = entry["image_path"]
    if stated.startswith(_RAW):
        image = raw / stated[len(_RAW) :].lstrip("/")
    elif stated.startswith("$"):
        return f"{stated} begins with a variable other than {_RAW}"
    else:
        image = path.parent / stated
    ending = next((ending for ending in FILE_ENDINGS if image.name.endswith(ending)), None)
    if ending is None:
        return f"{image.name} ends in none of {', '.join(FILE_ENDINGS)}"
    parts = [part for part in (*names, image.name[: -len(ending)]) if part != "ses-DEFAULT"]
    return ListedImage(re.sub(r"[^\w.-]+", "-", "_".join(parts)), entry["modality"], image)
