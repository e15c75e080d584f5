"""Which devices kernels written in Triton run on, and what their launches need there."""

from contextlib import AbstractContextManager, nullcontext
from functools import cache, lru_cache

import numpy as np
import torch


@cache
def runs_triton(device: torch.device) -> bool:
    """Whether a device is a GPU that Triton compiles for, and Triton is installed: with torch on Linux it is."""
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (7, 5):
        return False
    try:
        import triton  # noqa: F401
    except ImportError:
        return False
    return True


def chosen(device: torch.device) -> AbstractContextManager:
    """Kernels are launched on the current GPU, so make it that of their tensors."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def held(numbers: np.ndarray, device: torch.device) -> torch.Tensor:
    """A few numbers on a device, where they stay: a copy in each call would take its time, and a graph may hold none."""
    return _held(numbers.dtype.str, np.ascontiguousarray(numbers).tobytes(), device)


@lru_cache(maxsize=1024)  # many more than other threads ask for while a graph that reads some of them runs
def _held(dtype: str, content: bytes, device: torch.device) -> torch.Tensor:
    return torch.from_numpy(np.frombuffer(content, dtype).copy()).to(device)
