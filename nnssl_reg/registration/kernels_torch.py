"""The steps of ConvexAdam in plain torch: what runs on GPUs, and the reference that the CPU kernels are tested against.

Features are channels last, (X, Y, Z, C); displacements are (3, X, Y, Z) in cells of the fixed lattice.
"""

from collections.abc import Callable
from functools import lru_cache

import torch
import torch.nn.functional as F

from nnssl_reg.geometry.sampling import inside, sample_voxels
from nnssl_reg.registration.cells import Cells


def smallest_unit(largest: float) -> float:
    """The unit that features up to `largest` are stored in: 1, as floating point needs none."""
    return 1.0


def packed(values, middle, unit: float, mask) -> torch.Tensor:
    """Features (C, X, Y, Z) less `middle` (C,), in units, channels last; 0 outside the mask."""
    values = (values - middle.view(-1, 1, 1, 1)) / unit
    return (values if mask is None else values * mask).permute(1, 2, 3, 0).contiguous()


def part(values: torch.Tensor, box) -> torch.Tensor:
    """Packed features in a box (three slices) of cells."""
    return values[box].contiguous()


def warp_cost(fixed: Cells, moving: Cells, field, matrix) -> torch.Tensor:
    """Squared feature difference at the warped position of every fixed cell, (X, Y, Z).

    field (3, X, Y, Z); matrix (3, 4) numpy: fixed cell -> moving cell. 0 where the position lies outside the moving lattice,
    or where either does not count.
    """
    position = moving_position(field, matrix)
    sampled = sample_voxels(moving.values.permute(3, 0, 1, 2), position).permute(1, 2, 3, 0)
    cost = (sampled - fixed.values).square().sum(-1) * (fixed.unit**2 * inside(position, moving.shape))
    cost = cost if fixed.mask is None else cost * fixed.mask
    return cost if moving.mask is None else cost * all_within(moving.mask, position)


def energy_gradient(fixed: Cells, moving: Cells, field, matrix, weights, out=None) -> torch.Tensor:
    """Derivative by the field (3, X, Y, Z) of the sum of warp_cost and of diffusion, weights[a, c] (u_c(x + e_a) - u_c(x))^2.

    weights: (3, 3), axis a and component c; out: a contiguous tensor to put it in.
    """
    with torch.enable_grad():
        leaf = field.detach().requires_grad_(True)
        (gradient,) = torch.autograd.grad(warp_cost(fixed, moving, leaf, matrix).sum(), leaf)
    for axis in range(3):
        step = 2 * weights[axis].view(3, 1, 1, 1) * torch.diff(field, dim=axis + 1)
        gradient.narrow(axis + 1, 1, field.shape[axis + 1] - 1).add_(step)
        gradient.narrow(axis + 1, 0, field.shape[axis + 1] - 1).sub_(step)
    return gradient if out is None else out.copy_(gradient)


def moving_position(field, matrix) -> torch.Tensor:
    """Moving cell (3, X, Y, Z) of every fixed cell displaced by field (3, X, Y, Z)."""
    axes = [torch.arange(n, device=field.device, dtype=field.dtype) for n in field.shape[1:]]
    position = torch.stack(torch.meshgrid(*axes, indexing="ij")) + field
    m = torch.as_tensor(matrix, dtype=field.dtype, device=field.device)
    return torch.einsum("ij,jxyz->ixyz", m[:, :3], position) + m[:, 3].view(3, 1, 1, 1)


