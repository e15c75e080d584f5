"""What a training command is asked to do: data, plans, device and where to go on from, read and checked before it begins."""

import re
from argparse import Namespace
from dataclasses import dataclass, replace
from pathlib import Path

from nnssl_reg.commands.selection import dataset_folders
from nnssl_reg.commands.training_data import read_training_data
from nnssl_reg.commands.training_processes import Place
from nnssl_reg.paths import preprocessed_folder, results_folder
from nnssl_reg.planning.overrides import apply_overrides, with_steps
from nnssl_reg.planning.plans import Configuration, Plans
from nnssl_reg.pretraining.checkpoint import CheckpointInfo, newest_checkpoint, read_configuration
from nnssl_reg.pretraining.measure import measure
from nnssl_reg.pretraining.requirements import require_trainable
from nnssl_reg.pretraining.training_state import Run

DEFAULT_CONFIGURATION = "3d_fullres"
FIT_SHARE = 0.92  # of the given minutes; the rest is for checkpoints, probes and pictures


@dataclass(frozen=True)
class Job:
    """What the arguments ask for. probed: the cases to probe; checkpoint: where to go on from, with the steps done there."""

    run: Run
    plans: Plans
    folder: Path
    probed: tuple[Path, ...]
    checkpoint: Path | None
    step: int


def read_job(args: Namespace, place: Place) -> Job:
    """The job, from the plans, the preprocessed cases and what an earlier run has left. place: of this process."""
    selections, name = chosen_names(args)
    check_length(args)
    if args.weights is not None and (len(args.weights) != len(selections) or not all(w > 0 for w in args.weights)):
        raise ValueError(f"-weights takes a positive number for each data set ({len(selections)}), got {args.weights}.")
    preprocessed = preprocessed_folder(args.preprocessed, make=False)
    if not preprocessed.is_dir():
        raise FileNotFoundError(f"{preprocessed} (nnssl_preprocessed) does not exist; run nnssl_plan_and_preprocess first.")
    data = read_training_data(dataset_folders(preprocessed, selections), args.p, name)
    plans = data.plans
    folder = results_folder(args.results, make=not args.dry_run) / data.name / f"DINO__{plans.plans_name}__{name}"
    found = newest_checkpoint(folder)
    if found and not (args.resume or args.dry_run):
        raise ValueError(f"{folder} holds a run of {found[1].step} steps. Go on with --continue, or move the folder away (or "
                         "give another -results) to begin anew.")  # fmt: skip
    found = found if args.resume else None
    planned = plans.configurations[name] if found is None else read_configuration(folder)
    overrides = args.overrides if args.epochs is None else [*epochs_as_steps(args.epochs, planned), *args.overrides]
    configuration = configured(planned, overrides, begun=found is not None)
    seed = chosen_seed(args, folder, found and found[1])
    require_trainable(configuration, place.processes.size)
    groups = data.groups(configuration.pretraining.modality_balance, args.weights)
    run = Run(configuration, name, data.name, groups, seed, place.device, place.processes)
    plans = replace(plans, configurations={**plans.configurations, name: configuration})
    return Job(run, plans, folder, data.probed, *((found[0], found[1].step) if found else (None, 0)))


def chosen_names(args: Namespace) -> tuple[list[str], str]:
    """Data sets and configuration, by position or by flag. Raises ValueError where both say different things or none does."""
    sets = [word for word in args.dataset if re.fullmatch(r"\d+|Dataset\d+_.+", word)]
    others = [word for word in args.dataset if word not in sets]
    if len(others) > 1:
        raise ValueError(
            f"{' and '.join(others)}: one of them may be the configuration, data sets are numbers or Dataset001_Name."
        )
    for what, position, flag in (("data set", sets, args.d), ("configuration", others, args.c and [args.c])):
        if position and flag and position != flag:
            raise ValueError(f"Two {what}s are given, {' '.join(position)} and {' '.join(flag)}; leave one out.")
    if not (sets or args.d):
        raise ValueError("Which data set? Give its number or name first, e.g. nnssl_train_dino 1 3d_fullres.")
    return sets or args.d, args.c or (others or [DEFAULT_CONFIGURATION])[0]


def check_length(args: Namespace) -> None:
    """Raise ValueError where the length of the run is given twice."""
    given = ["-epochs"] if args.epochs is not None else []
    given += [f"--set {o}" for o in args.overrides if o.partition("=")[0].strip() == "pretraining.steps"]
    if args.fit_minutes is not None and given:
        raise ValueError(f"-fit_minutes {args.fit_minutes:g} chooses the number of steps, and so does {given[0]}; leave one "
                         f"out. -max_minutes {args.fit_minutes:g} stops a run of any length after that time.")  # fmt: skip


def chosen_seed(args: Namespace, folder: Path, begun: CheckpointInfo | None) -> int:
    """The run's seed, 0 by default. Raises ValueError where it has begun with another one than --seed says."""
    if begun is None:
        return args.seed or 0
    if args.seed not in (None, begun.seed):
        raise ValueError(f"--seed {args.seed}: {folder} holds a run of seed {begun.seed}, which goes on with that. Leave out "
                         "--seed, or begin another run with another -results.")  # fmt: skip
    return begun.seed


def epochs_as_steps(epochs: int, planned: Configuration) -> list[str]:
    """-epochs as --set would have it; an epoch stays as long as it is planned."""
    if epochs < 1:
        raise ValueError(f"-epochs {epochs}: a run has at least one epoch.")
    each = planned.pretraining.steps_per_epoch
    return [f"pretraining.steps={epochs * each}", f"pretraining.steps_per_epoch={each}"]


def configured(planned: Configuration, overrides: list[str], begun: bool) -> Configuration:
    """The planned configuration with the changes of the command line; the schedules of a run that has begun stay."""
    changed = apply_overrides(planned, overrides)
    if begun or changed.pretraining.steps == planned.pretraining.steps or changed.pretraining.steps < 1:
        return changed
    scaled = replace(planned, pretraining=with_steps(planned.pretraining, changed.pretraining.steps))
    return apply_overrides(scaled, overrides)  # once more: what was said about the schedules themselves counts


def fitted(job: Job, minutes: float) -> Job:
    """The job with as many steps as fit into the minutes on this machine; a run that has begun keeps its steps, and says so."""
    if job.checkpoint is not None:
        if job.run.processes.first:
            steps = job.run.configuration.pretraining.steps
            print(f"-fit_minutes {minutes:g} is for a run's beginning: this one keeps its {steps} steps, {job.step} of them "
                  f"done. -max_minutes {minutes:g} would save and stop after that time.")  # fmt: skip
        return job
    seconds = measure(job.run).seconds_per_step
    steps = max(10, int(FIT_SHARE * 60 * minutes / seconds))
    if job.run.processes.first:
        print(f"A step takes {seconds:.2f} s: {steps} steps fit into {minutes:g} minutes.")
    plan = with_steps(job.run.configuration.pretraining, steps)
    reasons = {
        **job.run.configuration.reasons,
        "pretraining.steps": f"As many as fit into {minutes:g} minutes at {seconds:.2f} s.",
    }
    configuration = replace(job.run.configuration, pretraining=plan, reasons=reasons)
    configurations = {**job.plans.configurations, job.run.configuration_name: configuration}
    run = replace(job.run, configuration=configuration)
    return replace(job, run=run, plans=replace(job.plans, configurations=configurations))
