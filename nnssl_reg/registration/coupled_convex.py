"""The global part of ConvexAdam: a dense search over displacements, regularised by coupled convex optimisation."""

import numpy as np
import torch
import torch.nn.functional as F

from nnssl_reg.geometry.grid import Grid
from nnssl_reg.geometry.sampling import sample_displaced, sample_grid
from nnssl_reg.registration.cells import Cells
from nnssl_reg.registration.kernels_torch import displacements

# the coupling between the best match and its smooth version rises until both agree (Heinrich et al. 2014; Siebert et al. 2021)
COUPLING = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
INVERSE_CONSISTENCY_ITERATIONS = 15
COST_SMOOTHING = 2  # box filters of 3 blocks


def search(fixed: Cells, moving: Cells, matrix, field, factor, radius, kernels) -> torch.Tensor:
    """Search the displacement of blocks of cells around the current field, and return the field so improved.

    matrix (3, 4): fixed cell -> moving cell; field (3, X, Y, Z) in fixed cells; factor: cells per block along each axis;
    radius: search radius in blocks along each axis.
    """
    blocks = match_blocks(fixed, moving, matrix, field, factor, radius, kernels)
    return compose(_upsample(blocks, factor, field.shape[1:]), field)


def match_blocks(fixed: Cells, moving: Cells, matrix, field, factor, radius, kernels) -> torch.Tensor:
    """The inverse consistent displacement of each block relative to the field, (3, X', Y', Z') in blocks; see search."""
    still = torch.zeros_like(field)
    fixed_blocks, fixed_counts = kernels.block_means(fixed, np.eye(4)[:3], still, factor, [0, 0, 0])
    moving_blocks, valid_blocks = kernels.block_means(moving, matrix, field, factor, radius)
    inner = tuple(slice(r, n - r) for r, n in zip(radius, moving_blocks.shape))
    beyond = F.pad(fixed_counts.float(), _both_sides(radius)) > 0
    padded = F.pad(fixed_blocks, [0, 0, *_both_sides(radius)])
    # the same memory for both directions: fresh pages of it take as long as a quarter of the costs
    room = fixed_blocks.new_empty(*fixed_blocks.shape[:3], len(displacements(radius)))
    forward = _coupled(fixed_blocks, moving_blocks, valid_blocks, fixed_counts, radius, kernels, room)
    moving_inner, moving_counts = moving_blocks[inner].contiguous(), valid_blocks[inner].contiguous()
    backward = _coupled(moving_inner, padded, beyond, moving_counts, radius, kernels, room)
    return inverse_consistent(forward, backward)


def compose(step: torch.Tensor, field: torch.Tensor) -> torch.Tensor:
    """x -> step(x) + field(x + step(x)), both (3, X, Y, Z) in cells."""
    cells = Grid(tuple(step.shape[1:]), np.eye(4))
    return sample_displaced(field, cells, step, cells).add_(step)


def inverse_consistent(forward: torch.Tensor, backward: torch.Tensor) -> torch.Tensor:
    """The forward field moved to where forward and backward undo each other, (3, X, Y, Z) in blocks."""
    blocks = Grid(tuple(forward.shape[1:]), np.eye(4))
    for _ in range(INVERSE_CONSISTENCY_ITERATIONS):
        there = sample_displaced(forward, blocks, backward, blocks)
        back = sample_displaced(backward, blocks, forward, blocks)
        forward, backward = forward.sub(back).div_(2), backward.sub(there).div_(2)
    return forward


def _coupled(fixed, moving, valid, counts, radius, kernels, room) -> torch.Tensor:
    """Displacement of each block in blocks, (3, X, Y, Z); those that do not count follow their neighbours. room: of costs."""
    cost = kernels.cost_volume(fixed, moving, valid, counts, radius, COST_SMOOTHING, room)
    candidates = displacements(radius, fixed.device)
    field = torch.zeros(3, *fixed.shape[:3], device=fixed.device)
    least = torch.empty(fixed.shape[:3], device=fixed.device)
    for weight in (0.0, *COUPLING):
        field = kernels.smooth(kernels.coupled_argmin(cost, candidates, field, weight, least), 1)
    return field


def _upsample(field, factor, shape):
    """A field in blocks -> in cells on the lattice of `shape` (block centres lie (factor - 1) / 2 cells in)."""
    affine = np.diag([*factor, 1.0])
    affine[:3, 3] = (np.array(factor) - 1) / 2
    cells = Grid(tuple(shape), np.eye(4))
    scaled = field * torch.tensor(factor, device=field.device, dtype=field.dtype).view(3, 1, 1, 1)
    return sample_grid(scaled, Grid(tuple(field.shape[1:]), affine), cells)


def _both_sides(radius):
    return [r for n in radius[::-1] for r in (n, n)]
