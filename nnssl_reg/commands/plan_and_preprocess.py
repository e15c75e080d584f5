"""nnssl_plan_and_preprocess: fingerprint, plans and preprocessed cases of raw data sets, in one go."""

from argparse import Namespace
from contextlib import ExitStack
from pathlib import Path

from nnssl_reg.commands.case_pool import Pool, Task
from nnssl_reg.commands.dask_pool import pool_for
from nnssl_reg.commands.extract_fingerprint import extract_fingerprint, header_grid
from nnssl_reg.commands.failed_cases import failures_of, print_failures
from nnssl_reg.commands.plan_experiment import check_plans_name, plan_dataset
from nnssl_reg.commands.preprocess import preprocess_dataset
from nnssl_reg.commands.selection import raw_datasets, with_each
from nnssl_reg.imageio.images import check_same_grid, read_image, read_labels
from nnssl_reg.imageio.raw_dataset import RawCase, RawDataset
from nnssl_reg.paths import preprocessed_folder, raw_folder
from nnssl_reg.planning.memory import fingerprint_bytes


def run(args: Namespace) -> int:
    """The three steps for the data sets that args select. Returns 1 if a case or a data set had to be left out."""
    check_plans_name(args.overwrite_plans_name)
    preprocessed = preprocessed_folder(args.preprocessed, make=not args.dry_run)
    datasets = raw_datasets(raw_folder(args.raw), args.d, write=not args.dry_run)

    def work(dataset: RawDataset) -> bool:
        folder = preprocessed / dataset.name
        fingerprint, failed = extract_fingerprint(dataset, folder, measuring, clean=args.clean, write=not args.dry_run)
        plans = plan_dataset(fingerprint, folder, args, write=not args.dry_run)
        if not (args.no_pp or args.dry_run):
            failed = failed | preprocess_dataset(dataset, plans, folder, pool, args.c, clean=args.clean, skip=frozenset(failed))
        return not failed

    with ExitStack() as pools:
        pool = pools.enter_context(pool_for(args.np, args.dask, not args.no_pbar))
        measuring = pool
        if args.npfp != args.np:
            measuring = pools.enter_context(pool_for(args.npfp, args.dask, not args.no_pbar))
        if args.verify_dataset_integrity:
            verify(datasets, measuring)
        return with_each(datasets, work)


def verify(datasets: list[RawDataset], pool: Pool) -> None:
    """Read every image and label. Raises ValueError with all that is wrong, before anything else is done."""
    problems = []
    for dataset in datasets:
        tasks = [Task(case.name, case, _bytes(case.image)) for case in dataset.cases]
        failures = failures_of(pool.run(verify_case, tasks, f"{dataset.name}: verifying"))
        print_failures(dataset.name, failures, None)
        problems += [reason for _, _, reason in failures]
    if problems:
        raise ValueError(f"{len(problems)} cases are not as they should be:\n" + "\n".join(problems))
    print(f"All {sum(len(dataset.cases) for dataset in datasets)} cases can be read, their labels lie on their images' grids.")


def verify_case(case: RawCase) -> None:
    """In a worker: read an image and its label. Raises ValueError or OSError for what is wrong with them."""
    image = read_image(case.image)
    if case.label is not None:
        check_same_grid(image, read_labels(case.label), name=str(case.image))


def _bytes(image: Path) -> float:
    grid = header_grid(image)
    return fingerprint_bytes((0, 0, 0) if grid is None else grid.shape)
