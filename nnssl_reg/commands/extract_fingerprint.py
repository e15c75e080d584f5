"""nnssl_extract_fingerprint: measure every case of raw data sets once, in parallel, and write dataset_fingerprint.json."""

from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nnssl_reg.commands.case_pool import Pool, Task, collected_messages
from nnssl_reg.commands.dask_pool import pool_for
from nnssl_reg.commands.failed_cases import failures_of, print_failures, record_failures
from nnssl_reg.commands.machine import free_memory
from nnssl_reg.commands.selection import raw_datasets, with_each
from nnssl_reg.geometry.grid import Grid
from nnssl_reg.imageio.case_store import raw_fingerprint
from nnssl_reg.imageio.images import read_grid, read_image
from nnssl_reg.imageio.json_files import read_dataclass, write_json
from nnssl_reg.imageio.raw_dataset import RawCase, RawDataset
from nnssl_reg.paths import preprocessed_folder, raw_folder
from nnssl_reg.planning.fingerprint import (
    FINGERPRINT_VERSION,
    CaseRecord,
    Fingerprint,
    case_fingerprint,
    merge,
    modality_doubt,
)
from nnssl_reg.planning.memory import fingerprint_bytes

FILE_NAME = "dataset_fingerprint.json"
CASES_FOLDER = "fingerprint_cases"
STEP = "fingerprint"


@dataclass(frozen=True)
class Measure:
    """One case to measure. record: its file of earlier results, None for none; write: whether to write it."""

    image: Path
    channel: str
    channel_name: str
    record: Path | None
    clean: bool
    write: bool


def run(args: Namespace) -> int:
    """Fingerprints of the data sets that args select. Returns 1 if a case or a data set had to be left out."""
    preprocessed = preprocessed_folder(args.preprocessed)

    datasets = raw_datasets(raw_folder(args.raw), args.d)

    def work(dataset: RawDataset) -> bool:
        return not extract_fingerprint(dataset, preprocessed / dataset.name, pool, clean=args.clean)[1]

    with pool_for(args.npfp, args.dask, not args.no_pbar) as pool:
        return with_each(datasets, work)


def extract_fingerprint(dataset: RawDataset, folder: Path | None, pool: Pool, *, clean: bool = False, write: bool = True
                        ) -> tuple[Fingerprint, set[str]]:  # fmt: skip
    """Measure all cases, merge them, write dataset_fingerprint.json to `folder`. Returns it and the names of failed cases.

    Cases measured before, on the same bytes, are taken from `folder`/fingerprint_cases (clean: are measured again).
    folder None or write False: nothing is written. Raises ValueError if no case can be read.
    """
    tasks = [_task(case, dataset, folder, clean, write) for case in dataset.cases]
    outcomes = pool.run(measure, tasks, f"{dataset.name}: measuring")
    failures = failures_of(outcomes)
    path = record_failures(folder, STEP, failures) if write and folder is not None else None
    print_failures(dataset.name, failures, path)
    done = [outcome for outcome in outcomes if outcome.error is None]
    records = {o.task.name: (o.value[0].case, np.array(o.value[0].quantiles)) for o in done}
    fingerprint = merge(dataset.name, records, dataset.channel_names)
    kept = sum(o.value[1] for o in done)
    before = f", {kept} of them before" if kept else ""
    if write and folder is not None:
        write_json(folder / FILE_NAME, fingerprint)
        print(f"{dataset.name}: {len(done)} cases measured{before}. Wrote {folder / FILE_NAME}")
    else:
        print(f"{dataset.name}: {len(done)} cases measured{before}.")
    warn_of_doubts(fingerprint)
    return fingerprint, {name for name, _, _ in failures}


def measure(task: Measure) -> tuple[CaseRecord, bool]:
    """In a worker: the case's record, and whether it was there already."""
    raw = raw_fingerprint(task.image)
    known = None if task.clean or task.record is None else _known(task.record)
    if known is not None and (known.raw_fingerprint, known.channel_name) == (raw, task.channel_name):
        return known, True
    case, quantiles = case_fingerprint(read_image(task.image), task.channel, task.channel_name)
    record = CaseRecord(case, tuple(quantiles.tolist()), raw, task.channel_name)
    if task.write and task.record is not None:
        write_json(task.record, record)
    return record, False


def warn_of_doubts(fingerprint: Fingerprint) -> None:
    """Say which cases look like another modality than their channel is named."""
    doubts = {}
    for name, case in fingerprint.cases.items():
        doubt = modality_doubt(case, fingerprint.channels[case.channel].name)
        if doubt is not None:
            doubts[name] = doubt
    if not doubts:
        return
    print(f"warning: {fingerprint.dataset_name}: {len(doubts)} cases look like another modality than dataset.json says "
          "(their channel chooses the normalisation; correct channel_names or the file names if it is wrong):")  # fmt: skip
    for name, doubt in list(doubts.items())[:5]:
        print(f"  {name} is {doubt}.")
    if len(doubts) > 5:
        print(f"  ... and {len(doubts) - 5} more.")


def _task(case: RawCase, dataset: RawDataset, folder: Path | None, clean: bool, write: bool) -> Task:
    record = None if folder is None else folder / CASES_FOLDER / f"{case.name}.json"
    argument = Measure(case.image, case.channel, dataset.channel_names[case.channel], record, clean, write)
    grid = header_grid(case.image)
    if grid is None:
        return Task(case.name, argument, fingerprint_bytes((0, 0, 0)))
    need = fingerprint_bytes(grid.shape)
    factor = max(1.0, need / free_memory()) ** (1 / 3)
    fits = " x ".join(f"{s * factor:.2g}" for s in grid.spacing_mm)
    return Task(case.name, argument, need, f"Resample the file to about {fits} mm, or leave it out.")


def header_grid(image: Path) -> Grid | None:
    """The grid in a file's header; None for an unreadable one, which the worker that gets it will report."""
    with collected_messages():  # the worker that reads the voxels says them too
        try:
            return read_grid(image)
        except (OSError, ValueError):
            return None


def _known(record: Path) -> CaseRecord | None:
    """An earlier record, None if there is none that is whole and of this version."""
    try:
        return read_dataclass(CaseRecord, record, FINGERPRINT_VERSION)
    except (OSError, ValueError):
        return None
