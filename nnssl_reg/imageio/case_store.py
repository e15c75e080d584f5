"""Preprocessed cases on disk: voxels in blosc2, chunked for reading crops, and their properties in json beside them."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import blosc2
import numpy as np
from acvl_utils.cropping_and_padding.bounding_boxes import crop_and_pad_nd

from nnssl_reg.geometry.grid import Grid
from nnssl_reg.geometry.image import Image
from nnssl_reg.imageio.json_files import atomic_path, read_dataclass, read_json, write_json

_FLOAT16_LIMIT = float(np.finfo(np.float16).max)


@dataclass(frozen=True)
class GridRecord:
    """A Grid as json holds it. affine: its four rows."""

    shape: tuple[int, int, int]
    affine: tuple[tuple[float, float, float, float], ...]

    @staticmethod
    def of(grid: Grid) -> "GridRecord":
        """The record of a grid."""
        return GridRecord(grid.shape, tuple(tuple(row) for row in grid.affine.tolist()))

    @property
    def grid(self) -> Grid:
        """The grid of a record."""
        return Grid(self.shape, np.array(self.affine))


@dataclass(frozen=True)
class CaseProperties:
    """What is known of a preprocessed case.

    channel_name: "CT"; raw_fingerprint: of the raw file's bytes; plans_fingerprint: of what the plans say about it.
    crop_box: of the canonical raw image, half open, in its voxels; grid: of the stored array. foreground_points: voxel
    indices in the stored array.
    """

    name: str
    channel: str
    channel_name: str
    raw_file: str
    raw_fingerprint: str
    plans_fingerprint: str
    original_grid: GridRecord
    crop_box: list[list[int]]
    grid: GridRecord
    statistics: dict[str, float]
    foreground_points: list[list[int]]


def raw_fingerprint(path: str | Path) -> str:
    """Size and SHA-1 of a file's bytes, to recognise it again."""
    digest = hashlib.sha1(usedforsecurity=False)
    with open(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
        return f"{file.tell()}-{digest.hexdigest()}"


def write_case(folder: str | Path, array: np.ndarray, properties: CaseProperties, chunk_for: tuple[int, int, int]) -> None:
    """Store a case as <name>.b2nd and <name>.json, the json last: a case with a json is whole.

    array: (1, X, Y, Z), normalised intensities, kept as float16; chunk_for: the crop size that will be read, voxels.
    """
    folder, name = Path(folder), properties.name
    if array.shape != (1, *properties.grid.shape):
        raise ValueError(f"Case {name} should have the shape {(1, *properties.grid.shape)}, got {array.shape}.")
    low, high = float(array.min()), float(array.max())
    if not max(-low, high) <= _FLOAT16_LIMIT:  # NaN fails too
        raise ValueError(f"Case {name} has intensities from {low:g} to {high:g}; stored are normalised ones, about -1 to 1.")
    (folder / f"{name}.json").unlink(missing_ok=True)  # or an old json would vouch for the new voxels
    blocks = [min(n, max(8, min(32, -(-crop // 3)))) for n, crop in zip(array.shape[1:], chunk_for)]
    chunks = [min(n, 2 * block) for n, block in zip(array.shape[1:], blocks)]
    compression = {"codec": blosc2.Codec.LZ4, "clevel": 5, "filters": [blosc2.Filter.SHUFFLE], "nthreads": 1}
    with atomic_path(folder / f"{name}.b2nd") as temporary:
        stored = blosc2.asarray(np.ascontiguousarray(array, dtype=np.float16), urlpath=str(temporary), mode="w",
                                chunks=(1, *chunks), blocks=(1, *blocks), cparams=compression)  # fmt: skip
        stored.schunk.vlmeta["minimum"] = float(np.float16(low))  # for padding, without reading all
    write_json(folder / f"{name}.json", properties)


def read_case(folder: str | Path, name: str) -> tuple[Image, CaseProperties]:
    """A whole stored case, float32 (1, X, Y, Z) on its grid, and its properties."""
    properties = read_dataclass(CaseProperties, Path(folder) / f"{name}.json")
    array = np.asarray(open_case(folder, name)[...], dtype=np.float32)
    return Image(array, properties.grid.grid), properties


def read_properties(folder: str | Path, name: str) -> CaseProperties:
    """The properties of a stored case, without its voxels."""
    return read_dataclass(CaseProperties, Path(folder) / f"{name}.json")


def open_case(folder: str | Path, name: str) -> blosc2.NDArray:
    """A stored case (1, X, Y, Z), float16, opened lazily for read_crop. Raises ValueError for a damaged file."""
    path = Path(folder) / f"{name}.b2nd"
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; run nnssl_preprocess.")
    try:
        opened = blosc2.open(str(path), mode="r", dparams={"nthreads": 1})  # worker processes are the parallelism
        if opened.ndim != 4 or "minimum" not in opened.schunk.vlmeta:
            raise ValueError("no stored case")
    except (RuntimeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path} is damaged ({error}); delete it and run nnssl_preprocess again.") from error
    return opened


def read_crop(opened: blosc2.NDArray, start: tuple[int, int, int], size: tuple[int, int, int]) -> np.ndarray:
    """Voxels start .. start + size (3 axes) of an opened case, float32 (1, *size); outside: the array's minimum."""
    minimum = opened.schunk.vlmeta["minimum"]
    box = [[int(s), int(s) + int(n)] for s, n in zip(start, size)]
    if any(stop <= 0 or begin >= n for (begin, stop), n in zip(box, opened.shape[1:])):
        return np.full((1, *(int(n) for n in size)), minimum, dtype=np.float32)
    return crop_and_pad_nd(opened, box, pad_value=minimum, cast_cropped_to=np.float32)


def case_names(folder: str | Path) -> list[str]:
    """The names of the whole cases in a folder, sorted."""
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} does not exist; run nnssl_preprocess.")
    there = set(os.listdir(folder))  # one question for all names: asking for each file takes minutes on network storage
    return sorted(name[:-5] for name in there if name.endswith(".b2nd") and f"{name[:-5]}.json" in there)


def is_done(folder: str | Path, name: str, raw_fingerprint: str, plans_fingerprint: str) -> bool:
    """Whether a case is stored whole, from these raw bytes and these plans."""
    try:
        written = read_json(Path(folder) / f"{name}.json")
        shape = open_case(folder, name).shape
        return (
            written["raw_fingerprint"] == raw_fingerprint
            and written["plans_fingerprint"] == plans_fingerprint
            and [1, *written["grid"]["shape"]] == list(shape)
        )
    except (OSError, ValueError, KeyError, TypeError):
        return False
