"""Landmarks: every file and space leads to the same world points, and slips are named with their line."""

import json

import numpy as np
import pytest

from nnssl_reg.geometry.grid import Grid
from nnssl_reg.imageio.landmarks import read_landmark_names, read_landmarks, write_landmarks

GRID = Grid((10, 20, 30), np.array([[0, -1.5, 0, 12], [2, 0, 0, -40], [0, 0, 3, 5], [0, 0, 0, 1]], float))
POINTS = np.array([[1.5, -20.25, 33.0], [-7.0, 0.0, 12.125]])


@pytest.mark.parametrize("name", ["p.csv", "p.fcsv", "p.mrk.json"])
@pytest.mark.parametrize("space", ["ras", "lps", "voxel"])
def test_points_come_back_from_every_file_and_space(name, space, tmp_path):
    write_landmarks(tmp_path / name, POINTS, space, GRID)
    assert np.allclose(read_landmarks(tmp_path / name, space, GRID), POINTS, atol=1e-5)


def test_a_csv_means_what_its_space_says(tmp_path):
    (tmp_path / "p.csv").write_text("1,2,3\n")
    assert np.allclose(read_landmarks(tmp_path / "p.csv", "ras"), [[1, 2, 3]])
    assert np.allclose(read_landmarks(tmp_path / "p.csv", "lps"), [[-1, -2, 3]])
    assert np.allclose(read_landmarks(tmp_path / "p.csv", "voxel", GRID), [[12 - 3.0, -40 + 2.0, 5 + 9.0]])


@pytest.mark.parametrize(
    "text",
    [
        "1,2,3\n4,5,6\n",
        "x,y,z\n1, 2 ,3\n\n4,5,6",
        "\ufeffX,Y,Z\r\n1e0,2,3\r\n4,5,6\r\n",
        "label,x,y,z,t\na,1,2,3,0\nb,4,5,6,0\n",
    ],
)
def test_headers_blanks_and_further_named_columns_are_understood(text, tmp_path):
    (tmp_path / "p.csv").write_text(text, encoding="utf-8")
    assert np.array_equal(read_landmarks(tmp_path / "p.csv", "ras"), [[1, 2, 3], [4, 5, 6]])


@pytest.mark.parametrize(
    ("text", "line"), [("1,2,3\n4,x,6\n", 2), ("x,y,z\n1,2\n", 2), ("1,2,3.4.5\n", 1), ("1;2;3\n4;5;6\n", 2)]
)
def test_a_slip_is_named_with_its_line(text, line, tmp_path):
    (tmp_path / "p.csv").write_text(text)
    with pytest.raises(ValueError, match=rf"p\.csv, line {line}: expected three numbers x,y,z"):
        read_landmarks(tmp_path / "p.csv", "ras")


def test_a_csv_without_its_space_or_its_image_is_asked_for(tmp_path):
    (tmp_path / "p.csv").write_text("1,2,3\n")
    with pytest.raises(ValueError, match="-space ras, lps, voxel, got None"):
        read_landmarks(tmp_path / "p.csv")
    with pytest.raises(ValueError, match="-points_image"):
        read_landmarks(tmp_path / "p.csv", "voxel")


def test_slicers_files_know_their_space(tmp_path):
    (tmp_path / "old.fcsv").write_text("# CoordinateSystem = 0\n# columns = id,x,y,z,ow\n1,1,2,3,0\n")
    (tmp_path / "new.fcsv").write_text("# CoordinateSystem = LPS\n1,-1,-2,3,0,0,0,1\n")
    points = [{"position": [-1, -2, 3]}]
    (tmp_path / "p.mrk.json").write_text(json.dumps({"markups": [{"coordinateSystem": "LPS", "controlPoints": points}]}))
    for name in ("old.fcsv", "new.fcsv", "p.mrk.json"):
        assert np.array_equal(read_landmarks(tmp_path / name), [[1, 2, 3]])


def test_unfit_landmark_files_are_refused(tmp_path):
    cases = {
        "empty.csv": ("", "holds no landmark"),
        "nan.csv": ("1,2,3\n1,nan,3\n", r"landmark 1 \(from 0\) is not finite"),
        "a.fcsv": ("# CoordinateSystem = IJK\n", "coordinate system is 'ijk', expected RAS or LPS"),
        "a.mrk.json": ('{"markups": [{}]}', "no markups file of 3D Slicer"),
        "b.mrk.json": (
            '{"markups": [{"coordinateSystem": "IJK", "controlPoints": []}]}',
            "expected are points of RAS or of LPS",
        ),
        "c.txt": ("1,2,3", r"the ending is none of \.csv, \.fcsv, \.mrk\.json"),
    }
    for name, (text, message) in cases.items():
        (tmp_path / name).write_text(text)
        with pytest.raises(ValueError, match=message):
            read_landmarks(tmp_path / name, "ras")
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="is no text"):
        read_landmarks(tmp_path / "binary.csv", "ras")
    with pytest.raises(FileNotFoundError, match="gone.csv does not exist"):
        read_landmarks(tmp_path / "gone.csv", "ras")
    with pytest.raises(ValueError, match=r"shape \(N, 3\), got \(3,\)"):
        write_landmarks(tmp_path / "p.csv", np.zeros(3), "ras")


@pytest.mark.parametrize("ending", [".csv", ".fcsv", ".mrk.json"])
def test_names_of_landmarks_are_written_and_read_row_by_row(ending, tmp_path):
    points, path = np.arange(6.0).reshape(2, 3), tmp_path / f"p{ending}"
    write_landmarks(path, points, "ras", names=["carina", "apex of heart"])
    assert read_landmark_names(path) == ["carina", "apex of heart"] and np.allclose(read_landmarks(path, "ras"), points)
    write_landmarks(path, points, "ras")
    assert read_landmark_names(path) == (None if ending == ".csv" else ["F-1", "F-2"])


def test_names_are_found_in_files_as_slicer_writes_them(tmp_path):
    head = "# Markups fiducial file version = 4.11\n# CoordinateSystem = LPS\n"
    (tmp_path / "a.fcsv").write_text(head + "vtkMRML_0,1,2,3,0,0,0,1,1,1,0,carina,seen well,vtkMRML_7\n2,4,5,6\n")
    assert read_landmark_names(tmp_path / "a.fcsv") == ["carina", ""]
    (tmp_path / "a.csv").write_text('"Name",x,y,z\ncarina,1,2,3\n')
    assert read_landmark_names(tmp_path / "a.csv") == ["carina"] and read_landmarks(tmp_path / "a.csv", "ras").shape == (1, 3)
