"""The global part of ConvexAdam: a dense search over displacements, regularised by coupled convex optimisation."""

import torch
import torch.nn.functional as F

from nnssl_reg.geometry.sampling import inside, sample_voxels
from nnssl_reg.registration.kernels_torch import displacements, moving_position

# the coupling between the best match and its smooth version rises until both agree (Heinrich et al. 2014; Siebert et al. 2021)
COUPLING = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
INVERSE_CONSISTENCY_ITERATIONS = 15


def search(fixed, moving, matrix, field, factor, radius, kernels, masks=(None, None)) -> torch.Tensor:
    """Search the displacement of blocks of cells around the current field, and return the field so improved.

    fixed (X, Y, Z, C), moving (X', Y', Z', C) features; matrix (3, 4): fixed cell -> moving cell; field (X, Y, Z, 3) in fixed
    cells; factor: cells per block along each axis; radius: search radius in blocks along each axis; masks: where fixed
    and moving cells count (bool, or None: everywhere).
    """
    blocks = match_blocks(fixed, moving, matrix, field, factor, radius, kernels, masks)
    return compose(_upsample(blocks, factor, field.shape[:3]), field)


def match_blocks(fixed, moving, matrix, field, factor, radius, kernels, masks=(None, None)) -> torch.Tensor:
    """The inverse consistent displacement of each block relative to the current field, in blocks; arguments as in search."""
    margin = [f * r for f, r in zip(factor, radius)]
    around, valid = _warped_with_margin(moving, matrix, field, factor, margin, masks[1])
    counts = torch.ones(field.shape[:3], dtype=torch.bool, device=field.device) if masks[0] is None else masks[0]
    whole = [_fill_to_blocks(values, factor) for values in (fixed, counts[..., None])]
    fixed_blocks, fixed_counts = _valid_blocks(whole[0], whole[1][..., 0], factor)
    moving_blocks, valid_blocks = _valid_blocks(around, valid, factor)
    inner = tuple(slice(r, n - r) for r, n in zip(radius, moving_blocks.shape))
    beyond = F.pad(fixed_counts.float(), _both_sides(radius)) > 0
    padded = F.pad(fixed_blocks, [0, 0, *_both_sides(radius)])
    forward = _coupled(fixed_blocks, moving_blocks, valid_blocks, fixed_counts, radius, kernels)
    backward = _coupled(moving_blocks[inner].contiguous(), padded, beyond, valid_blocks[inner], radius, kernels)
    return inverse_consistent(forward, backward)


def compose(step: torch.Tensor, field: torch.Tensor) -> torch.Tensor:
    """x -> step(x) + field(x + step(x)), both (X, Y, Z, 3) in cells."""
    axes = [torch.arange(n, device=step.device, dtype=step.dtype) for n in step.shape[:3]]
    position = torch.stack(torch.meshgrid(*axes, indexing="ij")) + step.permute(3, 0, 1, 2)
    return (step + sample_voxels(field.permute(3, 0, 1, 2), position).permute(1, 2, 3, 0)).contiguous()


def inverse_consistent(forward: torch.Tensor, backward: torch.Tensor) -> torch.Tensor:
    """The forward field moved to where forward and backward undo each other, (X, Y, Z, 3) in blocks."""
    for _ in range(INVERSE_CONSISTENCY_ITERATIONS):
        # compose(a, b) = a + b(x + a), so half of a - b(x + a) is a - compose(a, b) / 2
        forward, backward = forward - compose(forward, backward) / 2, backward - compose(backward, forward) / 2
    return forward


def all_within(mask: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
    """Whether all cells that a value at position (3, ...) is interpolated from lie within mask (X, Y, Z); (...) bool."""
    return sample_voxels(mask[None].float(), position)[0] > 1 - 1e-4


def _coupled(fixed, moving, valid, counts, radius, kernels) -> torch.Tensor:
    """Displacement of each block in blocks, (X, Y, Z, 3); blocks that do not count follow their neighbours."""
    cost = kernels.cost_volume(fixed, moving, valid, radius)
    cost *= counts[..., None]  # no preference
    cost = kernels.smooth(cost, 2)
    candidates = displacements(radius, fixed.device)
    field = torch.zeros(*fixed.shape[:3], 3, device=fixed.device)
    for weight in (0.0, *COUPLING):
        field = kernels.smooth(kernels.coupled_argmin(cost, candidates, field, weight), 1)
    return field


def _warped_with_margin(moving, matrix, field, factor, margin, moving_mask):
    """The moving features where the field leads, on the fixed lattice (whole blocks) with a margin of cells; and validity."""
    to_whole = [(-n) % f for n, f in zip(field.shape, factor)]
    pad = [p for m, e in zip(margin[::-1], to_whole[::-1]) for p in (m, m + e)]
    extended = F.pad(field.permute(3, 0, 1, 2)[None], pad, mode="replicate")[0].permute(1, 2, 3, 0)
    shifted = extended - torch.tensor(margin, device=field.device, dtype=field.dtype)  # the margin moved the first cell
    position = moving_position(shifted, matrix)
    values = sample_voxels(moving.permute(3, 0, 1, 2), position).permute(1, 2, 3, 0)
    valid = inside(position, moving.shape[:3])
    if moving_mask is not None:
        valid &= all_within(moving_mask, position)
    return values, valid


def _valid_blocks(values, valid, factor):
    """Mean over the valid cells of each block (X, Y, Z, C), and whether at least half of its cells are valid."""
    weight = valid[..., None].to(values.dtype)
    share = _blocks(weight, factor)
    return _blocks(values * weight, factor) / share.clamp(min=1e-6), (share[..., 0] >= 0.5).contiguous()


def _fill_to_blocks(values, factor):
    """Zeros at the ends of (X, Y, Z, C), up to whole blocks."""
    return F.pad(values, [0, 0, *(p for n, f in zip(values.shape[2::-1], factor[::-1]) for p in (0, (-n) % f))])


def _blocks(values, factor):
    """Means over blocks of `factor` cells, (X, Y, Z, C) -> fewer cells, contiguous."""
    pooled = F.avg_pool3d(values.permute(3, 0, 1, 2)[None], tuple(factor), stride=tuple(factor))[0]
    return pooled.permute(1, 2, 3, 0).contiguous()


def _upsample(field, factor, shape):
    """A field in blocks -> in cells on the lattice of `shape` (block centres lie (factor - 1) / 2 cells in)."""
    axes = [(torch.arange(n, device=field.device, dtype=field.dtype) - (f - 1) / 2) / f for n, f in zip(shape, factor)]
    position = torch.stack(torch.meshgrid(*axes, indexing="ij"))
    values = sample_voxels(field.permute(3, 0, 1, 2), position).permute(1, 2, 3, 0)
    return values * torch.tensor(factor, device=field.device, dtype=field.dtype)


def _both_sides(radius):
    return [r for n in radius[::-1] for r in (n, n)]
