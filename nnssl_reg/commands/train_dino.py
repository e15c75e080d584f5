"""nnssl_train_dino: pretrain PRIMUS on preprocessed cases of one data set, without labels."""

import logging
import math
import signal
import time
from argparse import Namespace
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from tqdm import tqdm

from nnssl_reg.commands.held_out import build_probe, split
from nnssl_reg.commands.preprocess import image_plan_fingerprint, read_plans
from nnssl_reg.commands.stop_request import StopRequest
from nnssl_reg.evaluation.figures import feature_figure, progress_figure
from nnssl_reg.features.encode import encode
from nnssl_reg.geometry.image import Image
from nnssl_reg.imageio.case_store import case_names, read_case, read_properties
from nnssl_reg.imageio.json_files import write_json
from nnssl_reg.imageio.raw_dataset import find_dataset
from nnssl_reg.paths import preprocessed_folder, results_folder
from nnssl_reg.planning.memory import GB, training_bytes
from nnssl_reg.planning.overrides import apply_overrides, with_steps
from nnssl_reg.planning.plans import Configuration, Plans
from nnssl_reg.pretraining.checkpoint import checkpoint_path, newest_checkpoint, read_configuration, read_info
from nnssl_reg.pretraining.measure import measure
from nnssl_reg.pretraining.requirements import require_trainable
from nnssl_reg.pretraining.trainer import Observer, train
from nnssl_reg.pretraining.training_log import TrainingLog
from nnssl_reg.pretraining.training_state import Run, TrainingState, start

DEFAULT_CONFIGURATION = "3d_fullres"
PICTURE_SECONDS = 60  # between pictures: they take a second or two
FIT_SHARE = 0.92  # of the given minutes; the rest is for checkpoints, probes and pictures
log = logging.getLogger("nnssl_reg")


@dataclass(frozen=True)
class Job:
    """What the arguments ask for. probed: the cases to probe; checkpoint: where to go on from, with the steps done there."""

    run: Run
    plans: Plans
    folder: Path
    probed: tuple[str, ...]
    checkpoint: Path | None
    step: int


def run(args: Namespace) -> int:
    """Train, or with args.dry_run say what it would cost. Returns the exit code: 130 or 143 where a signal stopped it."""
    if args.num_gpus != 1:
        raise ValueError(f"-num_gpus {args.num_gpus}: training runs on one device for now; leave the flag out.")
    job = read_job(args)
    if args.fit_minutes is not None and job.checkpoint is None:
        job = fitted(job, args.fit_minutes)
    require_trainable(job.run.configuration)
    if args.dry_run:
        print_cost(job)
        return 0
    return pretrain(job, StopRequest(args.max_minutes), args)


def read_job(args: Namespace) -> Job:
    """The job, from the plans, the preprocessed cases and what an earlier run has left."""
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
    device = chosen_device(args.device)
    run = Run(configuration, name, cases_root.name, cases, trained, seed, device)
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


def chosen_device(flag: str | None) -> torch.device:
    """The device of -device, by default the GPU if there is one. Raises ValueError if it is not there."""
    if flag is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(flag)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"-device {flag} cannot be used here: {str(error).splitlines()[0]}. Try -device cpu.") from error
    return device


def fitted(job: Job, minutes: float) -> Job:
    """The job with as many steps as fit into the minutes on this machine."""
    require_trainable(job.run.configuration)
    seconds = measure(job.run).seconds_per_step
    steps = max(10, int(FIT_SHARE * 60 * minutes / seconds))
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


def print_cost(job: Job) -> None:
    """Memory, time and disk of the whole run, measured over a few steps."""
    network, plan = job.run.configuration.network, job.run.configuration.pretraining
    cost = measure(job.run)
    precision = "float32" if job.run.device.type == "cpu" else "bfloat16"
    memory = cost.gpu_bytes or training_bytes(network, plan, precision)
    print(f"{job.run.dataset_name} {job.run.configuration_name}: {len(job.run.case_names)} cases to train on, {job.run.device}")
    print(f"  network  {cost.parameters / 1e6:.1f} million weights, width {network.embed_dim}, depth {network.depth}")
    print(f"  crops    {plan.batch_size} of {' x '.join(map(str, plan.crop_size))} voxels in each of {plan.steps} steps")
    print(f"  memory   {memory / GB:.1f} GB ({'measured' if cost.gpu_bytes else 'predicted'})")
    print(f"  time     {cost.seconds_per_step * plan.steps / 3600:.1f} h ({cost.seconds_per_step:.2f} s per step, measured)")
    print(f"  disk     {4 * cost.checkpoint_bytes / GB:.2f} GB (checkpoints latest, previous, best and final) in {job.folder}")
    print("Nothing was written.")


