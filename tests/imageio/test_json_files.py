"""Json: what is written comes back, errors name file and field, and nothing is left half-written."""

import json
import math
import os
import subprocess
import sys
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import get_args, get_origin, get_type_hints

import numpy as np
import pytest

from nnssl_reg.imageio.json_files import atomic_path, from_dict, read_dataclass, read_json, write_json
from nnssl_reg.planning.plans import PLANS_VERSION, Plans


@dataclass(frozen=True)
class Section:
    spacing_mm: tuple[float, float, float]
    steps: int
    lower: float | None = None


@dataclass(frozen=True)
class Everything:
    name: str
    sections: dict[str, Section]
    points: list[list[int]]
    sizes: tuple[int, ...]
    active: bool
    reasons: dict[str, str] = field(default_factory=dict)
    version: int = 1


EXAMPLE = Everything("Äpfel", {"3d": Section((1.0, 1.5, 2.0), 100, None)}, [[1, 2, 3], [4, 5, 6]], (7,), True, {"a": 'b"c'}, 1)


def test_a_nested_dataclass_comes_back_equal(tmp_path):
    write_json(tmp_path / "a.json", EXAMPLE)
    assert read_dataclass(Everything, tmp_path / "a.json") == EXAMPLE
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))["points"] == [[1, 2, 3], [4, 5, 6]]


def test_numpy_values_are_written_and_nan_becomes_null(tmp_path):
    write_json(
        tmp_path / "a.json",
        {"i": np.int64(3), "f": np.float32(0.5), "a": np.eye(2), "t": (1, 2), "n": math.nan, 7: np.bool_(1)},
    )
    expected = {"i": 3, "f": 0.5, "a": [[1.0, 0.0], [0.0, 1.0]], "t": [1, 2], "n": None, "7": True}
    assert read_json(tmp_path / "a.json") == expected


def test_a_whole_number_is_a_float_but_a_fraction_or_a_truth_is_no_int():
    data = {"spacing_mm": [1, 2, 3], "steps": 5}
    assert from_dict(Section, data, "f").spacing_mm == (1.0, 2.0, 3.0)
    for wrong in (1.5, True, "5", None):
        with pytest.raises(ValueError, match="f: 'steps' should be int"):
            from_dict(Section, {**data, "steps": wrong}, "f")


def test_unknown_and_missing_fields_are_named_with_the_file_and_the_place(tmp_path):
    write_json(tmp_path / "plans.json", EXAMPLE)
    data = read_json(tmp_path / "plans.json")
    section = data["sections"]["3d"]
    section["stpes"] = section.pop("steps")
    write_json(tmp_path / "plans.json", data)
    with pytest.raises(
        ValueError, match=r"plans\.json: unknown field 'stpes' and missing field 'steps' in 'sections\.3d'.*edited by hand"
    ):
        read_dataclass(Everything, tmp_path / "plans.json")


def test_a_value_of_the_wrong_type_or_length_is_named():
    with pytest.raises(ValueError, match=r"where: 'spacing_mm\[1\]' should be float, but is \"wide\""):
        from_dict(Section, {"spacing_mm": [1, "wide", 2], "steps": 1}, "where")
    with pytest.raises(ValueError, match="'spacing_mm' should have 3 values, but has 2"):
        from_dict(Section, {"spacing_mm": [1, 2], "steps": 1}, "where")
    with pytest.raises(ValueError, match="expected an object with named fields, got \\[1\\]"):
        from_dict(Section, [1], "where")


def test_a_file_of_another_version_is_refused_before_its_fields_are_looked_at(tmp_path):
    write_json(tmp_path / "a.json", {"version": 99, "something": "else"})
    with pytest.raises(ValueError, match="a.json has version 99, this program writes and reads version 1"):
        read_dataclass(Everything, tmp_path / "a.json", version=1)
    write_json(tmp_path / "a.json", replace(EXAMPLE, version=1))
    assert read_dataclass(Everything, tmp_path / "a.json", version=1) == EXAMPLE


