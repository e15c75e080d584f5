"""The dense search in Triton, for GPUs: block means of warped features, cost volume, and coupled argmin."""

import numpy as np
import torch
import triton
import triton.language as tl

from nnssl_reg.geometry.lattice_triton import along_axis, interpolated, mapped, share_within
from nnssl_reg.geometry.triton_devices import chosen, held

BLOCK_FEATURES = 1024  # features, of all the blocks of cells together, that one program sums
BLOCK_CANDIDATES = 256
BLOCK_BOX = 256


@triton.jit(do_not_specialize=["blocks", "b1", "b2", "nx", "ny", "nz", "n0", "n1", "n2", "q0", "q1", "q2", "r0", "r1", "r2"])
def _block_means(values, field, matrix, mask, means, valid, unit, blocks, b1, b2, nx, ny, nz, n0, n1, n2,
                 q0, q1, q2, r0, r1, r2, C: tl.constexpr, CP: tl.constexpr, MASK: tl.constexpr,
                 BLOCK: tl.constexpr):  # fmt: skip
    block = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    live, cells = block < blocks, nx * ny * nz
    x0, y0, z0 = (block // (b1 * b2) - r0) * q0, ((block // b2) % b1 - r1) * q1, (block % b2 - r2) * q2
    sums, count, lanes = tl.zeros([BLOCK, CP], tl.float32), tl.zeros([BLOCK], tl.float32), tl.arange(0, CP)[None, :]
    for cell in range(q0 * q1 * q2):
        x, y, z = x0 + cell // (q1 * q2), y0 + (cell // q2) % q1, z0 + cell % q2
        inner_x, inner_y = tl.minimum(tl.maximum(x, 0), nx - 1), tl.minimum(tl.maximum(y, 0), ny - 1)
        here = (inner_x * ny + inner_y) * nz + tl.minimum(tl.maximum(z, 0), nz - 1)
        px = x.to(tl.float32) + tl.load(field + here, mask=live, other=0)
        py = y.to(tl.float32) + tl.load(field + cells + here, mask=live, other=0)
        pz = z.to(tl.float32) + tl.load(field + 2 * cells + here, mask=live, other=0)
        i, si, u, in0, _ = along_axis(mapped(matrix, 0, px, py, pz), n0)
        j, sj, v, in1, _ = along_axis(mapped(matrix, 1, px, py, pz), n1)
        k, sk, w, in2, _ = along_axis(mapped(matrix, 2, px, py, pz), n2)
        at, si, sj, counted = (i * n1 + j) * n2 + k, si * (n1 * n2), sj * n2, live & in0 & in1 & in2
        if MASK:
            counted = counted & (share_within(mask, at, si, sj, sk, u, v, w, counted) > 1 - 1e-4)
        count += tl.where(counted, 1.0, 0.0)
        p = values + ((at.to(tl.int64) * C)[:, None] + lanes)
        sums += interpolated(p, (si * C)[:, None], (sj * C)[:, None], (sk * C)[:, None], u[:, None], v[:, None], w[:, None],
                             counted[:, None] & (lanes < C))  # fmt: skip
    share = unit / tl.maximum(count, 1.0)
    tl.store(means + block[:, None] * C + lanes, sums * share[:, None], mask=live[:, None] & (lanes < C))
    tl.store(valid + block, (2 * count >= q0 * q1 * q2).to(tl.uint8), mask=live)


@triton.jit(do_not_specialize=["ny", "nz", "n1", "n2", "candidates"])
def _differences(fixed, moving, valid, counts, offsets, out, ny, nz, n1, n2, candidates,
                 C: tl.constexpr, CP: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    cell = tl.program_id(0)
    corner = ((cell // (ny * nz)) * n1 + (cell // nz) % ny) * n2 + cell % nz
    lanes = tl.arange(0, CP)[None, :]
    own = tl.load(fixed + cell.to(tl.int64) * C + lanes, mask=lanes < C, other=0)
    counted = tl.load(counts + cell) != 0
    row = out + cell.to(tl.int64) * candidates
    total, number = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
    for first in range(0, candidates, BLOCK):
        k = first + tl.arange(0, BLOCK)
        at = corner + tl.load(offsets + k, mask=k < candidates, other=0)
        known = (k < candidates) & counted
        known = known & (tl.load(valid + at, mask=known, other=0) != 0)
        there = tl.load(moving + at.to(tl.int64)[:, None] * C + lanes, mask=known[:, None] & (lanes < C), other=0)
        away = tl.where(known[:, None], there - own, 0.0)
        cost = tl.sum(away * away, 1)
        total += cost
        number += tl.where(known, 1.0, 0.0)
        tl.store(row + k, cost, mask=known | ((k < candidates) & ~counted))  # what is unknown is written once, below
    sum_known, count_known = tl.sum(total, 0), tl.sum(number, 0)
    if counted & (count_known < candidates):
        mean = sum_known / tl.maximum(count_known, 1.0)
        for first in range(0, candidates, BLOCK):
            k = first + tl.arange(0, BLOCK)
            at = corner + tl.load(offsets + k, mask=k < candidates, other=0)
            unknown = (k < candidates) & (tl.load(valid + at, mask=k < candidates, other=1) == 0)
            tl.store(row + k, tl.zeros([BLOCK], tl.float32) + mean, mask=unknown)


@triton.jit(do_not_specialize=["lines", "n", "inner"])
def _box(values, lines, n, inner, BLOCK: tl.constexpr):
    """Means of three along an axis of n, in place: one thread walks along each line and keeps what it is about to replace.

    No two lines share a cell, and a cell is read before anything that its new value depends on is written.
    """
    line = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    live = line < lines
    p = values + (line // inner) * n * inner + line % inner
    here = tl.load(p, mask=live, other=0)
    pair = here + here  # the last value and this one; a name `before` that takes over `here` would keep its first value
    for i in range(n):
        after = tl.load(p + tl.where(i + 1 < n, inner, 0), mask=live, other=0)
        after = tl.where(i + 1 < n, after, here)
        tl.store(p, (pair + after) * (1 / 3), mask=live)
        pair, here = here + after, after
        p += inner


@triton.jit(do_not_specialize=["cells", "candidates"])
def _coupled_argmin(cost, steps, field, out, weight, cells, candidates, BLOCK: tl.constexpr):
    cell = tl.program_id(0)
    a, b, c = tl.load(field + cell), tl.load(field + cells + cell), tl.load(field + 2 * cells + cell)
    row = cost + cell.to(tl.int64) * candidates
    least, winner = tl.full([BLOCK], float("inf"), tl.float32), tl.zeros([BLOCK], tl.int32) + candidates
    for first in range(0, candidates, BLOCK):
        k = first + tl.arange(0, BLOCK)
        some = k < candidates
        da = tl.load(steps + 3 * k, mask=some, other=0) - a
        db = tl.load(steps + 3 * k + 1, mask=some, other=0) - b
        dc = tl.load(steps + 3 * k + 2, mask=some, other=0) - c
        energy = tl.load(row + k, mask=some, other=float("inf")) + weight * (da * da + db * db + dc * dc)
        better = energy < least
        least, winner = tl.where(better, energy, least), tl.where(better, k, winner)
    best = tl.min(tl.where(least == tl.min(least, 0), winner, candidates), 0)  # of equals, the first
    best = tl.where(best < candidates, best, 0)
    for axis in tl.static_range(3):
        tl.store(out + axis * cells + cell, tl.load(steps + 3 * best + axis))


def block_means(cells, matrix: np.ndarray, field, factor, radius) -> tuple[torch.Tensor, torch.Tensor]:
    """See kernels_torch.block_means."""
    channels, device = cells.values.shape[3], field.device
    shape = [-(-n // q) + 2 * r for n, q, r in zip(field.shape[1:], factor, radius)]
    means, valid = torch.empty(*shape, channels, device=device), torch.empty(*shape, dtype=torch.bool, device=device)
    mask = valid if cells.mask is None else cells.mask.contiguous()
    lanes = triton.next_power_of_2(channels)
    block = max(1, min(BLOCK_FEATURES // lanes, 128))
    with chosen(device):
        _block_means[(triton.cdiv(valid.numel(), block),)](
            cells.values.contiguous(), field.contiguous(), held(matrix.astype(np.float32), device), mask.view(torch.uint8),
            means, valid.view(torch.uint8), float(cells.unit), valid.numel(), *shape[1:], *field.shape[1:], *cells.shape,
            *factor, *radius, C=channels, CP=lanes, MASK=cells.mask is not None, BLOCK=block,
        )  # fmt: skip
    return means, valid


def cost_volume(fixed, moving, valid, counts, offsets, passes: int, out) -> torch.Tensor:
    """See kernels_torch.cost_volume; offsets (K) int32: of the displacements in moving's flat cells."""
    shape, channels, candidates = fixed.shape[:3], fixed.shape[3], len(offsets)
    lanes = triton.next_power_of_2(channels)
    with chosen(fixed.device):
        _differences[(shape[0] * shape[1] * shape[2],)](
            fixed.contiguous(), moving.contiguous(), *(t.contiguous().view(torch.uint8) for t in (valid, counts)), offsets,
            out, *shape[1:], *moving.shape[1:3], candidates, C=channels, CP=lanes,
            BLOCK=max(4, min(2 * BLOCK_FEATURES // lanes, BLOCK_CANDIDATES // 2)),
        )  # fmt: skip
        for axis in range(3):
            lines, inner = out.numel() // shape[axis], out.stride(axis)
            for _ in range(passes):
                _box[(triton.cdiv(lines, BLOCK_BOX),)](out, lines, shape[axis], inner, BLOCK=BLOCK_BOX)
    return out


def coupled_argmin(cost, displacements, field, weight: float) -> torch.Tensor:
    """See kernels_torch.coupled_argmin."""
    field = field.contiguous()
    out, cells = torch.empty_like(field), field[0].numel()
    with chosen(field.device):
        _coupled_argmin[(cells,)](
            cost.contiguous(), displacements.contiguous(), field, out, float(weight), cells, len(displacements),
            BLOCK=BLOCK_CANDIDATES,
        )  # fmt: skip
    return out
