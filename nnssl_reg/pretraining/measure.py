"""What a run will cost, from a few steps of it on this machine."""

import time
from dataclasses import dataclass

import torch

from nnssl_reg.pretraining.crop_loader import close_loader, open_loader
from nnssl_reg.pretraining.trainer import next_windows, train_step
from nnssl_reg.pretraining.training_state import Run, start


@dataclass(frozen=True)
class Cost:
    """seconds_per_step: median; gpu_bytes: peak allocated on the GPU, None elsewhere; checkpoint_bytes: of one checkpoint."""

    parameters: int
    seconds_per_step: float
    gpu_bytes: int | None
    checkpoint_bytes: int


def measure(run: Run, steps: int = 3) -> Cost:
    """Trains a throw-away copy for one step to warm up and a few to measure; writes nothing."""
    state = start(run)
    loader = open_loader(run.window_request, 0, workers=0)
    if run.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(run.device)
    seconds = []
    for _ in range(1 + steps):
        began = time.perf_counter()
        train_step(run, state, next_windows(loader))  # reads its losses back, so the device has finished
        state.step += 1
        seconds.append(time.perf_counter() - began)
    close_loader(loader)
    moments = sum(v.numel() * v.element_size() for s in state.optimizer.state.values() for v in s.values())
    weights = sum(v.numel() * v.element_size() for v in state.pair.state_dict().values())
    return Cost(
        parameters=sum(p.numel() for p in state.pair.student.encoder.parameters()),
        seconds_per_step=sorted(seconds[1:])[steps // 2],
        gpu_bytes=torch.cuda.max_memory_allocated(run.device) if run.device.type == "cuda" else None,
        checkpoint_bytes=moments + weights,
    )