def example_of(kind):
    """Some value of a type, dataclasses filled in."""
    if is_dataclass(kind):
        hints = get_type_hints(kind)
        return kind(**{f.name: example_of(hints[f.name]) for f in fields(kind)})
    if get_origin(kind) is dict:
        return {"key": example_of(get_args(kind)[1])}
    if get_origin(kind) is tuple:
        return tuple(example_of(part) for part in get_args(kind) if part is not ...)
    return None if type(None) in get_args(kind) else {int: 3, float: 0.5, str: "text", bool: True}[kind]


def test_plans_come_back_and_those_of_another_version_or_edited_by_hand_are_refused(tmp_path):
    plans = replace(example_of(Plans), version=PLANS_VERSION)
    path = tmp_path / "nnsslPlans.json"
    write_json(path, plans)
    assert read_dataclass(Plans, path, PLANS_VERSION) == plans
    text = path.read_text()
    path.write_text(text.replace('"batch_size": 3', '"batch_size": "three"'))
    with pytest.raises(
        ValueError, match=r"nnsslPlans\.json: 'configurations\.key\.pretraining\.batch_size' should be int, but is \"three\""
    ):
        read_dataclass(Plans, path, PLANS_VERSION)
    path.write_text(text.replace("batch_size", "batchsize"))
    with pytest.raises(
        ValueError, match="unknown field 'batchsize' and missing field 'batch_size' in 'configurations.key.pretraining'"
    ):
        read_dataclass(Plans, path, PLANS_VERSION)
    path.write_text(text.replace(f'"version": {PLANS_VERSION}', '"version": 0'))
    with pytest.raises(ValueError, match=f"has version 0, this program writes and reads version {PLANS_VERSION}"):
        read_dataclass(Plans, path, PLANS_VERSION)
    path.write_text(text[: len(text) // 2])
    with pytest.raises(ValueError, match="not valid json"):
        read_dataclass(Plans, path, PLANS_VERSION)


def test_broken_json_is_named_with_line_and_column(tmp_path):
    (tmp_path / "a.json").write_text('{"a": 1,\n "b": }')
    with pytest.raises(ValueError, match=r"a\.json is not valid json: .* line 2, column 7"):
        read_json(tmp_path / "a.json")
    (tmp_path / "b.json").write_bytes(b"\xff\xfe{}")
    with pytest.raises(ValueError, match="not UTF-8"):
        read_json(tmp_path / "b.json")
    with pytest.raises(FileNotFoundError, match="c.json does not exist"):
        read_json(tmp_path / "c.json")


def test_a_key_that_stands_twice_is_an_error(tmp_path):
    (tmp_path / "a.json").write_text('{"steps": 1, "steps": 2}')
    with pytest.raises(ValueError, match="key 'steps' twice"):
        read_json(tmp_path / "a.json")


def test_a_failing_write_leaves_the_old_file_and_nothing_else(tmp_path):
    write_json(tmp_path / "a.json", [1])
    with pytest.raises(RuntimeError), atomic_path(tmp_path / "a.json") as temporary:
        temporary.write_text("half")
        raise RuntimeError("disk full")
    with pytest.raises(TypeError, match="no json form"):
        write_json(tmp_path / "a.json", {"a": object()})
    assert read_json(tmp_path / "a.json") == [1]
    assert os.listdir(tmp_path) == ["a.json"]


def test_files_beside_the_target_move_with_it(tmp_path):
    with atomic_path(tmp_path / "new" / "a.mhd") as temporary:
        assert temporary.name == "a.mhd"
        temporary.write_text("header")
        (temporary.parent / "a.raw").write_text("voxels")
    assert sorted(os.listdir(tmp_path / "new")) == ["a.mhd", "a.raw"]


def test_what_a_killed_process_left_is_removed_by_the_next_write(tmp_path):
    code = (
        "import os, signal, sys; from nnssl_reg.imageio.json_files import atomic_path\n"
        "with atomic_path(sys.argv[1]) as t:\n t.write_text('half'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "a.json")], env=environment, cwd=tmp_path)
    assert len(os.listdir(tmp_path)) == 1 and not (tmp_path / "a.json").exists()
    write_json(tmp_path / "a.json", {})
    assert os.listdir(tmp_path) == ["a.json"]
