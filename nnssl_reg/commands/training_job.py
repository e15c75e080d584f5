"""What a training command is asked to do: data, plans, device and where to go on from, read and checked before it begins."""

from argparse import Namespace
from dataclasses import dataclass, replace
from pathlib import Path

from nnssl_reg.commands.held_out import split
from nnssl_reg.commands.preprocess import image_plan_fingerprint, read_plans
from nnssl_reg.commands.training_processes import Place
from nnssl_reg.imageio.case_store import case_names, read_properties
from nnssl_reg.imageio.raw_dataset import find_dataset
from nnssl_reg.paths import preprocessed_folder, results_folder
from nnssl_reg.planning.overrides import apply_overrides, with_steps
from nnssl_reg.planning.plans import Configuration, Plans
from nnssl_reg.pretraining.checkpoint import newest_checkpoint, read_configuration
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
    probed: tuple[str, ...]
    checkpoint: Path | None
    step: int


def read_job(args: Namespace, place: Place) -> Job:
    """The job, from the plans, the preprocessed cases and what an earlier run has left. place: of this process."""
    dataset, name = chosen_names(args)
    cases_root = find_dataset(preprocessed_folder(args.preprocessed), dataset)
    plans = read_plans(cases_root, args.p)
    if name not in plans.configurations:
        raise ValueError(f"{cases_root / plans.plans_name}.json has no configuration {name!r}, but "
                         f"{', '.join(plans.configurations)}.")  # fmt: skip
    cases = cases_root / f"{plans.plans_name}_{name}"
    names = usable_cases(cases, plans.configurations[name])
    folder = results_folder(args.results) / cases_root.name / f"DINO__{plans.plans_name}__{name}"
    found = newest_checkpoint(folder)
    if found and not (args.resume or args.dry_run):
        raise ValueError(f"{folder} holds a run of {found[1].step} steps. Go on with --continue, or move the folder away (or "
                         "give another -results) to begin anew.")  # fmt: skip
    found = found if args.resume else None
    planned = plans.configurations[name] if found is None else read_configuration(folder)
    overrides = args.overrides if args.epochs is None else [*epochs_as_steps(args.epochs, planned), *args.overrides]
    configuration = configured(planned, overrides, begun=found is not None)
    seed = found[1].seed if found else args.seed
    trained, probed = split(names)
    require_trainable(configuration, place.processes.size)
    run = Run(configuration, name, cases_root.name, cases, trained, seed, place.device, place.processes)
    plans = replace(plans, configurations={**plans.configurations, name: configuration})
    return Job(run, plans, folder, probed, *((found[0], found[1].step) if found else (None, 0)))


def chosen_names(args: Namespace) -> tuple[str, str]:
    """Data set and configuration, by position or by flag. Raises ValueError where both say different things or none does."""
    for what, position, flag in (("data set", args.dataset, args.d), ("configuration", args.configuration, args.c)):
        if position and flag and position != flag:
            raise ValueError(f"Two {what}s are given, {position} and {flag}; leave one out.")
    dataset = args.dataset or args.d
    if not dataset:
        raise ValueError("Which data set? Give its number or name first, e.g. nnssl_train_dino 1 3d_fullres.")
    return dataset, args.configuration or args.c or DEFAULT_CONFIGURATION


def usable_cases(folder: Path, configuration: Configuration) -> list[str]:
    """The stored cases. Raises ValueError if there are none or if they were made by other plans."""
    names = case_names(folder)
    if not names:
        raise ValueError(f"{folder} holds no preprocessed case; run nnssl_preprocess -d {folder.parent.name}.")
    for name in (names[0], names[-1]):
        properties = read_properties(folder, name)
        if properties.plans_fingerprint != image_plan_fingerprint(configuration, properties.channel):
            raise ValueError(f"{folder / name}.b2nd was preprocessed by other plans than those there are now; run "
                             f"nnssl_preprocess -d {folder.parent.name} again (what still fits is kept).")  # fmt: skip
    return names


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
    """The job with as many steps as fit into the minutes on this machine."""
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
