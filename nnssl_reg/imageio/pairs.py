"""Pairs to register, from a list of pairs or a data set's registration_val, with all problems reported at once."""

import difflib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nnssl_reg.geometry.grid import Grid
from nnssl_reg.imageio.images import file_ending, file_stem
from nnssl_reg.imageio.json_files import read_json
from nnssl_reg.imageio.landmarks import SPACES, landmark_ending, read_landmarks
from nnssl_reg.imageio.raw_dataset import channel_names_of, dataset_json, existing_label, existing_landmarks, split_channel

_FILE_KEYS = ("fixed", "moving", "fixed_label", "moving_label", "fixed_mask", "moving_mask", "rigid_mask")
_LANDMARK_KEYS = ("fixed_landmarks", "moving_landmarks")
_KEYS = (*_FILE_KEYS, *_LANDMARK_KEYS, "landmarks_space", "fixed_channel", "moving_channel", "id")


@dataclass(frozen=True)
class Pair:
    """Two images to register. id names the output; channels are names ("CT", "MR") where a data set's json tells them.

    rigid_mask: regions of the fixed image that move as rigid bodies, on its grid. landmarks_space: what coordinates .csv
    landmarks hold: "ras", "lps", or "voxel", each file those of its own image.
    """

    id: str
    fixed: Path
    moving: Path
    fixed_label: Path | None = None
    moving_label: Path | None = None
    fixed_mask: Path | None = None
    moving_mask: Path | None = None
    fixed_channel: str | None = None
    moving_channel: str | None = None
    fixed_landmarks: Path | None = None
    moving_landmarks: Path | None = None
    landmarks_space: str | None = None
    rigid_mask: Path | None = None


def default_pair_id(fixed: Path, moving: Path) -> str:
    """ "FIXED__MOVING", from file names without their endings."""
    return f"{file_stem(fixed)}__{file_stem(moving)}"


def read_pairs(path: str | Path) -> list[Pair]:
    """The pairs of a json file: a list of {fixed, moving, ...}, or a dataset.json with registration_val.

    Relative paths count from the json's folder. Raises ValueError with every problem of every pair, each with its index.
    """
    path = Path(path)
    data = read_json(path)
    is_dataset = isinstance(data, dict)
    space = data.get("landmarks_space", "voxel") if is_dataset else None  # Learn2Reg's are voxels, and it does not say so
    entries = data.get("registration_val") if is_dataset else data
    if not isinstance(entries, list) or not entries:
        found = f"an object with {', '.join(data)}" if is_dataset else repr(data)[:60]
        raise ValueError(f'{path} should be a list of {{"fixed": ..., "moving": ...}}, or a dataset.json whose '
                         f"registration_val is one, but is {found}.")  # fmt: skip
    problems: list[str] = []
    pairs = [_pair(i, entry, path.parent, is_dataset, space, problems) for i, entry in enumerate(entries)]
    problems += _repeats(pairs)
    if problems:
        count = f"{len(problems)} problem{'s' * (len(problems) > 1)}"
        raise ValueError(f"{path} has {count} (pairs count from 0):\n" + "\n".join(f"  {problem}" for problem in problems))
    return [pair for pair in pairs if pair is not None]


def read_pair_landmarks(pair: Pair, fixed: Grid, moving: Grid) -> tuple[np.ndarray, np.ndarray] | None:
    """The corresponding landmarks of both images, (N, 3) RAS mm each, or None where the pair names none.

    Raises ValueError where the files cannot be read or differ in their number of landmarks.
    """
    if pair.fixed_landmarks is None or pair.moving_landmarks is None:
        return None
    points = read_landmarks(pair.fixed_landmarks, pair.landmarks_space, fixed)
    others = read_landmarks(pair.moving_landmarks, pair.landmarks_space, moving)
    if len(points) != len(others):
        raise ValueError(f"{pair.fixed_landmarks} has {len(points)} landmarks and {pair.moving_landmarks} has {len(others)}; "
                         "the same rows of both should be the same places.")  # fmt: skip
    return points, others


