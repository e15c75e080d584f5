"""The training loop: read, look, compare, step, follow, watch, save, and go back when it breaks down."""

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from nnssl_reg.geometry.host_memory import give_back_free_pages
from nnssl_reg.pretraining.crop_loader import close_loader, open_loader
from nnssl_reg.pretraining.guards import go_back, probed, require_finite, watch
from nnssl_reg.pretraining.optimizer import apply_settings
from nnssl_reg.pretraining.probe import Probe, ProbeClock
from nnssl_reg.pretraining.processes import assembled, whole
from nnssl_reg.pretraining.recovery import Trouble
from nnssl_reg.pretraining.schedules import settings_at
from nnssl_reg.pretraining.student_teacher import Targets
from nnssl_reg.pretraining.training_log import TrainingLog, describe, row_of
from nnssl_reg.pretraining.training_state import Run, TrainingState, save, seed_of
from nnssl_reg.pretraining.views import Views, make_views

LOG_STEPS = 10  # steps averaged into one row of the log


@dataclass(frozen=True)
class Observer:
    """What the caller wants to hear. should_stop: asked after every step; true saves and ends the run.

    on_epoch: while it is called, the state's teacher is whole.
    """

    on_step: Callable[[int, float], None] = lambda step, loss: None
    on_epoch: Callable[[TrainingState, TrainingLog], None] = lambda state, log: None
    should_stop: Callable[[], bool] = lambda: False


@dataclass
class Averages:
    """Sums over the steps since the last row."""

    sums: dict[str, float] = field(default_factory=dict)
    count: int = 0

    def add(self, values: dict[str, float]) -> None:
        """One step's values."""
        self.count += 1
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value

    def take(self) -> dict[str, float]:
        """The means; begins anew."""
        means = {name: total / self.count for name, total in self.sums.items()}
        self.sums, self.count = {}, 0
        return means


def train(
    run: Run, state: TrainingState, folder: Path, log: TrainingLog, observer: Observer, probe: Probe | None = None
) -> bool:
    """Train to the plan's last step. Returns whether it got there; if not, should_stop asked for the end.

    Saves checkpoint_latest at every epoch and when stopped, checkpoint_best where the probe finds its best, checkpoint_final
    at the end. A loss that is not finite or collapsed features lead back to an earlier checkpoint and gentler settings.
    Raises ValueError where that has not helped.
    """
    clock, probe = ProbeClock(), probe if run.processes.first else None
    if run.processes.any(probe is not None and state.step == 0 and not log.rows, run.device):
        log.row({"step": 0, **probed(run, state, folder, log, probe, clock)})
    while True:
        try:
            finished = train_on(run, state, folder, log, observer, probe, clock)
            break
        except Trouble as trouble:
            go_back(run, state, folder, log, trouble)
    if finished:
        save(run, state, folder, "final")
    run.processes.wait(run.device)  # the first one has written everything
    return finished


def train_on(run: Run, state: TrainingState, folder: Path, log: TrainingLog, observer: Observer, probe: Probe | None,
             clock: ProbeClock) -> bool:  # fmt: skip
    """Train from the state's step on; as `train`. Raises Trouble."""
    plan = state.plan
    if state.step >= plan.steps:
        return True
    averages, since = Averages(), time.perf_counter()
    loader = open_loader(run.window_request, state.step, plan.workers, run.device)
    try:
        for values, targets, waited in steps(run, state, loader, log):
            require_finite(values, state.step)
            state.step += 1
            now = time.perf_counter()
            averages.add({**values, "seconds_per_step": now - since, "seconds_waiting": waited})
            since = now
            observer.on_step(state.step, values["total"])
            stopping = run.processes.any(observer.should_stop(), run.device)
            last = state.step == plan.steps
            if state.step % LOG_STEPS == 0 or last:
                row = row_of(state.step, averages.take(), targets, state.pair)
                watch(run, state, row, log)
                asked = run.processes.any(probe is not None and (last or clock.due() and not stopping), run.device)
                log.row({**row, **(probed(run, state, folder, log, probe, clock) if asked else {})})
                if run.device.type == "cpu":
                    give_back_free_pages()
            if state.step % plan.steps_per_epoch == 0 or last or stopping:
                save(run, state, folder, "latest")
                row = log.trained
                log.line(f"{state.health}: {describe(row, plan)}" if row else f"step {state.step} of {plan.steps}")
                with assembled(state.pair.teacher):
                    observer.on_epoch(state, log)
            if stopping or last:
                return last
    finally:
        close_loader(loader)


