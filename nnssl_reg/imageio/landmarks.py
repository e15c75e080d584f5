"""Landmark files, in world RAS mm for us: .csv in a space that the caller names, .fcsv and .mrk.json of 3D Slicer."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from nnssl_reg.geometry.grid import Grid
from nnssl_reg.imageio.json_files import atomic_path, read_json, write_json

LANDMARK_ENDINGS = (".csv", ".fcsv", ".mrk.json")
SPACES = ("ras", "lps", "voxel")
_FCSV_LABEL = 11  # the column of Slicer's fiducial files
_LPS = np.array([-1.0, -1.0, 1.0])  # LPS <-> RAS, point by point


def read_landmarks(path: str | Path, space: str | None = None, grid: Grid | None = None) -> np.ndarray:
    """Points (N, 3) float64 RAS mm.

    space: what a .csv holds, "ras", "lps" or "voxel" (indices of `grid`); Slicer's files say it themselves. Raises ValueError
    naming the line for values that are no numbers, and where a .csv comes without its space.
    """
    path = Path(path)
    ending = landmark_ending(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist.")
    if ending == ".csv":
        points = _read_csv(path)
    else:
        points, space = _read_fcsv(path) if ending == ".fcsv" else _read_markups(path)
    points = np.array(points, dtype=np.float64).reshape(-1, 3)
    if len(points) == 0:
        raise ValueError(f"{path} holds no landmark.")
    if not np.isfinite(points).all():
        raise ValueError(f"{path}: landmark {int(np.argmin(np.isfinite(points).all(axis=1)))} (from 0) is not finite.")
    return _to_ras(points, space, grid, path)


def read_landmark_names(path: str | Path) -> list[str] | None:
    """How a file calls its landmarks, row by row; None for a .csv without a column label or name."""
    path = Path(path)
    ending = landmark_ending(path)
    if ending == ".mrk.json":
        return [str(point.get("label", "")) for markup in read_json(path)["markups"] for point in markup["controlPoints"]]
    if ending == ".fcsv":
        rows = [line.split(",") for _, line in _lines(path) if not line.startswith("#")]
        return [row[_FCSV_LABEL].strip() if len(row) > _FCSV_LABEL else "" for row in rows]
    header, *rows = ([cell.strip().strip("\"'") for cell in line.split(",")] for _, line in _lines(path))
    column = next((i for i, name in enumerate(header) if name.lower() in ("label", "name")), None)
    return None if column is None else [row[column] if column < len(row) else "" for row in rows]


def write_landmarks(path: str | Path, points: np.ndarray, space: str | None = None, grid: Grid | None = None,
                    names: Sequence[str] | None = None) -> None:  # fmt: skip
    """Write points (N, 3) RAS mm: a .csv in the named space, Slicer's files in LPS.

    names: how the landmarks are called; without them Slicer's files say F-1, F-2, ... and a .csv nothing.
    """
    path, points = Path(path), np.asarray(points, dtype=np.float64)
    ending = landmark_ending(path)
    named = None if names is None else [name.replace(",", " ").strip() for name in names]
    if points.ndim != 2 or points.shape[1] != 3:
        raise ValueError(f"Landmarks for {path} should have the shape (N, 3), got {points.shape}.")
    if ending == ".mrk.json":
        write_json(path, _markups(points * _LPS, names or _numbered(points)))
        return
    if ending == ".csv":
        rows = _from_ras(points, space, grid, path)
        lines = [",".join(f"{value:.6f}" for value in row) for row in rows]
        header = ["x,y,z" if named is None else "x,y,z,label"]
        lines = lines if named is None else [f"{line},{name}" for line, name in zip(lines, named)]
    else:
        header = ["# Markups fiducial file version = 4.11", "# CoordinateSystem = LPS",
                  "# columns = id,x,y,z,ow,ox,oy,oz,vis,sel,lock,label,desc,associatedNodeID"]  # fmt: skip
        lines = [f"{i},{x:.6f},{y:.6f},{z:.6f},0,0,0,1,1,1,0,{name},,"
                 for i, ((x, y, z), name) in enumerate(zip(points * _LPS, named or _numbered(points)), 1)]  # fmt: skip
    with atomic_path(path) as temporary:
        temporary.write_text("\n".join(header + lines) + "\n", encoding="utf-8")


def landmark_ending(path: str | Path) -> str:
    """The one of LANDMARK_ENDINGS that a file name ends in. Raises ValueError for another."""
    name = Path(path).name.lower()
    ending = next((ending for ending in LANDMARK_ENDINGS if name.endswith(ending)), None)
    if ending is None:
        raise ValueError(f"{path}: the ending is none of {', '.join(LANDMARK_ENDINGS)}.")
    return ending


def _check_space(space: str | None, grid: Grid | None, path: Path) -> None:
    if space not in SPACES:
        raise ValueError(f"{path}: the space of its coordinates must be named, -space {', '.join(SPACES)}, got {space}.")
    if space == "voxel" and grid is None:
        raise ValueError(f"{path} holds voxel indices; name the image whose voxels they count with -points_image.")


def _to_ras(points: np.ndarray, space: str | None, grid: Grid | None, path: Path) -> np.ndarray:
    _check_space(space, grid, path)
    if space == "voxel":
        return grid.index_to_world(points)
    return points * _LPS if space == "lps" else points


def _from_ras(points: np.ndarray, space: str | None, grid: Grid | None, path: Path) -> np.ndarray:
    _check_space(space, grid, path)
    if space == "voxel":
        return grid.world_to_index(points)
    return points * _LPS if space == "lps" else points


def _lines(path: Path) -> list[tuple[int, str]]:
    """The lines that are not blank, each with its number from 1."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text: byte {error.start} is not UTF-8.") from error
    return [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1) if line.strip()]


