"""nnssl_train_dino: pretrain PRIMUS on preprocessed cases of one or several data sets, without labels."""

import logging
import math
import signal
import time
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from nnssl_reg.commands.failed_cases import print_failures, record_failures
from nnssl_reg.commands.held_out import build_probe
from nnssl_reg.commands.pair_features import Model
from nnssl_reg.commands.stop_request import StopRequest
from nnssl_reg.commands.training_job import Job, fitted, read_job
from nnssl_reg.commands.training_processes import Place, start_processes, torchrun_place, working_place
from nnssl_reg.commands.zero_shot import ZeroShotDice
from nnssl_reg.evaluation.figures import feature_figure, progress_figure
from nnssl_reg.features.encode import encode
from nnssl_reg.geometry.image import Image
from nnssl_reg.imageio.case_store import read_case
from nnssl_reg.imageio.json_files import write_json
from nnssl_reg.planning.memory import GB, training_bytes
from nnssl_reg.pretraining.case_groups import BLOCK, CaseGroup, slots
from nnssl_reg.pretraining.checkpoint import checkpoint_path, read_info
from nnssl_reg.pretraining.measure import Cost, measure
from nnssl_reg.pretraining.probe import Probe
from nnssl_reg.pretraining.trainer import Observer, train
from nnssl_reg.pretraining.training_log import TrainingLog
from nnssl_reg.pretraining.training_state import TrainingState, start

STEP = "train"
OTHER_SHARE = 0.05  # of a run's time that goes into probes, pictures and checkpoints
PICTURE_SECONDS = 60  # between pictures: they take a second or two
log = logging.getLogger("nnssl_reg")


def run(args: Namespace) -> int:
    """Train, or with args.dry_run say what it would cost. Returns the exit code: 130 or 143 where a signal stopped it.

    With args.num_gpus above 1 that many processes are started here; torchrun has started them already.
    """
    place = torchrun_place(args)
    if place is None and args.num_gpus > 1:
        read_job(args, working_place(args))  # what is wrong is said once, before there are many of us
        return start_processes(work, args)
    return work(args, working_place(args) if place is None else place)


def work(args: Namespace, place: Place) -> int:
    """The work of one process, of one or several."""
    with place:
        job = read_job(args, place)
        place.processes.wait(place.device)  # none has written yet what another one still reads
        if args.fit_minutes is not None:
            job = fitted(job, args.fit_minutes)
        if args.dry_run:
            print_cost(job)
            return 0
        return pretrain(job, StopRequest(args.max_minutes), args)


def print_cost(job: Job) -> None:
    """Memory, time and disk of the whole run, measured over a few steps."""
    network, plan, size = job.run.configuration.network, job.run.configuration.pretraining, job.run.processes.size
    cost = measure(job.run)
    if not job.run.processes.first:
        return
    minutes = cost.seconds_per_step * plan.steps / (1 - OTHER_SHARE) / 60
    time_needed = f"{minutes:.0f} minutes" if minutes < 100 else f"{minutes / 60:.1f} h"
    crops = plan.batch_size * plan.steps
    cases = count_cases(job)
    print(f"{job.run.dataset_name} {job.run.configuration_name}: {cases} cases to train on, {devices(job)}")
    print(f"  network  {cost.parameters / 1e6:.1f} million weights, width {network.embed_dim}, depth {network.depth}")
    print(f"  crops    {plan.batch_size} of {' x '.join(map(str, plan.crop_size))} voxels in each of {plan.steps} steps")
    print(f"  memory   {memory_told(job, cost)}{' in each process' if size > 1 else ''}")
    speed = plan.batch_size / cost.seconds_per_step
    print(f"  speed    {speed:.3g} crops/s with their reading ({cost.seconds_per_step:.2f} s per step, measured)")
    print(f"  time     {time_needed}, {OTHER_SHARE:.0%} of it for probes, pictures and checkpoints")
    print(f"  data     {crops} crops, {crops / cases:.0f} of each case")
    print(f"  disk     {4 * cost.checkpoint_bytes / GB:.2f} GB (checkpoints latest, previous, best and final) in {job.folder}")
    print("Nothing was written.")


def count_cases(job: Job) -> int:
    """Cases to train on."""
    return sum(len(group.names) for group in job.run.groups)


def memory_told(job: Job, cost: Cost) -> str:
    """The memory of a process, measured or else predicted."""
    network, plan = job.run.configuration.network, job.run.configuration.pretraining
    main = [] if cost.main_bytes is None else [f"{cost.main_bytes / GB:.1f} GB of main memory"]
    if cost.gpu_bytes is not None:
        return f"{cost.gpu_bytes / GB:.1f} GB of the GPU's" + "".join(f", {part}" for part in main) + " (measured)"
    if job.run.device.type == "cpu" and main:
        return main[0] + " (measured)"
    return f"{training_bytes(network, plan, 'bfloat16', job.run.processes.size) / GB:.1f} GB (predicted)"


