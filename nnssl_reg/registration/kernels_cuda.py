"""The steps of ConvexAdam for CUDA devices, each as the function of its name in kernels_torch says, in Triton."""

from collections.abc import Callable

import numpy as np
import torch

from nnssl_reg.geometry.triton_devices import chosen, held
from nnssl_reg.registration import adam_triton, search_triton
from nnssl_reg.registration.cells import Cells
from nnssl_reg.registration.kernels_cpu import box_taps, smallest_unit
from nnssl_reg.registration.kernels_torch import displacements, part

__all__ = ["block_means", "cost_volume", "coupled_argmin", "energy_gradient", "packed", "part", "repeat", "smallest_unit",
           "smooth", "smooth_adam_step"]  # fmt: skip
_BETAS = (0.9, 0.999)
_FEW = 3  # steps that are quicker done than captured


def packed(values, middle, unit: float, mask) -> torch.Tensor:
    """See kernels_torch.packed; 16-bit integers, and features of 0 up to a multiple of those that a thread loads at once."""
    values = values.sub(middle.view(-1, 1, 1, 1)).div_(unit).round_()
    values = values if mask is None else values.mul_(mask)
    channels, together = len(values), adam_triton.TOGETHER
    padded = channels if channels < together else -(-channels // together) * together
    out = torch.zeros(*values.shape[1:], padded, dtype=torch.int16, device=values.device)
    out[..., :channels] = values.permute(1, 2, 3, 0)
    return out


def energy_gradient(fixed: Cells, moving: Cells, field, matrix, weights, out=None) -> torch.Tensor:
    """See kernels_torch.energy_gradient."""
    out = torch.empty_like(field, memory_format=torch.contiguous_format) if out is None else out
    adam_triton.energy_gradient(fixed, moving, field, matrix, weights, out)
    return out


def smooth(values, passes: int, out=None, scratch=None) -> torch.Tensor:
    """See kernels_torch.smooth."""
    out = torch.empty_like(values, memory_format=torch.contiguous_format) if out is None else out
    scratch = torch.empty_like(out) if scratch is None else scratch
    adam_triton.smooth_sweeps(values.contiguous(), box_taps(passes), out, (out, scratch))
    return out


def smooth_adam_step(parameter, gradient, moments, passes: int, rate: float, step, scratch=None) -> None:
    """See kernels_torch.smooth_adam_step; step: a number, or what `repeat` gives in its place."""
    if not isinstance(step, torch.Tensor):
        step = torch.tensor([beta**step for beta in _BETAS], dtype=torch.float64, device=parameter.device)
    gradient = gradient.contiguous()
    scratch = torch.empty_like(gradient) if scratch is None else scratch
    adam_triton.smooth_sweeps(gradient, box_taps(passes), parameter, (scratch, gradient), (rate, moments, step))


def repeat(step: Callable, times: int, device: torch.device) -> None:
    """See kernels_torch.repeat; each call gets the betas to the power of its number, (2,) float64 on the device.

    After one call the launches of a second are captured as a graph, which is then replayed: it costs the host almost nothing.
    A step should make no tensors, for a graph would keep their memory to itself.
    """
    with chosen(device):
        betas = torch.tensor(_BETAS, dtype=torch.float64, device=device)
        powers = torch.ones_like(betas)

        def once() -> None:
            powers.mul_(betas)
            step(powers)

        if device.type != "cuda" or times <= _FEW:
            for _ in range(times):
                once()
            return
        once()  # compiles what is not yet, which cannot be captured
        _replay(once, times - 1, device)


def _replay(once: Callable, times: int, device: torch.device) -> None:
    """Capture one call on a stream of its own, where nothing else is launched, and run it `times` times on the current one."""
    graph, current, apart = torch.cuda.CUDAGraph(), torch.cuda.current_stream(device), torch.cuda.Stream(device)
    apart.wait_stream(current)
    with torch.cuda.stream(apart):
        graph.capture_begin(capture_error_mode="thread_local")
        try:
            once()
        finally:
            graph.capture_end()
    current.wait_stream(apart)
    for _ in range(times):
        graph.replay()
    current.synchronize()  # the graph must not go before it has run


def block_means(cells: Cells, matrix, field, factor, radius) -> tuple[torch.Tensor, torch.Tensor]:
    """See kernels_torch.block_means."""
    return search_triton.block_means(cells, matrix, field, factor, radius)


def cost_volume(fixed, moving, valid, counts, radius, passes: int, out) -> torch.Tensor:
    """See kernels_torch.cost_volume."""
    steps = displacements(radius).numpy().astype(np.int32) + np.array(radius, np.int32)
    offsets = steps @ np.array([moving.shape[1] * moving.shape[2], moving.shape[2], 1], np.int32)
    return search_triton.cost_volume(fixed, moving, valid, counts, held(offsets, fixed.device), passes, out)


def coupled_argmin(cost, displacements, field, weight: float, least) -> torch.Tensor:
    """See kernels_torch.coupled_argmin."""
    return search_triton.coupled_argmin(cost, displacements, field, weight)