def _numbers(cells: list[str], number: int, path: Path) -> list[float]:
    """Three coordinates from the cells of a line."""
    try:
        if len(cells) != 3:
            raise ValueError("not three")
        return [float(cell) for cell in cells]
    except ValueError as error:
        raise ValueError(f"{path}, line {number}: expected three numbers x,y,z, got {','.join(cells)!r}.") from error


def _read_csv(path: Path) -> list[list[float]]:
    """x,y,z per line, after an optional header, which may name further columns."""
    rows = [(number, [cell.strip() for cell in line.split(",")]) for number, line in _lines(path)]
    columns = None
    if rows and not any(_is_number(cell) for cell in rows[0][1]):  # one that is no number may be a slip, none is a header
        names = [cell.strip("\"'").lower() for cell in rows.pop(0)[1]]
        columns = [names.index(axis) for axis in "xyz"] if {"x", "y", "z"} <= set(names) else None
    if columns is None:
        return [_numbers(cells, number, path) for number, cells in rows]
    return [_numbers([cells[c] for c in columns if c < len(cells)], number, path) for number, cells in rows]


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _read_fcsv(path: Path) -> tuple[list[list[float]], str]:
    """Points of 3D Slicer's fiducial file and the space its comment names (RAS where none does, as in old versions)."""
    space, points = "ras", []
    for number, line in _lines(path):
        if not line.startswith("#"):
            points.append(_numbers([cell.strip() for cell in line.split(",")[1:4]], number, path))
        elif "coordinatesystem" in line.lower():
            stated = line.partition("=")[2].strip().lower()
            space = {"0": "ras", "1": "lps"}.get(stated, stated)
            if space not in ("ras", "lps"):
                raise ValueError(f"{path}, line {number}: the coordinate system is {stated!r}, expected RAS or LPS.")
    return points, space


def _read_markups(path: Path) -> tuple[list[list[float]], str]:
    """Points of 3D Slicer's markups file, of all its lists, and the space it names."""
    data = read_json(path)
    try:
        markups = data["markups"]
        spaces = {markup.get("coordinateSystem", "LPS").lower() for markup in markups}
        points = [[float(x) for x in point["position"]] for markup in markups for point in markup["controlPoints"]]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path} is no markups file of 3D Slicer: markups, controlPoints, position were expected "
                         f"({error!r}).") from error  # fmt: skip
    if len(spaces) != 1 or not spaces <= {"ras", "lps"} or any(len(point) != 3 for point in points):
        raise ValueError(f"{path} names the coordinate systems {sorted(spaces)}; expected are points of RAS or of LPS.")
    return points, spaces.pop()


def _numbered(points: np.ndarray) -> list[str]:
    return [f"F-{i + 1}" for i in range(len(points))]


def _markups(points_lps: np.ndarray, names: Sequence[str]) -> dict:
    """The smallest markups file that 3D Slicer opens."""
    rows = zip(points_lps.tolist(), names)
    points = [{"id": str(i), "label": name, "position": row} for i, (row, name) in enumerate(rows, 1)]
    schema = "https://raw.githubusercontent.com/slicer/slicer/master/Modules/Loadable/Markups/Resources/Schema/markups-schema-v1.0.3.json#"
    return {"@schema": schema, "markups": [{"type": "Fiducial", "coordinateSystem": "LPS", "controlPoints": points}]}