def steps(run: Run, state: TrainingState, loader: Iterator[dict],
          log: TrainingLog | None = None) -> Iterator[tuple[dict[str, float], Targets, float]]:  # fmt: skip
    """Optimiser steps without end: the loss terms and the gradient's norm, the teacher's targets, seconds waited for data.

    The caller counts them in state.step. The targets are this process's, all else is the whole batch's. While a GPU computes
    a step, the views of the next one are made. Where a value is not finite the weights stayed as they were.
    """
    views, waited = views_of(run, state, loader, state.step, log)
    while True:
        values, targets = learn(run, state, views)
        seconds = waited
        views, waited = views_of(run, state, loader, state.step + 1, log)
        yield dict(zip(values, torch.stack(list(values.values())).tolist())), targets, seconds


def views_of(run: Run, state: TrainingState, loader: Iterator[dict], step: int,
             log: TrainingLog | None = None) -> tuple[Views, float]:  # fmt: skip
    """The views of a step, made of the loader's next windows, and the seconds waited for these."""
    configuration, began = run.configuration, time.perf_counter()
    windows = torch.as_tensor(next_windows(loader, log), device=run.device)  # (B, 1, X, Y, Z)
    waited = time.perf_counter() - began
    generator = torch.Generator().manual_seed(seed_of(run.seed, step, len(state.recoveries))[0])
    return make_views(windows, state.plan, configuration.network.patch_size, configuration.image.spacing_mm, generator,
                      run.processes), waited  # fmt: skip


def learn(run: Run, state: TrainingState, views: Views) -> tuple[dict[str, torch.Tensor], Targets]:
    """One optimiser step on views; the values as `steps` gives them, but still on the device, and the teacher's targets."""
    plan, processes = state.plan, run.processes
    settings = settings_at(state.step, plan)
    device_seed = seed_of(run.seed, state.step, len(state.recoveries))[1]
    on_device = torch.Generator(run.device).manual_seed(device_seed)
    if settings.gram_weight > 0:
        state.pair.anchor()
    with seeded(device_seed + processes.rank, run.device), mixed_precision(run.device):
        losses, targets = state.pair.losses(views, settings, on_device, state.student)
    state.optimizer.zero_grad(set_to_none=True)
    (processes.size * losses["total"]).backward()  # the mean of the processes' gradients becomes their sum
    norm = whole(torch.nn.utils.clip_grad_norm_(state.pair.student.parameters(), plan.gradient_clip))
    values = {**{name: loss.detach().float() for name, loss in losses.items()}, "gradient_norm": norm.float()}
    apply_settings(state.optimizer, settings)
    # fused AdamW leaves the weights where this is not 0, as for torch's GradScaler, and no one waits for the device to say so
    state.optimizer.found_inf = (~torch.stack(list(values.values())).isfinite().all()).float()
    state.optimizer.step()
    state.pair.update_teacher(settings.teacher_momentum)
    return values, targets


def next_windows(loader, log: TrainingLog | None = None) -> np.ndarray | torch.Tensor:
    """The next step's windows; cases that could not be read go to the log. Raises ValueError if a reading process died."""
    try:
        batch = next(loader)
        for case, reason in batch["unreadable"].items() if log is not None else ():
            log.leave_out(case, reason)
        return batch["windows"]
    except RuntimeError as error:
        raise ValueError("A process that reads the cases died; its message is above. With too little memory, set "
                         "pretraining.workers=0; with a damaged case, run nnssl_preprocess again.") from error  # fmt: skip


@contextlib.contextmanager
def seeded(seed: int, device: torch.device):
    """The global random state, seeded for stochastic depth, which draws from it, and put back afterwards."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def mixed_precision(device: torch.device) -> contextlib.AbstractContextManager:
    """bfloat16 where the device computes faster in it: GPUs, and CPUs with AVX512-BF16 or AMX."""
    if device.type == "cuda":
        return torch.autocast("cuda", torch.bfloat16)
    fast = device.type == "cpu" and getattr(torch.cpu, "_is_avx512_bf16_supported", bool)()  # no public question for it
    return torch.autocast("cpu", torch.bfloat16) if fast else contextlib.nullcontext()