def pretrain(job: Job, stop: StopRequest, args: Namespace) -> int:
    """Train, with a progress bar, pictures and a log in the run's folder."""
    plan = job.run.configuration.pretraining
    job.folder.mkdir(parents=True, exist_ok=True)
    write_json(job.folder / "nnsslPlans.json", job.plans)
    write_json(job.folder / "configuration.json", {"configuration": job.run.configuration_name})
    with tqdm(total=plan.steps, initial=job.step, unit="step", disable=args.no_pbar, dynamic_ncols=True) as bar, stop:
        training_log = TrainingLog(job.folder, bar.write)
        training_log.forget_after(job.step)
        training_log.line(opening(job, args))
        state, probe = start(job.run, job.checkpoint, job.step), build_probe(job.run, job.probed)
        observer = Observer(on_step=lambda step, loss: _advance(bar, step, loss), on_epoch=Pictures(job),
                            should_stop=lambda: bool(stop))  # fmt: skip
        finished = train(job.run, state, job.folder, training_log, observer, probe)
    if finished:
        print(f"Finished after {state.step} steps: {checkpoint_path(job.folder, 'final')}")
        print_best(job.folder)
        return 0
    why = f"Stopped by {signal.Signals(stop.signal).name}" if stop.signal else f"Stopped after {args.max_minutes:g} minutes"
    print(f"{why} at step {state.step} of {plan.steps}, saved to {checkpoint_path(job.folder, 'latest')}. "
          "The same command with --continue goes on from there.")  # fmt: skip
    return stop.exit_code


def print_best(folder: Path) -> None:
    """What the best checkpoint can do, if there is one."""
    path = checkpoint_path(folder, "best")
    if path.exists():
        best = read_info(path)
        print(f"Best by the probe: {path.name} of step {best.step}, {best.probe_recall:.1%} of the tokens found within one "
              f"token, median error {best.probe_error_mm:.1f} mm.")  # fmt: skip


def opening(job: Job, args: Namespace) -> str:
    """The first line of the log."""
    plan = job.run.configuration.pretraining
    origin = f"Going on from {job.checkpoint} (step {job.step})" if job.checkpoint else "Starting"
    said = f"; with {', '.join(args.overrides)}" if args.overrides else ""
    kept = "held out for the probe" if set(job.probed).isdisjoint(job.run.case_names) else "trained on and probed"
    return (f"{origin}: {job.run.dataset_name} {job.run.configuration_name}, {len(job.run.case_names)} cases on "
            f"{job.run.device}, {plan.steps} steps of {plan.batch_size} crops, seed {job.run.seed}{said}; {kept}: "
            f"{', '.join(job.probed)}. A student that knows "
            f"nothing has the loss ln K = {math.log(plan.prototypes):.3f}.")  # fmt: skip


class Pictures:
    """progress.png and the held-out case's tokens, at most once a minute and at the end of the run."""

    def __init__(self, job: Job):
        self.job = job
        self.image: Image = read_case(job.run.cases_folder, job.probed[0])[0]
        self.drawn = -math.inf

    def __call__(self, state: TrainingState, training_log: TrainingLog) -> None:
        """Called at every epoch."""
        last = state.step == self.job.run.configuration.pretraining.steps
        if training_log.trained is None or time.monotonic() - self.drawn < PICTURE_SECONDS and not last:
            return
        run, folder = self.job.run, self.job.folder
        title = f"{run.dataset_name} {run.configuration_name}"
        progress_figure(folder / "progress.png", training_log.rows, training_log.trained["log_prototypes"], title)
        plan, encoder = run.configuration.features, state.pair.teacher.encoder
        tokens = encode(self.image, encoder, window_size=plan.window_size, window_overlap=plan.window_overlap,
                        token_shifts=(1, 1, 1), device=run.device)  # fmt: skip
        feature_figure(folder / "pca_latest.png", self.image, tokens, (self.job.probed[0],), f"{title}, step {state.step}")
        self.drawn = time.monotonic()


def _advance(bar: tqdm, step: int, loss: float) -> None:
    bar.update(step - bar.n)
    bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
