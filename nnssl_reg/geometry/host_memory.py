"""Pages of the computer's memory: kept for what a GPU writes next, or given back to the system; and how many there were."""

import ctypes
import sys
from pathlib import Path

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


def peak_bytes() -> int | None:
    """The most memory this program has held so far, bytes; None where the system does not tell (Windows)."""
    own = Path("/proc/self/status")  # Linux' ru_maxrss begins with that of the process which started this one
    if own.exists():
        return 1024 * int(own.read_text().split("VmHWM:")[1].split()[0])
    if sys.platform == "win32":
        return None
    import resource  # here, because it exists on Unix only

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