def all_within(mask: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
    """Whether all cells that a value at position (3, ...) is interpolated from lie within mask (X, Y, Z); (...) bool."""
    return sample_voxels(mask[None].float(), position)[0] > 1 - 1e-4


def smooth(values, passes: int, out=None, scratch=None) -> torch.Tensor:
    """`passes` box filters of 3 cells per axis on (K, X, Y, Z), edges replicated: constants stay, its own adjoint.

    out: another contiguous tensor to put it in; scratch: a third one, which may be overwritten.
    """
    values = values[:, None]
    for _ in range(passes):
        values = F.avg_pool3d(F.pad(values, [1] * 6, mode="replicate"), 3, stride=1)
    out = torch.empty_like(values[:, 0], memory_format=torch.contiguous_format) if out is None else out
    return out.copy_(values[:, 0])


def smooth_adam_step(parameter, gradient, moments, passes: int, rate: float, step: int, scratch=None) -> None:
    """One Adam step in place by the gradient smoothed as in `smooth` (Kingma & Ba 2015; beta 0.9, 0.999, epsilon 1e-8).

    moments: the running first and second, changed in place; step counts from 1. The gradient may be overwritten, and scratch,
    another contiguous tensor.
    """
    first, second = moments
    gradient = smooth(gradient, passes)
    first.mul_(0.9).add_(gradient, alpha=0.1)
    second.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
    parameter.sub_(rate * (first / (1 - 0.9**step)) / ((second / (1 - 0.999**step)).sqrt() + 1e-8))


def repeat(step: Callable, times: int, device: torch.device) -> None:
    """Call step(n) for n = 1 ... times; it works on tensors of device, in place."""
    for number in range(1, times + 1):
        step(number)


def block_means(cells: Cells, matrix, field, factor, radius) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean features of blocks of fixed cells, seen where field and matrix lead: (X', Y', Z', C), and whether they count.

    factor: cells per block along each axis; radius: blocks by which the lattice is wider than the fixed one on each side, where
    the field keeps its edge value. Only cells that lead into the image and its mask count, and blocks of which half do.
    """
    margin = [f * r for f, r in zip(factor, radius)]
    to_whole = [(-n) % f for n, f in zip(field.shape[1:], factor)]
    pad = [p for m, e in zip(margin[::-1], to_whole[::-1]) for p in (m, m + e)]
    extended = F.pad(field[None], pad, mode="replicate")[0]
    shift = torch.tensor(margin, device=field.device, dtype=field.dtype)  # the margin moved the first cell
    position = moving_position(extended - shift.view(3, 1, 1, 1), matrix)
    valid = inside(position, cells.shape)
    valid = valid if cells.mask is None else valid & all_within(cells.mask, position)
    values = sample_voxels(cells.values.permute(3, 0, 1, 2), position) * cells.unit
    share = F.avg_pool3d(valid[None, None].to(values.dtype), tuple(factor), stride=tuple(factor))[0]
    means = F.avg_pool3d((values * valid)[None], tuple(factor), stride=tuple(factor))[0] / share.clamp(min=1e-6)
    return means.permute(1, 2, 3, 0).contiguous(), (share[0] >= 0.5).contiguous()


def cost_volume(fixed, moving, valid, counts, radius, passes: int, out) -> torch.Tensor:
    """Squared difference of each fixed cell to the moving cells around it -> out (X, Y, Z, K) for the K `displacements`.

    fixed (X, Y, Z, C); moving (X + 2 r0, Y + 2 r1, Z + 2 r2, C) has a margin of `radius` cells; where valid (moving's shape
    without C) is False the cost is the mean of the cell's valid ones: it neither pulls nor pushes. Cells that do not count
    (X, Y, Z) prefer nothing. The whole is smoothed over the cells as in `smooth`.
    """
    x, y, z, _ = fixed.shape
    offsets = (displacements(radius).int() + torch.tensor(radius)).tolist()
    slices = [(slice(i, i + x), slice(j, j + y), slice(k, k + z)) for i, j, k in offsets]
    cost = torch.stack([(fixed - moving[s]).square().sum(-1) for s in slices])
    known = torch.stack([valid[s] for s in slices])
    mean = (cost * known).sum(0) / known.sum(0).clamp(min=1)
    return out.copy_(smooth(torch.where(known, cost, mean) * counts, passes).permute(1, 2, 3, 0))


def displacements(radius, device="cpu") -> torch.Tensor:
    """The K displacements of a cost volume, (K, 3) cells, the shortest first; not to be changed in place, as they are kept."""
    return _displacements(tuple(radius), torch.device(device))


@lru_cache(maxsize=16)
def _displacements(radius: tuple[int, ...], device: torch.device) -> torch.Tensor:
    steps = torch.cartesian_prod(*(torch.arange(-r, r + 1, dtype=torch.float32) for r in radius))
    return steps[steps.square().sum(-1).argsort(stable=True)].to(device)


def coupled_argmin(cost, displacements, field, weight: float, least) -> torch.Tensor:
    """The displacement d that minimises cost(x, d) + weight |d - field(x)|^2; of equals, the first.

    cost (X, Y, Z, K), displacements (K, 3), field (3, X, Y, Z) -> (3, X, Y, Z). least (X, Y, Z): the least cost of each block,
    which compiled kernels keep in it when the weight is 0, and by which they know later what cannot win.
    """
    out = torch.empty_like(field)
    for x in range(cost.shape[0]):  # one slab at a time keeps the (Y, Z, K, 3) differences small
        away = (displacements - field[:, x].permute(1, 2, 0)[:, :, None]).square().sum(-1)
        out[:, x] = displacements[(cost[x] + weight * away).argmin(-1)].permute(2, 0, 1)
    return out
