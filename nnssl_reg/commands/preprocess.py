"""nnssl_preprocess: crop, resample, normalise and store every case for every configuration of the plans."""

import hashlib
import json
import logging
import math
from argparse import Namespace
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from nnssl_reg.commands.case_pool import Outcome, Pool, Task
from nnssl_reg.commands.dask_pool import pool_for
from nnssl_reg.commands.extract_fingerprint import header_grid
from nnssl_reg.commands.failed_cases import failures_of, print_failures, record_failures
from nnssl_reg.commands.machine import free_memory
from nnssl_reg.commands.selection import raw_datasets, with_each
from nnssl_reg.geometry.grid import Grid
from nnssl_reg.imageio.case_store import CaseProperties, GridRecord, case_names, is_done, raw_fingerprint, write_case
from nnssl_reg.imageio.images import read_image
from nnssl_reg.imageio.json_files import read_dataclass
from nnssl_reg.imageio.raw_dataset import RawCase, RawDataset
from nnssl_reg.paths import preprocessed_folder, raw_folder
from nnssl_reg.planning.memory import RESAMPLED_BYTES, preprocessing_bytes
from nnssl_reg.planning.plans import PLANS_VERSION, Configuration, ImagePlan, Plans
from nnssl_reg.preprocessing.preprocess_case import PREPROCESSING_VERSION, preprocess_image

STEP = "preprocess"
log = logging.getLogger("nnssl_reg")


@dataclass(frozen=True)
class Target:
    """One configuration of one case: where it goes, what its plan is, and the fingerprint of what matters in that plan."""

    folder: Path
    plan: ImagePlan
    patch_size: tuple[int, int, int]
    crop_size: tuple[int, int, int]
    fingerprint: str


@dataclass(frozen=True)
class Work:
    """One case to preprocess, for all configurations with one read of the file."""

    name: str
    image: Path
    channel: str
    targets: tuple[Target, ...]
    clean: bool


def run(args: Namespace) -> int:
    """Preprocess the data sets that args select by the plans args.p. Returns 1 if a case or a data set was left out."""
    preprocessed = preprocessed_folder(args.preprocessed)
    datasets = raw_datasets(raw_folder(args.raw), args.d)

    def work(dataset: RawDataset) -> bool:
        plans = read_plans(preprocessed / dataset.name, args.p)
        return not preprocess_dataset(dataset, plans, preprocessed / dataset.name, pool, args.c, clean=args.clean)

    with pool_for(args.np, args.dask, not args.no_pbar) as pool:
        return with_each(datasets, work)


def read_plans(folder: Path, plans_name: str) -> Plans:
    """The plans of a data set's preprocessed folder. Raises FileNotFoundError with the command that makes them."""
    path = folder / f"{plans_name}.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; run nnssl_plan_and_preprocess -d {folder.name} first, or choose other "
                                "plans with -p.")  # fmt: skip
    return read_dataclass(Plans, path, PLANS_VERSION)


def preprocess_dataset(dataset: RawDataset, plans: Plans, folder: Path, pool: Pool, names: list[str] | None = None, *,
                       clean: bool = False, skip: frozenset[str] = frozenset()) -> set[str]:  # fmt: skip
    """Preprocess all cases (but those in `skip`) to `folder`/<plans>_<configuration>; returns the names of failed cases.

    names: configurations, None for all of the plans. A case that is there already, from the same bytes and plans, is kept
    (clean: made again).
    """
    chosen = _chosen(plans, names, dataset.name)
    folders = {name: folder / f"{plans.plans_name}_{name}" for name in chosen}
    tasks = [_task(case, chosen, folders, clean) for case in dataset.cases if case.name not in skip]
    outcomes = pool.run(preprocess, tasks, f"{dataset.name}: preprocessing")
    failures = failures_of(outcomes)
    for name in {*skip, *(name for name, _, _ in failures)}:
        _remove(folders.values(), name)  # or training would go on with what a case once was
    print_failures(dataset.name, failures, record_failures(folder, STEP, failures))
    _print_done(dataset, outcomes, folders)
    return {name for name, _, _ in failures}


def preprocess(work: Work) -> int:
    """In a worker: make what is missing of a case; returns for how many configurations it was there already."""
    raw = raw_fingerprint(work.image)
    missing = [t for t in work.targets if work.clean or not is_done(t.folder, work.name, raw, t.fingerprint)]
    if not missing:
        return len(work.targets)
    image = read_image(work.image)
    for target in missing:
        case = preprocess_image(image, target.plan, work.channel)
        shape = case.image.grid.shape
        if any(n < p for n, p in zip(shape, target.patch_size)):
            log.warning(
                "%s is smaller than one token: %s voxels at the plan's spacing; it is padded in training.", work.name, shape
            )
        properties = CaseProperties(
            name=work.name, channel=work.channel, channel_name=target.plan.channels[work.channel].name,
            raw_file=work.image.name, raw_fingerprint=raw, plans_fingerprint=target.fingerprint,
            original_grid=GridRecord.of(case.original_grid), crop_box=case.crop_box, grid=GridRecord.of(case.image.grid),
            statistics=case.statistics, foreground_points=case.foreground_points.tolist(),
        )  # fmt: skip
        target.folder.mkdir(parents=True, exist_ok=True)
        write_case(target.folder, case.image.array, properties, target.crop_size)
    return len(work.targets) - len(missing)


