"""Cases that a GPU holds whole, where they fit, so that windows are cut there and a step waits for no reading."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from nnssl_reg.imageio.case_store import open_case, read_properties

SHARE = 0.2  # of the GPU's free memory that cases may take
FILE_BYTES = 4  # of memory per byte of a compressed file, at most: float16 of images shrinks to a half, of masked ones further
MOST_CASES = 2000  # more files are not even asked for their size: on network storage that takes long


@dataclass(frozen=True)
class HeldCase:
    """voxels: (1, X, Y, Z) float16 on the device; minimum: what lies outside; foreground: (N, 3) voxels."""

    voxels: torch.Tensor
    minimum: float
    foreground: np.ndarray


class HeldCases:
    """Reads cases when they are first asked for, and keeps those that `limit` bytes of the device hold, the latest ones."""

    def __init__(self, device: torch.device, limit: float | None = None):
        self.device = device
        self.limit = SHARE * _free(device) if limit is None else limit
        self._held: OrderedDict[Path, HeldCase] = OrderedDict()

    def opened(self, case: Path) -> tuple[HeldCase, tuple[int, ...], np.ndarray]:
        """A case (folder / name), its shape (3 axes) and foreground points. Raises ValueError for a damaged file."""
        if case not in self._held:
            stored = open_case(case.parent, case.name)
            points = np.array(read_properties(case.parent, case.name).foreground_points, dtype=float).reshape(-1, 3)
            voxels = torch.from_numpy(stored[...]).to(self.device)
            self._held[case] = HeldCase(voxels, stored.schunk.vlmeta["minimum"], points)
            while len(self._held) > 1 and sum(held.voxels.nbytes for held in self._held.values()) > self.limit:
                self._held.popitem(last=False)
        held = self._held[case]
        return held, tuple(held.voxels.shape[1:]), held.foreground


def cut_held(held: HeldCase, start: tuple[int, int, int], size: tuple[int, int, int]) -> torch.Tensor:
    """Voxels start .. start + size (3 axes) of a held case, float32 (1, *size) on its device; outside: its minimum."""
    out = torch.full((1, *size), held.minimum, dtype=torch.float32, device=held.voxels.device)
    ranges = [(max(s, 0), min(s + n, length)) for s, n, length in zip(start, size, held.voxels.shape[1:])]
    if all(first < last for first, last in ranges):
        there = tuple(slice(first - s, last - s) for (first, last), s in zip(ranges, start))
        out[(slice(None), *there)] = held.voxels[(slice(None), *(slice(*r) for r in ranges))]
    return out


def room_for(cases: Sequence[Path], device: torch.device) -> bool:
    """Whether a device is a GPU that may hold all these stored cases. Files that are missing count nothing."""
    if device.type != "cuda" or len(cases) > MOST_CASES:
        return False
    files = [case.parent / f"{case.name}.b2nd" for case in cases]
    return FILE_BYTES * sum(file.stat().st_size for file in files if file.is_file()) <= SHARE * _free(device)


def _free(device: torch.device) -> float:
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else float("inf")
