"""Windows of stored cases for each step, read ahead by worker processes or cut out of what a GPU holds.

Which ones is a pure function of seed and step.
"""

import itertools
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from batchgenerators.dataloading.data_loader import SlimDataLoaderBase
from batchgenerators.dataloading.multi_threaded_augmenter import MultiThreadedAugmenter
from batchgenerators.dataloading.single_threaded_augmenter import SingleThreadedAugmenter

from nnssl_reg.imageio.case_store import open_case, read_crop, read_properties
from nnssl_reg.pretraining.case_groups import CaseGroup, case_of
from nnssl_reg.pretraining.held_cases import HeldCases, cut_held, room_for
from nnssl_reg.pretraining.processes import ALONE, Processes

MOST_UNREADABLE = 20  # cases of a group one after the other, before a run gives up
log = logging.getLogger("nnssl_reg")
CASES_OPEN = 256  # opened cases and their foreground points that a process remembers


@dataclass(frozen=True)
class Source:
    """Where windows are cut from. opened: a case (folder / name) -> what `cut` takes, its shape, its foreground points (N, 3);
    cut: that, the first voxel of a window and its size -> the window (1, X, Y, Z) float32."""

    opened: Callable[[Path], tuple]
    cut: Callable


@dataclass(frozen=True)
class WindowRequest:
    """What to read: groups of stored cases, the window around each crop, and how crops are placed. Sizes in voxels.

    batch_size: of all processes together, each of which reads its own samples.
    """

    groups: tuple[CaseGroup, ...]
    crop_size: tuple[int, int, int]
    window_size: tuple[int, int, int]
    batch_size: int
    foreground_share: float
    seed: int
    processes: Processes = ALONE

    def read(self, sample: int, source: Source | None = None) -> tuple[np.ndarray | torch.Tensor, dict[str, str]]:
        """The window (1, X, Y, Z) float32 of a sample, and the cases that could not be read, with the reason.

        source: None: the files. In place of one that cannot, the next of its group is read. Raises ValueError where that does
        not help either.
        """
        case, index, group = case_of(self.groups, sample, self.seed)
        unreadable: dict[str, str] = {}
        for after in range(min(MOST_UNREADABLE, len(group.names))):
            case = group.folder / group.names[(index + after) % len(group.names)]
            try:
                return self._cut(case, sample, source or STORED), unreadable
            except torch.OutOfMemoryError:
                raise  # a RuntimeError, and not the case's fault
            except (ValueError, OSError, RuntimeError) as error:
                unreadable[str(case)] = str(error)
        raise ValueError(f"{len(unreadable)} cases of {group.folder} one after the other cannot be read, the last one because "
                         f"{unreadable[str(case)]}")  # fmt: skip

    def _cut(self, case: Path, sample: int, source: Source) -> np.ndarray | torch.Tensor:
        opened, shape, foreground = source.opened(case)
        rng = np.random.default_rng([self.seed, 2, sample])
        centre = crop_centre(shape, self.crop_size, foreground, self.foreground_share, rng)
        start = np.round(centre - (np.array(self.window_size) - 1) / 2).astype(int)
        return source.cut(opened, tuple(start.tolist()), self.window_size)


class WindowLoader(SlimDataLoaderBase):
    """batchgenerators' loader: worker i of n makes the batches of steps start + i, start + i + n, ..."""

    def __init__(self, request: WindowRequest, start_step: int, workers: int):
        super().__init__(request, request.batch_size, number_of_threads_in_multithreaded=workers)
        self.next_step = start_step

    def set_thread_id(self, thread_id: int) -> None:
        """Called once in each worker process."""
        super().set_thread_id(thread_id)
        self.next_step += thread_id
        for number in (signal.SIGINT, signal.SIGTERM):  # the main process saves first, then ends its workers
            signal.signal(number, signal.SIG_IGN)
        leave_with_parent()

    def generate_train_batch(self) -> dict:
        """{"step": int, "windows": (B, 1, X, Y, Z) float32, "unreadable": {case: reason}}."""
        step, self.next_step = self.next_step, self.next_step + self.number_of_threads_in_multithreaded
        return {"step": step, **batch_of(self._data, step, np.stack)}


