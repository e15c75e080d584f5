"""What a run will cost, from a few steps of it on this machine."""

import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from nnssl_reg.geometry.host_memory import peak_bytes
from nnssl_reg.pretraining.crop_loader import close_loader, open_loader
from nnssl_reg.pretraining.trainer import steps
from nnssl_reg.pretraining.training_state import Run, TrainingState, start

WARM_STEPS = 2  # that do not count: memory is claimed, kernels are chosen, files are opened
FEWEST_STEPS, MOST_STEPS = 3, 30  # that count ...
SECONDS = 10.0  # ... until this time is up
HEADER_BYTES = 150  # of a tensor in a safetensors file: its name, type, shape and place


@dataclass(frozen=True)
class Cost:
    """seconds_per_step: mean, reading included; checkpoint_bytes: of one checkpoint.

    gpu_bytes: peak allocated on a GPU, None elsewhere; main_bytes: peak of this process, None where it cannot be asked.
    """

    parameters: int
    seconds_per_step: float
    gpu_bytes: int | None
    main_bytes: int | None
    checkpoint_bytes: int


def measure(run: Run, seconds: float = SECONDS) -> Cost:
    """Trains a throw-away copy for a few steps, with as many reading processes as the run will have; writes nothing.

    All processes of a run measure together; each is told the time of the slowest and the memory of the fullest.
    """
    state = start(run)
    loader = open_loader(run.window_request, 0, run.configuration.pretraining.workers, run.device)
    gpu = run.device.type == "cuda"
    if gpu:
        torch.cuda.reset_peak_memory_stats(run.device)
    try:
        trained = steps(run, state, loader)
        _pace(run, state, trained, WARM_STEPS, 0.0)
        per_step = _pace(run, state, trained, FEWEST_STEPS, seconds)
    finally:
        close_loader(loader)
    moments = [value for values in state.optimizer.state.values() for value in values.values()]
    saved = [*moments, *state.pair.state_dict().values()]
    peak = torch.cuda.max_memory_allocated(run.device) if gpu else 0
    per_step, peak = run.processes.largest(torch.tensor([per_step, peak], device=run.device)).tolist()
    return Cost(
        parameters=sum(p.numel() for p in state.pair.student.encoder.parameters()),
        seconds_per_step=per_step,
        gpu_bytes=int(peak) if gpu else None,
        main_bytes=peak_bytes(),
        checkpoint_bytes=sum(value.numel() * value.element_size() + HEADER_BYTES for value in saved),
    )


def _pace(run: Run, state: TrainingState, trained: Iterator, fewest: int, seconds: float) -> float:
    """Train for some steps and at least so long, but no more than MOST_STEPS; the mean time of a step."""
    began, done, going_on = time.perf_counter(), 0, True
    while going_on:
        next(trained)  # reads its values back, so the device has finished
        state.step += 1
        done += 1
        late = time.perf_counter() - began >= seconds
        going_on = done < fewest or done < MOST_STEPS and not run.processes.any(late, run.device)
    return (time.perf_counter() - began) / done