def image_plan_fingerprint(configuration: Configuration, channel: str) -> str:
    """A digest of all that the plans say about how a case of this channel is stored."""
    plan = configuration.image
    channel_plan = asdict(plan.channels[channel]) if channel in plan.channels else None
    said = [PREPROCESSING_VERSION, plan.spacing_mm, plan.crop_margin_mm, channel_plan, configuration.pretraining.crop_size]
    return hashlib.sha1(json.dumps(said, sort_keys=True).encode(), usedforsecurity=False).hexdigest()


def _chosen(plans: Plans, names: list[str] | None, dataset: str) -> dict[str, Configuration]:
    """The configurations to make. A data set whose plans lack one of them is said, and does without."""
    if names is None:
        return plans.configurations
    unknown = [name for name in names if name not in plans.configurations]
    known = ", ".join(plans.configurations)
    if len(unknown) == len(names):
        raise ValueError(f"{dataset}: its plans {plans.plans_name} have no configuration {', '.join(unknown)}, but {known}.")
    if unknown:
        log.warning("%s: its plans %s have no configuration %s, but %s.", dataset, plans.plans_name, ", ".join(unknown), known)
    return {name: plans.configurations[name] for name in names if name not in unknown}


def _task(case: RawCase, chosen: dict[str, Configuration], folders: dict[str, Path], clean: bool) -> Task:
    targets = tuple(
        Target(folders[name], configuration.image, configuration.network.patch_size, configuration.pretraining.crop_size,
               image_plan_fingerprint(configuration, case.channel))
        for name, configuration in chosen.items()
    )  # fmt: skip
    work = Work(case.name, case.image, case.channel, targets, clean)
    grid = header_grid(case.image)
    spacings = [target.plan.spacing_mm for target in targets]
    if grid is None:
        return Task(case.name, work, preprocessing_bytes((0, 0, 0), (1, 1, 1), spacings))
    canonical = grid.canonical()
    need = preprocessing_bytes(canonical.shape, canonical.spacing_mm, spacings)
    return Task(case.name, work, need, _way_out(canonical, min(spacings)))


def _way_out(grid: Grid, spacing_mm) -> str:
    """What to do with a case that does not fit the memory: the spacing that fits, if there is one."""
    rest = free_memory() - preprocessing_bytes(grid.shape, grid.spacing_mm, [(1e6, 1e6, 1e6)])
    if rest <= 0:
        return "The raw file alone does not fit; resample it to a coarser spacing, or leave it out."
    voxels = math.prod(grid.extent_mm) / math.prod(spacing_mm)
    factor = max(1.0, voxels * RESAMPLED_BYTES / rest) ** (1 / 3)
    fits = " ".join(f"{s * factor:.2g}" for s in spacing_mm)
    return f"It would fit at -overwrite_target_spacing {fits} (mm)."


def _remove(folders: Iterable[Path], name: str) -> None:
    for folder in folders:
        (folder / f"{name}.json").unlink(missing_ok=True)  # first: without it, the voxels are not a case
        (folder / f"{name}.b2nd").unlink(missing_ok=True)


def _print_done(dataset: RawDataset, outcomes: list[Outcome], folders: dict[str, Path]) -> None:
    """What was written and kept, and cases that no raw file stands for any more."""
    done = [outcome for outcome in outcomes if outcome.error is None]
    kept = sum(outcome.value == len(folders) for outcome in done)
    print(f"{dataset.name}: {len(done)} cases preprocessed, {kept} of them before. They are in:")
    names = {case.name for case in dataset.cases}
    for folder in folders.values():
        there = case_names(folder) if folder.is_dir() else []
        size = sum(file.stat().st_size for file in folder.glob("*.b2nd")) / 1e9
        print(f"  {folder}  ({len(there)} cases, {size:.2f} GB)")
        orphans = [name for name in there if name not in names]
        if orphans:
            print(f"  warning: {len(orphans)} cases there have no raw file (any more), and would be trained on: "
                  f"{', '.join(orphans[:5])}{' ...' if len(orphans) > 5 else ''}. Delete them if they should not.")  # fmt: skip
