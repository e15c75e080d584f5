"""The steps of ConvexAdam in plain torch: what runs on GPUs, and the reference that the CPU kernels are tested against.

Everything is channels-last on one lattice of cells; displacements are in cells of the fixed lattice.
"""

import torch
import torch.nn.functional as F

from nnssl_reg.geometry.sampling import inside, sample_voxels


def warp_cost(fixed, moving, field, matrix) -> tuple[torch.Tensor, torch.Tensor]:
    """Squared feature difference at the warped position of every fixed cell, and its gradient by the displacement.

    fixed (X, Y, Z, C), moving (X', Y', Z', C), field (X, Y, Z, 3), matrix (3, 4) numpy: fixed cell -> moving cell.
    Returns cost (X, Y, Z) and gradient (X, Y, Z, 3), both 0 where the position lies outside the moving lattice.
    """
    with torch.enable_grad():
        field = field.detach().requires_grad_(True)
        position = moving_position(field, matrix)
        sampled = sample_voxels(moving.permute(3, 0, 1, 2), position).permute(1, 2, 3, 0)
        cost = (sampled - fixed).square().sum(-1) * inside(position, moving.shape[:3])
        (gradient,) = torch.autograd.grad(cost.sum(), field)
    return cost.detach(), gradient


def moving_position(field, matrix) -> torch.Tensor:
    """Moving cell (3, X, Y, Z) of every fixed cell displaced by field (X, Y, Z, 3)."""
    axes = [torch.arange(n, device=field.device, dtype=field.dtype) for n in field.shape[:3]]
    position = torch.stack(torch.meshgrid(*axes, indexing="ij")) + field.permute(3, 0, 1, 2)
    m = torch.as_tensor(matrix, dtype=field.dtype, device=field.device)
    return torch.einsum("ij,jxyz->ixyz", m[:, :3], position) + m[:, 3].view(3, 1, 1, 1)


def cost_volume(fixed, moving, valid, radius) -> torch.Tensor:
    """Squared difference of each fixed cell to the moving cells around it -> (X, Y, Z, K), K displacements -r..r in C order.

    fixed (X, Y, Z, C); moving (X + 2 r0, Y + 2 r1, Z + 2 r2, C) has a margin of `radius` cells; where valid (moving's shape
    without C) is False the cost is the mean of the cell's valid ones: it neither pulls nor pushes.
    """
    x, y, z, _ = fixed.shape
    slices = [(slice(i, i + x), slice(j, j + y), slice(k, k + z)) for i, j, k in _offsets(radius)]
    cost = torch.stack([(fixed - moving[s]).square().sum(-1) for s in slices], dim=-1)
    known = torch.stack([valid[s] for s in slices], dim=-1)
    mean = (cost * known).sum(-1, keepdim=True) / known.sum(-1, keepdim=True).clamp(min=1)
    return torch.where(known, cost, mean)


def displacements(radius, device="cpu") -> torch.Tensor:
    """The K displacements of a cost volume, (K, 3) cells."""
    return torch.tensor(_offsets(radius), dtype=torch.float32, device=device) - torch.tensor(radius, device=device)


def _offsets(radius):
    widths = [range(2 * r + 1) for r in radius]
    return [(i, j, k) for i in widths[0] for j in widths[1] for k in widths[2]]


def coupled_argmin(cost, displacements, field, weight: float) -> torch.Tensor:
    """The displacement d that minimises cost(x, d) + weight |d - field(x)|^2; of equals, the shortest.

    cost (X, Y, Z, K), displacements (K, 3), field (X, Y, Z, 3) -> (X, Y, Z, 3).
    """
    out = torch.empty_like(field)
    order = displacements.square().sum(-1).argsort(stable=True)
    for x in range(cost.shape[0]):  # one slab at a time keeps the (Y, Z, K, 3) differences small
        away = (displacements - field[x, :, :, None]).square().sum(-1)
        out[x] = displacements[order[(cost[x] + weight * away)[..., order].argmin(-1)]]
    return out


def smooth(values, passes: int) -> torch.Tensor:
    """`passes` box filters of 3 cells per axis on (X, Y, Z, K), edges replicated: constants stay, its own adjoint."""
    values = values.permute(3, 0, 1, 2)[:, None]
    for _ in range(passes):
        values = F.avg_pool3d(F.pad(values, [1] * 6, mode="replicate"), 3, stride=1)
    return values[:, 0].permute(1, 2, 3, 0).contiguous()


def add_diffusion_gradient(field, weights, gradient) -> None:
    """Add to gradient the derivative of the sum over axes a, components c of weights[a, c] (field(x + e_a) - field(x))_c^2."""
    for axis in range(3):
        step = 2 * weights[axis] * torch.diff(field, dim=axis)
        gradient.narrow(axis, 1, field.shape[axis] - 1).add_(step)
        gradient.narrow(axis, 0, field.shape[axis] - 1).sub_(step)


def adam_step(parameter, gradient, first, second, rate: float, step: int) -> None:
    """One Adam step in place (Kingma & Ba 2015; beta 0.9 and 0.999, epsilon 1e-8); step counts from 1."""
    first.mul_(0.9).add_(gradient, alpha=0.1)
    second.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
    parameter.sub_(rate * (first / (1 - 0.9**step)) / ((second / (1 - 0.999**step)).sqrt() + 1e-8))
