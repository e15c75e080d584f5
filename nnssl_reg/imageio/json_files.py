"""Dataclasses to json and back: atomic writes, and errors that name the file and the field."""

import json
import math
import os
import shutil
import socket
import types
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np
import psutil

T = TypeVar("T")


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """A path of the same file name in a temporary folder beside `path`; what is written there replaces `path` at the end.

    Other files written beside it (the .raw of an .mhd) move along, before it. After an error nothing stays. Creates missing
    folders; folders that a killed process of this machine left for the same file are removed.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{path.name}.partial-{socket.gethostname()}-"
    for left in path.parent.glob(f"{_glob_escaped(prefix)}*"):
        owner = left.name[len(prefix) :]
        if owner.isdigit() and not psutil.pid_exists(int(owner)):
            shutil.rmtree(left, ignore_errors=True)
    folder = path.parent / f"{prefix}{os.getpid()}"
    folder.mkdir(exist_ok=True)
    try:
        yield folder / path.name
        for written in sorted(folder.iterdir(), key=lambda file: file.name == path.name):
            os.replace(written, path.parent / written.name)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def write_json(path: str | Path, obj: Any) -> None:
    """Write a dataclass, dict or list as json, atomically. NaN and infinity, which json does not know, become null."""
    with atomic_path(path) as temporary:
        temporary.write_text(_text(_plain(obj), "") + "\n", encoding="utf-8")


def read_json(path: str | Path) -> Any:
    """The parsed json of a file. Raises FileNotFoundError, or ValueError with line and column, or with a key that is twice."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist.")
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=_without_repeats)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not valid json: {error.msg} in line {error.lineno}, column {error.colno}.") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not valid json: it is not UTF-8 text (byte {error.start}).") from error
    except _RepeatedKey as error:
        raise ValueError(f"{path} has the key {error} twice in one object; keep one of them.") from error


def read_dataclass(cls: type[T], path: str | Path, version: int | None = None) -> T:
    """A dataclass from its json file; with `version`, the file's field "version" must equal it."""
    data = read_json(path)
    if version is not None and isinstance(data, dict) and data.get("version") != version:
        raise ValueError(f"{path} has version {data.get('version')}, this program writes and reads version {version}: "
                         "make the file again with this version, or use the version that wrote it.")  # fmt: skip
    return from_dict(cls, data, str(path))


def from_dict(cls: type[T], data: Any, where: str) -> T:
    """A dataclass (nested, with tuples, dicts and unions) from parsed json. where: the file, for messages.

    Raises ValueError naming the field for unknown or missing fields and for values of another type.
    """
    return _converted(cls, data, where, "")


class _RepeatedKey(Exception):
    """A key that stands twice in one json object."""


def _without_repeats(items: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in items:
        if key in found:
            raise _RepeatedKey(repr(key))
        found[key] = value
    return found


def _glob_escaped(name: str) -> str:
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)


def _plain(obj: Any) -> Any:
    """obj in json's own types."""
    if is_dataclass(obj) and not isinstance(obj, type):
        return {f.name: _plain(getattr(obj, f.name)) for f in fields(obj)}
    if isinstance(obj, dict):
        return {str(key): _plain(value) for key, value in obj.items()}
    if isinstance(obj, (list, tuple)):
        return [_plain(value) for value in obj]
    if isinstance(obj, (np.ndarray, np.generic)):
        return _plain(obj.tolist())
    if isinstance(obj, float):
        return obj if math.isfinite(obj) else None
    if obj is None or isinstance(obj, (bool, int, str)):
        return obj
    if isinstance(obj, Path):
        return str(obj)
    raise TypeError(f"A value of type {type(obj).__name__} has no json form: {obj!r}.")


