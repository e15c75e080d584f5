"""The steps of ConvexAdam compiled for CPUs, each as the function of its name in kernels_torch says."""

import math
from functools import cache, lru_cache

import numpy as np
import torch
import torch.nn.functional as F

from nnssl_reg.geometry.filters_cpu import RUN, weigh_middle
from nnssl_reg.geometry.threads import compiled, on_threads
from nnssl_reg.registration import adam_cpu, search_cpu
from nnssl_reg.registration.cells import Cells
from nnssl_reg.registration.kernels_torch import displacements, repeat

__all__ = ["block_means", "cost_volume", "coupled_argmin", "energy_gradient", "packed", "part", "repeat", "smallest_unit",
           "smooth", "smooth_adam_step"]  # fmt: skip

LARGEST = 32767  # of a 16-bit integer
_NO_MASK = np.empty(0, np.bool_)


def smallest_unit(largest: float) -> float:
    """The unit in which features up to `largest` fit 16-bit integers."""
    return max(largest, 1e-12) / LARGEST


def packed(values, middle, unit: float, mask) -> torch.Tensor:
    """See kernels_torch.packed; 16-bit integers."""
    out = _with_slack(torch.empty(0, dtype=torch.int16), (*values.shape[1:], values.shape[0]))
    mask = _NO_MASK.reshape(0, 0, 0) if mask is None else mask.numpy()
    on_threads(
        _pack, values.shape[1], values.contiguous().numpy(), middle.numpy(), np.float32(1 / unit), mask, out.numpy()
    )  # fmt: skip
    return out


@compiled()
def _pack(first, last, values, middle, factor, mask, out):
    channels, nx, ny, nz = values.shape
    for x in range(first, last):
        for y in range(ny):
            for c in range(channels):
                row, target = values[c, x, y], out[x, y]
                for z in range(nz):
                    value = np.rint((row[z] - middle[c]) * factor)
                    target[z, c] = np.int16(value) if mask.shape[0] == 0 or mask[x, y, z] else 0


def part(values: torch.Tensor, box) -> torch.Tensor:
    """See kernels_torch.part."""
    return _with_slack(values, values[box].shape).copy_(values[box])


