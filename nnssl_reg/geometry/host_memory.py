"""Pages of the computer's memory: kept for what a GPU writes next, or given back to the system."""

import ctypes
import sys

import numpy as np
import torch


def on_host(values: torch.Tensor) -> np.ndarray:
    """A tensor as an array in the computer's memory: its own memory on the CPU, else a copy.

    Of a CUDA device the copy lies in pinned memory, which the device writes itself and which serves again once the array is
    gone; fresh pages take longer to be given by the system than to be filled. For arrays that are soon done with: torch rounds
    pinned memory up to a power of two, and it cannot be swapped out.
    """
    values = values.detach()
    if values.device.type != "cuda":
        return values.cpu().numpy()
    return torch.empty(values.shape, dtype=values.dtype, pin_memory=True).copy_(values).numpy()


def give_back_free_pages() -> None:
    """Have the allocator give pages that nothing uses back to the system, in a tenth of a second; only glibc can.

    Arrays of ever other sizes leave gaps in its heap that it would keep, so that a long training on a CPU took more and more.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)