def _pair(index: int, entry: Any, folder: Path, is_dataset: bool, space: str | None, problems: list[str]) -> Pair | None:
    """One entry as a Pair, or None; what is wrong with it is added to problems. space: of .csv landmarks, by default."""
    found = _key_problems(entry)
    paths: dict[str, Path] = {}
    if not found:
        given = {key: entry[key] for key in (*_FILE_KEYS, *_LANDMARK_KEYS) if entry.get(key) is not None}
        paths = {key: folder / os.path.expanduser(file) for key, file in given.items()}
        found = file_problems(paths) + _landmark_problems(paths, entry.get("landmarks_space", space))
    if found:
        problems += [f"pair {index}: {problem}" for problem in found]
        return None
    for side in ("fixed", "moving"):
        for kind in ("label", "mask") if is_dataset else ():
            default = existing_label(paths[side], f"{kind}s")
            if f"{side}_{kind}" not in paths and default is not None:
                paths[f"{side}_{kind}"] = default
    if is_dataset and not any(key in paths for key in _LANDMARK_KEYS):
        defaults = [existing_landmarks(paths[side]) for side in ("fixed", "moving")]
        paths |= dict(zip(_LANDMARK_KEYS, defaults)) if None not in defaults else {}
    if "fixed_landmarks" in paths:
        paths["landmarks_space"] = entry.get("landmarks_space", space)
    channels = {f"{s}_channel": entry.get(f"{s}_channel") or _channel_name(paths[s], folder) for s in ("fixed", "moving")}
    return Pair(id=entry.get("id") or default_pair_id(paths["fixed"], paths["moving"]), **paths, **channels)


def _key_problems(entry: Any) -> list[str]:
    """What is wrong with the keys and values of an entry, before any file is looked for."""
    if not isinstance(entry, dict):
        return [f'should be an object like {{"fixed": ..., "moving": ...}}, but is {str(entry)[:60]}']
    found = [f"{key} is missing" for key in ("fixed", "moving") if entry.get(key) is None]
    for key in entry:
        if key not in _KEYS:
            close = difflib.get_close_matches(key, _KEYS, n=1)
            found.append(
                f"unknown key '{key}'" + (f", did you mean '{close[0]}'?" if close else f"; known: {', '.join(_KEYS)}")
            )
        elif entry[key] is not None and not isinstance(entry[key], str):
            found.append(f"{key} should be text, but is {str(entry[key])[:60]}")
    if isinstance(entry.get("id"), str) and (Path(entry["id"]).name != entry["id"] or "\\" in entry["id"]):
        found.append(f"id '{entry['id']}' cannot name a file; leave out / and \\")
    return found


def file_problems(paths: Mapping[str, Path]) -> list[str]:
    """What is wrong with the files of a pair, by key ("fixed", "moving_landmarks", ...), without opening them."""
    found = [f"{key} {file} does not exist" for key, file in paths.items() if not file.is_file()]
    for key, file in paths.items():
        try:
            landmark_ending(file) if key in _LANDMARK_KEYS else file_ending(file)
        except ValueError as error:
            found.append(f"{key} {error}")
    return found


def _landmark_problems(paths: dict[str, Path], space: Any) -> list[str]:
    """What is wrong with the landmarks of an entry, besides files that are missing."""
    named = [key for key in _LANDMARK_KEYS if key in paths]
    if len(named) == 1:
        other = next(key for key in _LANDMARK_KEYS if key not in paths)
        return [f"{named[0]} is given without {other}; both are needed"]
    if space is not None and space not in SPACES:
        return [f"landmarks_space '{space}' is none of {', '.join(SPACES)}"]
    if space is None and any(paths[key].name.lower().endswith(".csv") for key in named):
        return [f'.csv landmarks do not say their coordinates; add "landmarks_space": one of {", ".join(SPACES)}']
    return []


def _channel_name(image: Path, folder: Path) -> str | None:
    """The name that the json of an image's own data set (else the one in `folder`) gives its channel, if any does."""
    channel = split_channel(file_stem(image))[1]
    for place in (image.parent.parent, folder):
        names = _channel_names(dataset_json(place))
        if channel in names:
            return names[channel]
    return None


def _channel_names(path: Path) -> dict[str, str]:
    """The channel names of a dataset.json, none where there is no such file or it has none."""
    if not path.is_file():
        return {}
    data = read_json(path)
    return channel_names_of(data) if isinstance(data, dict) else {}


def _repeats(pairs: Sequence[Pair | None]) -> list[str]:
    """Pairs that stand there twice, and different pairs of one id."""
    first_files: dict[tuple[Path, Path], int] = {}
    first_id: dict[str, int] = {}
    found = []
    for i, pair in enumerate(pairs):
        if pair is None:
            continue
        same = first_files.setdefault((pair.fixed.resolve(), pair.moving.resolve()), i)
        named = first_id.setdefault(pair.id, i)
        if same != i:
            found.append(f"pair {i} is pair {same} again ({pair.fixed.name}, {pair.moving.name}); leave one out")
        elif named != i:
            found.append(f"pairs {named} and {i} have the same id '{pair.id}'; give each its own \"id\"")
    return found