def batch_of(request: WindowRequest, step: int, stack: Callable, source: Source | None = None) -> dict:
    """The own windows of a step, put together by `stack`, and {case: reason} of what could not be read."""
    samples = request.processes.own(range(step * request.batch_size, (step + 1) * request.batch_size))
    read = [request.read(sample, source) for sample in samples]
    unreadable = {case: reason for _, found in read for case, reason in found.items()}
    return {"windows": stack([window for window, _ in read]), "unreadable": unreadable}


def held_batches(request: WindowRequest, start_step: int, device: torch.device, workers: int = 0) -> Iterator[dict]:
    """As open_loader's, with windows on the device that holds the cases, each of which is read when it is first needed.

    Where the device has no room for them after all, which is said, they are read from the files from there on.
    """
    source = Source(HeldCases(device).opened, cut_held)
    for step in itertools.count(start_step):
        try:
            batch = batch_of(request, step, torch.stack, source)
        except torch.OutOfMemoryError as error:
            log.warning("%s has no room to hold the cases; they are read from their files from here on. (%s)", device, error)
            break
        yield {"step": step, **batch}
    del source
    loader = _file_loader(request, step, workers)
    try:
        yield from loader
    finally:
        close_loader(loader)


def open_loader(request: WindowRequest, start_step: int, workers: int, device: torch.device | None = None) -> Iterator[dict]:
    """Batches in the order of their steps, from start_step on, without end. workers: processes; 0 reads in this one.

    device: a GPU that has room for all cases holds them, and no process is needed. Windows are the same in every way.
    """
    if device is not None and room_for([group.folder / name for group in request.groups for name in group.names], device):
        return held_batches(request, start_step, device, workers)
    return _file_loader(request, start_step, workers)


def _file_loader(request: WindowRequest, start_step: int, workers: int) -> Iterator[dict]:
    if workers == 0:
        return SingleThreadedAugmenter(WindowLoader(request, start_step, 1), None)
    return MultiThreadedAugmenter(WindowLoader(request, start_step, workers), None, workers, num_cached_per_queue=2)


def close_loader(loader: Iterator[dict]) -> None:
    """End the worker processes, if there are any."""
    if isinstance(loader, Generator):
        loader.close()
    if isinstance(loader, MultiThreadedAugmenter):
        loader._finish()  # its only way to stop; the destructor does the same, but at a time of its own


def crop_centre(shape, crop_size, foreground: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """Where a crop is centred, (3,) voxels: on a foreground point for `share` of the crops, else anywhere.

    The crop stays inside the case along every axis that is long enough, otherwise it is in the middle.
    """
    last = np.array(shape, dtype=float) - 1
    half = (np.array(crop_size, dtype=float) - 1) / 2
    on_foreground, anywhere = rng.random() < share, rng.random(3)
    low, high = np.minimum(half, last / 2), np.maximum(last - half, last / 2)
    if on_foreground and len(foreground):
        return np.clip(foreground[rng.integers(len(foreground))], low, high)
    return low + anywhere * (high - low)


@lru_cache(maxsize=CASES_OPEN)
def _opened(case: Path) -> tuple:
    """An opened case, its shape and its foreground points (N, 3)."""
    opened = open_case(case.parent, case.name)
    points = np.array(read_properties(case.parent, case.name).foreground_points, dtype=float).reshape(-1, 3)
    return opened, opened.shape[1:], points


STORED = Source(_opened, read_crop)


def leave_with_parent() -> None:
    """From now on, end this process when the one that started it is gone; after kill -9 nobody else would."""
    threading.Thread(target=_watch, args=(os.getppid(),), daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(2)
    os._exit(1)
