"""The training loop: read, look, compare, step, follow, watch, save."""

import contextlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from nnssl_reg.planning.plans import Configuration
from nnssl_reg.pretraining.checkpoint import CheckpointInfo, checkpoint_path, restore, save_checkpoint, versions
from nnssl_reg.pretraining.crop_loader import WindowRequest, close_loader, open_loader
from nnssl_reg.pretraining.optimizer import apply_settings, build_optimizer
from nnssl_reg.pretraining.schedules import settings_at
from nnssl_reg.pretraining.student_teacher import StudentTeacher, Targets
from nnssl_reg.pretraining.training_log import TrainingLog, describe, row_of
from nnssl_reg.pretraining.views import make_views, window_size

LOG_STEPS = 10  # steps averaged into one row of the log


@dataclass(frozen=True)
class Run:
    """What stays the same during a run. cases: the folder of stored cases and the names of those to train on."""

    configuration: Configuration
    configuration_name: str
    dataset_name: str
    cases_folder: Path
    case_names: tuple[str, ...]
    seed: int
    device: torch.device

    @property
    def window_request(self) -> WindowRequest:
        """What the loader reads."""
        plan, spacing = self.configuration.pretraining, self.configuration.image.spacing_mm
        return WindowRequest(self.cases_folder, self.case_names, plan.crop_size, window_size(plan, spacing), plan.batch_size,
                             plan.foreground_share, self.seed)  # fmt: skip

    def info(self, step: int) -> CheckpointInfo:
        """What a checkpoint after `step` steps says of itself."""
        return CheckpointInfo(step, self.seed, self.dataset_name, self.configuration_name, self.configuration.network,
                              self.configuration.pretraining, versions())  # fmt: skip


@dataclass
class TrainingState:
    """What changes: the networks, the optimiser's moments, and the number of steps done."""

    pair: StudentTeacher
    optimizer: torch.optim.AdamW
    step: int = 0


@dataclass(frozen=True)
class Observer:
    """What the caller wants to hear. should_stop: asked after every step; true saves and ends the run."""

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


def start(run: Run, checkpoint: Path | None = None, step: int = 0) -> TrainingState:
    """Fresh networks from the seed, or those of a checkpoint after `step` steps."""
    network, plan = run.configuration.network, run.configuration.pretraining
    generator = torch.Generator().manual_seed(seed_of(run.seed, -1)[0])
    pair = StudentTeacher(network, plan, generator).to(run.device)
    state = TrainingState(pair, build_optimizer(pair.student, network.depth, plan.layer_decay), step)
    if checkpoint is not None:
        restore(checkpoint, pair, state.optimizer)
    return state


def train(run: Run, state: TrainingState, folder: Path, log: TrainingLog, observer: Observer) -> bool:
    """Train to the plan's last step. Returns whether it got there; if not, should_stop asked for the end.

    Saves checkpoint_latest at every epoch and when stopped, checkpoint_final at the end. Raises ValueError for a loss that
    is not finite.
    """
    plan = run.configuration.pretraining
    averages, since = Averages(), time.perf_counter()
    loader = open_loader(run.window_request, state.step, plan.workers)
    try:
        while state.step < plan.steps:
            windows = next_windows(loader)
            waited = time.perf_counter() - since
            values, targets = train_step(run, state, windows)
            require_finite(values, state.step, folder)
            state.step += 1
            now = time.perf_counter()
            averages.add({**values, "seconds_per_step": now - since, "seconds_waiting": waited})
            since = now
            observer.on_step(state.step, values["total"])
            stopping = observer.should_stop()
            if state.step % LOG_STEPS == 0 or state.step == plan.steps:
                log.row(row_of(state.step, averages.take(), targets, plan))
            if state.step % plan.steps_per_epoch == 0 or state.step == plan.steps or stopping:
                save_checkpoint(folder, "latest", run.info(state.step), state.pair, state.optimizer)
                log.line(describe(log.rows[-1], plan) if log.rows else f"step {state.step} of {plan.steps}")
                observer.on_epoch(state, log)
            if stopping and state.step < plan.steps:
                return False
    finally:
        close_loader(loader)
    save_checkpoint(folder, "final", run.info(state.step), state.pair, state.optimizer)
    return True


def train_step(run: Run, state: TrainingState, windows: np.ndarray) -> tuple[dict[str, float], Targets]:
    """One optimiser step on windows (B, 1, X, Y, Z); the loss terms, the gradient's norm, and the teacher's targets."""
    configuration, plan = run.configuration, run.configuration.pretraining
    settings = settings_at(state.step, plan)
    cpu_seed, device_seed = seed_of(run.seed, state.step)
    cpu = torch.Generator().manual_seed(cpu_seed)
    on_device = torch.Generator(run.device).manual_seed(device_seed)
    batch = torch.from_numpy(windows).to(run.device, non_blocking=True)
    views = make_views(batch, plan, configuration.network.patch_size, configuration.image.spacing_mm, cpu, on_device)
    with seeded(device_seed, run.device), mixed_precision(run.device):
        losses, targets = state.pair.losses(views, settings, on_device)
    state.optimizer.zero_grad(set_to_none=True)
    losses["total"].backward()
    norm = torch.nn.utils.clip_grad_norm_(state.pair.student.parameters(), plan.gradient_clip)
    values = {**{name: float(loss.detach()) for name, loss in losses.items()}, "gradient_norm": float(norm)}
    if all(map(math.isfinite, values.values())):  # else the weights stay as they are, and the caller stops
        apply_settings(state.optimizer, settings)
        state.optimizer.step()
        state.pair.update_teacher(settings.teacher_momentum)
    return values, targets


def next_windows(loader) -> np.ndarray:
    """The next step's windows. Raises ValueError if a worker process died; it has said why."""
    try:
        return next(loader)["windows"]
    except RuntimeError as error:
        raise ValueError("A process that reads the cases died; its message is above. With too little memory, set "
                         "pretraining.workers=0; with a damaged case, run nnssl_preprocess again.") from error  # fmt: skip


def require_finite(values: dict[str, float], step: int, folder: Path) -> None:
    """Raises ValueError naming the terms that are not finite and the last good checkpoint."""
    bad = [f"{name} {value}" for name, value in values.items() if not math.isfinite(value)]
    if bad:
        latest = checkpoint_path(folder, "latest")
        rest = f"the last good checkpoint is {latest}" if latest.exists() else "there is no checkpoint yet"
        raise ValueError(f"Training broke down in step {step + 1}: {', '.join(bad)}; {rest}. Go on with --continue and a "
                         "gentler setting, e.g. --set pretraining.learning_rate=0.0003.")  # fmt: skip


def seed_of(seed: int, step: int) -> tuple[int, int]:
    """Two seeds of a step, for parameters and for the device; step -1 is the start."""
    first, second = np.random.SeedSequence([seed, step + 1]).generate_state(2, np.uint64)
    return int(first >> 1), int(second >> 1)  # torch takes 63 bits everywhere


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
