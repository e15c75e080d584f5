"""Which data sets a command works on, and how it goes on when one of several fails."""

import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from nnssl_reg.imageio.raw_dataset import RawDataset, find_dataset, read_raw_dataset

log = logging.getLogger("nnssl_reg")
Item = TypeVar("Item")


def dataset_folders(folder: Path, selections: list[str]) -> list[Path]:
    """The folders of the selected data sets, each once. Raises ValueError with the problems of all selections."""
    return list(dict.fromkeys(_all_of([lambda s=selection: find_dataset(folder, s) for selection in selections])))


def raw_datasets(raw: Path, selections: list[str], write: bool = True) -> list[RawDataset]:
    """The selected raw data sets. Raises ValueError with the problems of all of them, before any work begins.

    write: whether a missing dataset.json is written where it can be inferred.
    """
    return _all_of([lambda f=folder: read_raw_dataset(f, write) for folder in dataset_folders(raw, selections)])


def with_each(items: list[Item], work: Callable[[Item], bool]) -> int:
    """work(item) for every item, going on after one that raises; 0 if all returned True, else 1: the exit code."""
    complete = True
    for item in items:
        try:
            complete = work(item) and complete
        except (ValueError, OSError) as error:
            print(f"error: {error}", file=sys.stderr)
            log.info("", exc_info=True)
            complete = False
    return 0 if complete else 1


def _all_of(calls: list[Callable[[], Item]]) -> list[Item]:
    """The results of all calls, or one ValueError with all their messages."""
    results, problems = [], []
    for call in calls:
        try:
            results.append(call())
        except (ValueError, OSError) as error:
            problems.append(str(error))
    if problems:
        raise ValueError("\n".join(problems))
    return results
