"""The case store: crops are what slicing gives, properties come back, and a case counts only when it is whole."""

import os
from dataclasses import replace

import numpy as np
import pytest

from nnssl_reg.geometry.grid import Grid
from nnssl_reg.imageio.case_store import (
    CaseProperties,
    GridRecord,
    case_names,
    is_done,
    open_case,
    raw_fingerprint,
    read_case,
    read_crop,
    read_properties,
    write_case,
)

SHAPE = (40, 35, 12)
AFFINE = np.array([[1.5, 0, 0.1, -7], [0, 1.25, 0, 3], [-0.05, 0, 4, 11], [0, 0, 0, 1]])


def properties(name="A_0001_0000") -> CaseProperties:
    grid = GridRecord.of(Grid(SHAPE, AFFINE))
    points = np.random.default_rng(0).integers(0, 12, (20, 3)).tolist()
    return CaseProperties(name, "0", "CT", "/raw/a.nii.gz", "12-ab", "plans-1", grid, [[0, 40], [2, 37], [0, 12]], grid,
                          {"mean": 0.25, "percentile_00_5": -1.0}, points)  # fmt: skip


def voxels() -> np.ndarray:
    array = np.random.default_rng(1).uniform(-0.9, 1, (1, *SHAPE)).astype(np.float32)
    return array.astype(np.float16).astype(np.float32)  # what float16 can hold, so that comparisons are exact


@pytest.fixture
def folder(tmp_path):
    write_case(tmp_path / "cases", voxels(), properties(), (16, 16, 12))
    return tmp_path / "cases"


def test_a_case_comes_back_with_grid_and_properties(folder):
    image, found = read_case(folder, "A_0001_0000")
    assert np.array_equal(image.array, voxels()) and image.array.dtype == np.float32
    assert found == properties() == read_properties(folder, "A_0001_0000")
    assert image.grid == Grid(SHAPE, AFFINE)
    assert sorted(os.listdir(folder)) == ["A_0001_0000.b2nd", "A_0001_0000.json"]


def test_stored_values_differ_by_no_more_than_half_precision(tmp_path):
    array = np.random.default_rng(1).uniform(-1, 1, (1, *SHAPE)).astype(np.float32)
    write_case(tmp_path, array, properties(), (16, 16, 12))
    assert np.abs(read_case(tmp_path, "A_0001_0000")[0].array - array).max() <= 2**-12


@pytest.mark.parametrize("start", [(0, 0, 0), (3, 7, 2), (24, 19, 0), (-5, 30, -1), (39, -15, 3), (-60, 0, 0), (0, 0, 12)])
@pytest.mark.parametrize("size", [(16, 16, 12), (5, 40, 7)])
def test_a_crop_is_the_slice_and_the_minimum_outside(folder, start, size):
    array = voxels()
    padded = np.pad(array[0], 70, constant_values=array.min())
    truth = padded[tuple(slice(s + 70, s + 70 + n) for s, n in zip(start, size))]
    crop = read_crop(open_case(folder, "A_0001_0000"), start, size)
    assert crop.dtype == np.float32 and np.array_equal(crop[0], truth)


def test_a_case_is_done_only_for_the_same_raw_bytes_and_plans(folder):
    assert is_done(folder, "A_0001_0000", "12-ab", "plans-1")
    assert not is_done(folder, "A_0001_0000", "13-ab", "plans-1")
    assert not is_done(folder, "A_0001_0000", "12-ab", "plans-2")
    assert not is_done(folder, "A_0002_0000", "12-ab", "plans-1")


@pytest.mark.parametrize("ending", [".b2nd", ".json"])
def test_a_missing_or_damaged_half_is_not_done(folder, ending):
    path = folder / f"A_0001_0000{ending}"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert not is_done(folder, "A_0001_0000", "12-ab", "plans-1")
    path.unlink()
    assert not is_done(folder, "A_0001_0000", "12-ab", "plans-1")
    assert case_names(folder) == []


def test_voxels_of_another_shape_are_not_done(folder, tmp_path):
    small = GridRecord.of(Grid((4, 4, 4), AFFINE))
    write_case(tmp_path, np.zeros((1, 4, 4, 4), np.float32), replace(properties(), grid=small), (4, 4, 4))
    (tmp_path / "A_0001_0000.b2nd").replace(folder / "A_0001_0000.b2nd")
    assert not is_done(folder, "A_0001_0000", "12-ab", "plans-1")


def test_a_damaged_case_says_what_to_do(folder):
    path = folder / "A_0001_0000.b2nd"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"A_0001_0000\.b2nd is damaged .*delete it and run nnssl_preprocess again"):
        open_case(folder, "A_0001_0000")
    with pytest.raises(FileNotFoundError, match="run nnssl_preprocess"):
        open_case(folder, "B_0001_0000")
    with pytest.raises(FileNotFoundError, match="run nnssl_preprocess"):
        case_names(folder / "none")


def test_rewriting_a_case_that_fails_leaves_no_json_that_vouches_for_it(folder, monkeypatch):
    monkeypatch.setattr("nnssl_reg.imageio.case_store.blosc2.asarray", lambda *a, **k: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_case(folder, voxels(), properties(), (16, 16, 12))
    assert not is_done(folder, "A_0001_0000", "12-ab", "plans-1")
    assert os.listdir(folder) == ["A_0001_0000.b2nd"]


def test_wrong_shapes_and_values_are_refused(tmp_path):
    with pytest.raises(ValueError, match="should have the shape"):
        write_case(tmp_path, voxels()[:, 1:], properties(), (16, 16, 12))
    for bad in (np.nan, np.inf, 1e6):
        array = voxels()
        array[0, 0, 0, 0] = bad
        with pytest.raises(ValueError, match="intensities from"):
            write_case(tmp_path, array, properties(), (16, 16, 12))
    assert not list(tmp_path.iterdir())


def test_names_are_sorted_and_whole_cases_only(tmp_path):
    for name in ("b", "a"):
        write_case(tmp_path, voxels(), properties(name), (16, 16, 12))
    (tmp_path / "c.b2nd").write_bytes(b"half")
    assert case_names(tmp_path) == ["a", "b"]


def test_the_fingerprint_of_a_file_tells_bytes_apart(tmp_path):
    for name, content in (("a", b"one"), ("b", b"one"), ("c", b"two"), ("d", b"")):
        (tmp_path / name).write_bytes(content)
    a, b, c, d = (raw_fingerprint(tmp_path / name) for name in "abcd")
    assert a == b != c and a == "3-fe05bcdcdc4928012781a5f1a2a77cbb5398e106" and d.startswith("0-")