def pretrain(job: Job, stop: StopRequest, args: Namespace) -> int:
    """Train, with a progress bar, pictures and a log in the run's folder."""
    plan, first = job.run.configuration.pretraining, job.run.processes.first
    if first:
        job.folder.mkdir(parents=True, exist_ok=True)
        write_json(job.folder / "nnsslPlans.json", job.plans)
        write_json(job.folder / "configuration.json", {"configuration": job.run.configuration_name})
    silent = args.no_pbar or not first
    with tqdm(total=plan.steps, initial=job.step, unit="step", disable=silent, dynamic_ncols=True) as bar, stop:
        training_log = TrainingLog(job.folder, bar.write, silent=not first)
        training_log.forget_after(job.step)
        training_log.line(opening(job, args))
        state = start(job.run, job.checkpoint, job.step)
        probe = make_probe(job, state, args) if first else None
        observer = Observer(on_step=lambda step, loss: _advance(bar, step, loss), should_stop=lambda: bool(stop),
                            **({"on_epoch": Pictures(job)} if first else {}))  # fmt: skip
        finished = train(job.run, state, job.folder, training_log, observer, probe)
    incomplete = tell_left_out(job, training_log.left_out)
    if first and finished:
        print(f"Finished after {state.step} steps: {checkpoint_path(job.folder, 'final')}")
        print_best(job.folder)
    elif first:
        print(f"{why_stopped(stop, args)} at step {state.step} of {plan.steps}, saved to "
              f"{checkpoint_path(job.folder, 'latest')}. The same command with --continue goes on from there.")  # fmt: skip
    return int(incomplete and first) if finished else stop.exit_code


def make_probe(job: Job, state: TrainingState, args: Namespace) -> Probe | None:
    """The probe of the held-out cases, and of the labelled pairs that args name. Raises ValueError where these do not serve."""
    probe = build_probe(job.run, job.probed)
    if args.probe_pairs is None:
        return probe
    if probe is None:
        raise ValueError(f"-probe_pairs {args.probe_pairs}: nothing in the cases held out could be probed, so leave it out.")
    model = Model(job.folder, job.run.configuration, state.pair.teacher.encoder)
    return replace(probe, dice=ZeroShotDice(args.probe_pairs, model, job.run.device))


def tell_left_out(job: Job, left_out: dict[str, str]) -> bool:
    """Record and print what could not be read, one process after the other; whether there is any."""
    processes = job.run.processes
    for rank in range(processes.size):
        if rank == processes.rank and left_out:
            cases = [(Path(case).name, Path(f"{case}.b2nd"), reason) for case, reason in left_out.items()]
            step = STEP if processes.first else f"{STEP}, process {rank}"
            print_failures(job.run.dataset_name, cases, record_failures(job.folder, step, cases))
        processes.wait(job.run.device)
    return processes.any(bool(left_out), job.run.device)


def why_stopped(stop: StopRequest, args: Namespace) -> str:
    """What ended a run before its last step."""
    if stop.signal:
        return f"Stopped by {signal.Signals(stop.signal).name}"
    return "Stopped by another of its processes" if args.max_minutes is None else f"Stopped after {args.max_minutes:g} minutes"


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
    trained = {group.folder / name for group in job.run.groups for name in group.names}
    sources = "" if len(job.run.groups) == 1 else f" ({told_groups(job.run.groups)})"
    kept = "held out for the probe" if trained.isdisjoint(job.probed) else "trained on and probed"
    return (f"{origin}: {job.run.dataset_name} {job.run.configuration_name}, {len(trained)} cases{sources} on "
            f"{devices(job)}, {plan.steps} steps of {plan.batch_size} crops, seed {job.run.seed}{said}; {kept}: "
            f"{', '.join(case.name for case in job.probed)}. A student that knows "
            f"nothing has the loss ln K = {math.log(plan.prototypes):.3f}.")  # fmt: skip


def told_groups(groups: Sequence[CaseGroup]) -> str:
    """How many cases of each group there are, and how many samples of hundred are theirs."""
    counts = slots([group.share for group in groups])
    of = [f"{group.modality} of {group.folder.parent.name}".strip() for group in groups]
    return ", ".join(f"{len(group.names)} {name}, {100 * count / BLOCK:g} % of the crops"
                     for group, name, count in zip(groups, of, counts))  # fmt: skip


def devices(job: Job) -> str:
    """What the run computes on."""
    size = job.run.processes.size
    if size == 1:
        return str(job.run.device)
    shares = ", weights in shares" if job.run.configuration.pretraining.sharded else ""
    return f"{size} processes ({job.run.device.type}{shares})"


class Pictures:
    """progress.png and the held-out case's tokens, at most once a minute and at the end of the run."""

    def __init__(self, job: Job):
        self.job = job
        self.case, self.image = first_image(job.probed)
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
        self.drawn = time.monotonic()
        if self.image is None:
            return
        tokens = encode(self.image, encoder, window_size=plan.window_size, window_overlap=plan.window_overlap,
                        token_shifts=(1, 1, 1), device=run.device)  # fmt: skip
        feature_figure(folder / "pca_latest.png", self.image, tokens, (self.case,), f"{title}, step {state.step}")


def first_image(cases: Sequence[Path]) -> tuple[str, Image | None]:
    """The first of the cases that can be read, and its name."""
    for case in cases:
        try:
            return case.name, read_case(case.parent, case.name)[0]
        except (ValueError, OSError) as error:
            log.warning("%s is not pictured: %s", case, error)
    return "", None


def _advance(bar: tqdm, step: int, loss: float) -> None:
    bar.update(step - bar.n)
    bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