def energy_gradient(fixed: Cells, moving: Cells, field, matrix, weights, out=None) -> torch.Tensor:
    """See kernels_torch.energy_gradient."""
    out = torch.empty_like(field) if out is None else out
    channels, values = fixed.values.shape[3], [_readable_beyond(c.values) for c in (fixed, moving)]
    lanes = (np.arange(-(-channels // adam_cpu.GROUP) * adam_cpu.GROUP) < channels).astype(np.float32)
    on_threads(
        adam_cpu.energy_gradient, field.shape[1],
        *(v.view(-1).numpy() for v in values), moving.shape, field.numpy(), matrix.astype(np.float32), weights.numpy(),
        np.float32(fixed.unit), _flat(fixed.mask), _flat(moving.mask), channels, lanes, out.numpy(),
    )  # fmt: skip
    return out


def _with_slack(like: torch.Tensor, shape) -> torch.Tensor:
    """An empty tensor of this shape, behind which kernels may read GROUP values, which are 0."""
    count = math.prod(shape)
    storage = like.new_empty(count + adam_cpu.GROUP)
    storage[count:] = 0
    return storage[:count].view(shape)


def _readable_beyond(values: torch.Tensor) -> torch.Tensor:
    """The values as `packed` made them, or a copy with slack."""
    used = (values.storage_offset() + values.numel() + adam_cpu.GROUP) * values.element_size()
    if values.is_contiguous() and used <= values.untyped_storage().nbytes():
        return values
    return _with_slack(values, values.shape).copy_(values)


def smooth(values, passes: int, out=None, scratch=None) -> torch.Tensor:
    """See kernels_torch.smooth."""
    out = torch.empty_like(values, memory_format=torch.contiguous_format) if out is None else out
    _smooth_sweep(values.contiguous(), passes, out, torch.empty(0), _NO_ADAM)
    return out


def smooth_adam_step(parameter, gradient, moments, passes: int, rate: float, step: int, scratch=None) -> None:
    """See kernels_torch.smooth_adam_step."""
    adam = np.array([rate, 1 - 0.9**step, 1 - 0.999**step], np.float32)
    _smooth_sweep(gradient, passes, parameter, moments, adam)


def block_means(cells: Cells, matrix, field, factor, radius) -> tuple[torch.Tensor, torch.Tensor]:
    """See kernels_torch.block_means."""
    shape = [math.ceil(n / f) + 2 * r for n, f, r in zip(field.shape[1:], factor, radius)]
    means, valid = torch.empty(*shape, cells.values.shape[3]), torch.empty(*shape, dtype=torch.bool)
    on_threads(
        search_cpu.block_means, shape[0],
        cells.values.view(-1).numpy(), cells.shape, field.contiguous().numpy(), matrix.astype(np.float32),
        np.float32(cells.unit), _flat(cells.mask), tuple(factor), tuple(radius), cells.values.shape[3], means.numpy(),
        valid.numpy(),
    )  # fmt: skip
    return means, valid


def cost_volume(fixed, moving, valid, counts, radius, passes: int, out) -> torch.Tensor:
    """See kernels_torch.cost_volume."""
    steps = displacements(radius).int() + torch.tensor(radius, dtype=torch.int32)
    shape, taps, inner = fixed.shape[:3], tuple(box_taps(passes)), out[0].numel()
    length = search_cpu.LANES * math.ceil(shape[2] / search_cpu.LANES)
    there = length + 2 * radius[2]
    given = (_in_rows(fixed, length), _in_rows(moving, there), _longer(valid, there), _longer(counts, length), steps)
    on_threads(search_cpu.cost_volume, shape[0], *(t.numpy() for t in given), taps, out.numpy())
    on_threads(weigh_middle, math.ceil(inner / RUN), out.view(-1).numpy(), 0, shape[0], inner, taps)
    return out


def _in_rows(values: torch.Tensor, length: int) -> torch.Tensor:
    """Features (X, Y, Z, C) as rows of one after the other, (X, Y, C', length) C' a multiple of four; what is added is 0."""
    x, y, _, channels = values.shape
    rows = values.new_zeros(x, y, 4 * math.ceil(channels / 4), length)
    rows[:, :, :channels, : values.shape[2]] = values.transpose(2, 3)
    return rows


def _longer(known: torch.Tensor, length: int) -> torch.Tensor:
    """Rows of cells (X, Y, Z) bool as 1 and 0, (X, Y, length)."""
    return F.pad(known.float(), (0, length - known.shape[2]))


def coupled_argmin(cost, displacements, field, weight: float, least) -> torch.Tensor:
    """See kernels_torch.coupled_argmin."""
    out, (columns, places) = torch.empty_like(field), _candidates(displacements)
    on_threads(
        search_cpu.coupled_argmin, len(cost), cost.numpy(), columns, field.numpy(), np.float32(weight), least.numpy(), places,
        out.numpy(),
    )  # fmt: skip
    return out


@lru_cache(maxsize=16)
def _candidates(displacements: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Displacements (K, 3) as columns, and at each place of the search which of them leads there."""
    steps = displacements.numpy()
    radius = np.abs(steps).max(axis=0).astype(int)
    places = np.empty(2 * radius + 1, np.int32)
    places[tuple((steps.astype(int) + radius).T)] = np.arange(len(steps))
    return steps.T.copy(), places


def _smooth_sweep(values: torch.Tensor, passes: int, out, moments, adam) -> None:
    taps = np.pad(box_taps(passes), max(0, 3 - passes))  # the usual number of them, for every other one is compiled anew
    shape = tuple(values.shape[1:])
    flat = [t.view(-1).numpy() for t in (values, out, moments)]
    on_threads(adam_cpu.smooth_sweep, len(values) * shape[0], flat[0], shape, tuple(taps), flat[1], flat[2], adam)


_NO_ADAM = np.empty(0, np.float32)


@cache
def box_taps(passes: int) -> np.ndarray:
    """The filter that `passes` box filters of 3 cells make together."""
    taps = np.ones(1)
    for _ in range(passes):
        taps = np.convolve(taps, np.ones(3) / 3)
    return taps.astype(np.float32)


def _flat(mask: torch.Tensor | None) -> np.ndarray:
    return _NO_MASK if mask is None else mask.contiguous().view(-1).numpy()
