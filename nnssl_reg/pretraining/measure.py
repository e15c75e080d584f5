"""What a run will cost, from a few steps of it on this machine."""

import time
from dataclasses import dataclass

import torch

from nnssl_reg.pretraining.crop_loader import close_loader, open_loader
from nnssl_reg.pretraining.trainer import next_windows, train_step
from nnssl_reg.pretraining.training_state import Run, TrainingState, start

WARM_STEPS = 2  # that do not count: memory is claimed, kernels are chosen, files are opened
FEWEST_STEPS, MOST_STEPS = 3, 30  # that count ...
SECONDS = 10.0  # ... until this time is up


@dataclass(frozen=True)
class Cost:
    """seconds_per_step: mean; gpu_bytes: peak allocated on a GPU, None elsewhere; checkpoint_bytes: of one checkpoint."""

    parameters: int
    seconds_per_step: float
    gpu_bytes: int | None
    checkpoint_bytes: int


def measure(run: Run, seconds: float = SECONDS) -> Cost:
    """Trains a throw-away copy for a few steps, with as many reading processes as the run will have; writes nothing.

    All processes of a run measure together; each is told the time of the slowest and the memory of the fullest.
    """
    state = start(run)
    loader = open_loader(run.window_request, 0, run.configuration.pretraining.workers)
    gpu = run.device.type == "cuda"
    if gpu:
        torch.cuda.reset_peak_memory_stats(run.device)
    try:
        _steps(run, state, loader, WARM_STEPS, 0.0)
        per_step = _steps(run, state, loader, FEWEST_STEPS, seconds)
    finally:
        close_loader(loader)
    moments = sum(v.numel() * v.element_size() for s in state.optimizer.state.values() for v in s.values())
    weights = sum(v.numel() * v.element_size() for v in state.pair.state_dict().values())
    peak = torch.cuda.max_memory_allocated(run.device) if gpu else 0
    per_step, peak = run.processes.largest(torch.tensor([per_step, peak], device=run.device)).tolist()
    return Cost(
        parameters=sum(p.numel() for p in state.pair.student.encoder.parameters()),
        seconds_per_step=per_step,
        gpu_bytes=int(peak) if gpu else None,
        checkpoint_bytes=moments + weights,
    )


def _steps(run: Run, state: TrainingState, loader, fewest: int, seconds: float) -> float:
    """Train for some steps and at least so long, but no more than MOST_STEPS; the mean time of a step."""
    began, done, going_on = time.perf_counter(), 0, True
    while going_on:
        train_step(run, state, next_windows(loader))  # reads its losses back, so the device has finished
        state.step += 1
        done += 1
        late = time.perf_counter() - began >= seconds
        going_on = done < fewest or done < MOST_STEPS and not run.processes.any(late, run.device)
    return (time.perf_counter() - began) / done
