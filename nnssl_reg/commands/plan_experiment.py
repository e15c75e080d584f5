"""nnssl_plan_experiment: choose every number from the fingerprint, write nnsslPlans.json, print each choice with its reason."""

from argparse import Namespace
from pathlib import Path

import torch

from nnssl_reg.commands.extract_fingerprint import FILE_NAME as FINGERPRINT_FILE
from nnssl_reg.commands.machine import usable_cores
from nnssl_reg.commands.plan_table import cost_table, entries, table
from nnssl_reg.commands.selection import dataset_folders, with_each
from nnssl_reg.imageio.json_files import read_dataclass, write_json
from nnssl_reg.paths import preprocessed_folder
from nnssl_reg.planning.fingerprint import FINGERPRINT_VERSION, Fingerprint
from nnssl_reg.planning.planner import plan
from nnssl_reg.planning.plans import PLANS_VERSION, Plans

CPU_GB = 8.0  # planned for without a GPU: what a laptop has


def run(args: Namespace) -> int:
    """Plans for the data sets that args select, from their fingerprints. Returns 1 if one could not be planned."""

    def work(folder: Path) -> bool:
        path = folder / FINGERPRINT_FILE
        if not path.is_file():
            raise FileNotFoundError(f"{path} does not exist; run nnssl_extract_fingerprint -d {folder.name} first.")
        plan_dataset(read_dataclass(Fingerprint, path, FINGERPRINT_VERSION), folder, args, write=not args.dry_run)
        return True

    return with_each(dataset_folders(preprocessed_folder(args.preprocessed), args.d), work)


def plan_dataset(fingerprint: Fingerprint, folder: Path | None, args: Namespace, write: bool = True) -> Plans:
    """Plan, print the choices, and write them to `folder`; without `write` print what they would cost instead.

    args: gpu_memory_target, overwrite_target_spacing, overwrite_plans_name.
    """
    check_plans_name(args.overwrite_plans_name)
    memory, whose = memory_target(args.gpu_memory_target)
    plans = plan(fingerprint, memory, args.overwrite_target_spacing, args.overwrite_plans_name)
    print(f"\n{fingerprint.dataset_name}: planned for {memory:g} GB ({whose}).")
    print(table(plans) + "\n")
    if not write or folder is None:
        print(cost_table(plans, fingerprint, memory, torch.cuda.is_available(), usable_cores()))
        return plans
    path = folder / f"{plans.plans_name}.json"
    if path.is_file():
        _say_changes(path, plans)
    write_json(path, plans)
    print(f"{fingerprint.dataset_name}: wrote {path}")
    return plans


def memory_target(flag: float | None) -> tuple[float, str]:
    """GB to plan for, and where the number comes from."""
    if flag is not None:
        return flag, "-gpu_memory_target"
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        return float(int(properties.total_memory / 1e9)), f"this machine's {properties.name}"
    return CPU_GB, "no GPU here, so a CPU or a small GPU; change it with -gpu_memory_target"


def check_plans_name(name: str) -> None:
    """Raise ValueError for a name of plans that cannot be a file's."""
    if not name or any(c in name for c in '/\\:*?"<>|') or name.startswith("."):
        raise ValueError(f"-overwrite_plans_name '{name}' cannot be a file name; use letters, digits and _.")


def _say_changes(path: Path, plans: Plans) -> None:
    """Name the values of earlier plans that these replace."""
    try:
        old = read_dataclass(Plans, path, PLANS_VERSION)
    except ValueError as error:
        print(f"warning: the earlier plans are replaced; they could not be read: {error}")
        return
    changed = [f"{name} is new" for name in plans.configurations if name not in old.configurations]
    changed += [f"{name} is gone" for name in old.configurations if name not in plans.configurations]
    for name in (name for name in plans.configurations if name in old.configurations):
        before = dict(entries(old.configurations[name]))
        for key, value in entries(plans.configurations[name]):
            if before[key] != value:
                changed.append(f"{name} {key}: {before[key]} -> {value}")
    if changed:
        print(f"warning: {path} is replaced, and differs: {'; '.join(changed)}.")