def _text(obj: Any, indent: str) -> str:
    """Json text, one level per space, lists of plain values on one line."""
    inner = indent + " "
    if isinstance(obj, dict) and obj:
        rows = [f"{inner}{json.dumps(key, ensure_ascii=False)}: {_text(value, inner)}" for key, value in obj.items()]
        return "{\n" + ",\n".join(rows) + f"\n{indent}}}"
    if isinstance(obj, list) and any(isinstance(value, (list, dict)) for value in obj):
        return "[\n" + ",\n".join(inner + _text(value, inner) for value in obj) + f"\n{indent}]"
    return json.dumps(obj, ensure_ascii=False)


def _converted(kind: Any, data: Any, where: str, field: str) -> Any:
    """data as an instance of the type `kind`, or ValueError naming `field`."""
    origin, parts = get_origin(kind), get_args(kind)
    if kind is Any:
        return data
    if is_dataclass(kind):
        return _dataclass_from(kind, data, where, field)
    if origin in (Union, types.UnionType):
        return _one_of(parts, data, where, field)
    if origin in (tuple, list) and isinstance(data, list):
        return _sequence(origin, parts, data, where, field)
    if origin is dict and isinstance(data, dict):
        return {key: _converted(parts[1], value, where, _joined(field, key)) for key, value in data.items()}
    if kind is float and type(data) is int:
        return float(data)
    if kind is type(None) and data is None or kind in (int, float, str, bool) and type(data) is kind:
        return data
    if kind is Path and isinstance(data, str):
        return Path(data)
    name = getattr(kind, "__name__", str(kind)) if origin is None else str(kind)
    raise ValueError(f"{where}: '{field}' should be {name}, but is {json.dumps(data)[:80]}.")


def _joined(field: str, name: str) -> str:
    return f"{field}.{name}" if field else name


def _dataclass_from(cls: Any, data: Any, where: str, field: str) -> Any:
    inside = f" in '{field}'" if field else ""
    if not isinstance(data, dict):
        raise ValueError(f"{where}: expected an object with named fields{inside}, got {json.dumps(data)[:80]}.")
    hints = get_type_hints(cls)
    known = {f.name: f for f in fields(cls)}
    unknown = sorted(set(data) - set(known))
    missing = [n for n, f in known.items() if n not in data and f.default is MISSING and f.default_factory is MISSING]
    if unknown or missing:
        parts = [f"unknown field{'s' * (len(unknown) > 1)} {', '.join(map(repr, unknown))}"] if unknown else []
        parts += [f"missing field{'s' * (len(missing) > 1)} {', '.join(map(repr, missing))}"] if missing else []
        raise ValueError(f"{where}: {' and '.join(parts)}{inside}; {cls.__name__} has the fields {', '.join(known)}. "
                         "Was it edited by hand, or written by another version?")  # fmt: skip
    values = {name: _converted(hints[name], value, where, _joined(field, name)) for name, value in data.items()}
    try:
        return cls(**values)
    except ValueError as error:
        raise ValueError(f"{where}{inside}: {error}") from error


def _one_of(parts: tuple, data: Any, where: str, field: str) -> Any:
    """The first member of a union that fits; with one member besides None, its own message."""
    if data is None and type(None) in parts:
        return None
    members = [part for part in parts if part is not type(None)]
    for member in members[:-1]:
        try:
            return _converted(member, data, where, field)
        except ValueError:
            continue
    return _converted(members[-1], data, where, field)


def _sequence(origin: type, parts: tuple, data: list, where: str, field: str) -> Any:
    """A list[X], tuple[X, ...] or tuple[X, Y, Z]."""
    repeats = origin is list or parts[-1] is Ellipsis
    if repeats and parts[0] in (int, float, str) and all(type(value) is parts[0] for value in data):
        return origin(data)  # thousands of points need no look at each
    kinds = [parts[0]] * len(data) if repeats else list(parts)
    if len(kinds) != len(data):
        raise ValueError(f"{where}: '{field}' should have {len(kinds)} values, but has {len(data)}: {json.dumps(data)[:80]}.")
    return origin(_converted(kind, value, where, f"{field}[{i}]") for i, (kind, value) in enumerate(zip(kinds, data)))
