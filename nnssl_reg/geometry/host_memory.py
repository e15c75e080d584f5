"""Tensors of a GPU in the computer's memory, by way of pages that torch keeps for the next."""

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
