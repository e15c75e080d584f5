"""MIND-SSC in Triton, for GPUs, straight onto the cells of its grid: no tensor of all channels at full resolution.

Each thread sums the distances of the twelve pairs of neighbours of one voxel over the box around it, from the image itself:
six values per position in the box, which neighbouring threads read too, so that they come from the cache.
"""

import torch
import triton
import triton.language as tl

from nnssl_reg.geometry.triton_devices import chosen

BLOCK = 128


@triton.jit
def _within(i, n):
    """An index kept on its axis: beyond the edges stand the edge values."""
    return tl.minimum(tl.maximum(i, 0), n - 1)


@triton.jit
def _distances(image, x, y, z, live, nx, ny, nz, dilation, RADIUS: tl.constexpr, BLOCK: tl.constexpr):
    """Mean squared difference over the box around the voxels (x, y, z), of the pairs in the order of mind.PAIRS."""
    none = tl.zeros([BLOCK], tl.float32)
    s0, s1, s2, s3, s4, s5, s6, s7, s8, s9, s10, s11 = (none, none, none, none, none, none, none, none, none, none, none, none)
    width: tl.constexpr = 2 * RADIUS + 1
    for plane in range(width * width):
        i, j = x + (plane // width - RADIUS), y + (plane % width - RADIUS)
        x0, y0 = _within(i, nx) * (ny * nz), _within(j, ny) * nz
        xa, xb = _within(i - dilation, nx) * (ny * nz), _within(i + dilation, nx) * (ny * nz)
        ya, yb = _within(j - dilation, ny) * nz, _within(j + dilation, ny) * nz
        for step in tl.static_range(width):
            k = z + (step - RADIUS)
            z0, za, zb = _within(k, nz), _within(k - dilation, nz), _within(k + dilation, nz)
            a = tl.load(image + (xa + y0 + z0), mask=live, other=0)
            b = tl.load(image + (xb + y0 + z0), mask=live, other=0)
            c = tl.load(image + (x0 + ya + z0), mask=live, other=0)
            d = tl.load(image + (x0 + yb + z0), mask=live, other=0)
            e = tl.load(image + (x0 + y0 + za), mask=live, other=0)
            f = tl.load(image + (x0 + y0 + zb), mask=live, other=0)
            s0, s1, s2, s3 = s0 + (a - c) * (a - c), s1 + (a - d) * (a - d), s2 + (a - e) * (a - e), s3 + (a - f) * (a - f)
            s4, s5, s6, s7 = s4 + (b - c) * (b - c), s5 + (b - d) * (b - d), s6 + (b - e) * (b - e), s7 + (b - f) * (b - f)
            s8, s9, s10, s11 = s8 + (c - e) * (c - e), s9 + (c - f) * (c - f), s10 + (d - e) * (d - e), s11 + (d - f) * (d - f)
    least = tl.minimum(tl.minimum(tl.minimum(s0, s1), tl.minimum(s2, s3)), tl.minimum(tl.minimum(s4, s5), tl.minimum(s6, s7)))
    least = tl.minimum(least, tl.minimum(tl.minimum(s8, s9), tl.minimum(s10, s11)))
    total = (s0 + s1 + s2 + s3) + (s4 + s5 + s6 + s7) + (s8 + s9 + s10 + s11)
    scale: tl.constexpr = 1 / (width * width * width)
    spread = (total / 12 - least) * scale
    return s0, s1, s2, s3, s4, s5, s6, s7, s8, s9, s10, s11, least, spread


@triton.jit(do_not_specialize=["nx", "ny", "nz", "dilation"])
def _spread(image, totals, nx, ny, nz, dilation, RADIUS: tl.constexpr, BLOCK: tl.constexpr):
    """Sums over BLOCK voxels of the mean over the pairs of D - min D."""
    here = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    live = here < nx * ny * nz
    _, _, _, _, _, _, _, _, _, _, _, _, _, spread = _distances(
        image, here // (ny * nz), (here // nz) % ny, here % nz, live, nx, ny, nz, dilation, RADIUS, BLOCK
    )
    tl.store(totals + tl.program_id(0), tl.sum(tl.where(live, spread, 0.0), 0))


@triton.jit
def _like(distance, least, rate):
    return tl.exp((least - distance) * rate)


@triton.jit(do_not_specialize=["nx", "ny", "nz", "n1", "n2", "cells", "q0", "q1", "q2", "dilation"])
def _cells(image, mean, out, noise, tiny, nx, ny, nz, cells, n1, n2, q0, q1, q2, dilation,
           RADIUS: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """exp(-(D - min D) / V) averaged over cells of q voxels; n1, n2: of the lattice of cells."""
    here = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    live = here < cells
    x0, y0, z0 = here // (n1 * n2) * q0, (here // n2) % n1 * q1, here % n2 * q2
    middle, none = tl.load(mean), tl.zeros([BLOCK], tl.float32)
    low, high = tl.maximum(middle * 1e-3, tiny), tl.maximum(middle * 1e3, 1e-30)
    scale: tl.constexpr = 1 / ((2 * RADIUS + 1) * (2 * RADIUS + 1) * (2 * RADIUS + 1))
    t0, t1, t2, t3, t4, t5, t6, t7, t8, t9, t10, t11 = (none, none, none, none, none, none, none, none, none, none, none, none)
    for voxel in range(q0 * q1 * q2):
        x, y, z = x0 + voxel // (q1 * q2), y0 + (voxel // q2) % q1, z0 + voxel % q2
        s0, s1, s2, s3, s4, s5, s6, s7, s8, s9, s10, s11, least, spread = _distances(
            image, x, y, z, live, nx, ny, nz, dilation, RADIUS, BLOCK
        )
        rate = scale / (tl.minimum(tl.maximum(spread, low), high) + noise * middle)
        t0, t1, t2 = t0 + _like(s0, least, rate), t1 + _like(s1, least, rate), t2 + _like(s2, least, rate)
        t3, t4, t5 = t3 + _like(s3, least, rate), t4 + _like(s4, least, rate), t5 + _like(s5, least, rate)
        t6, t7, t8 = t6 + _like(s6, least, rate), t7 + _like(s7, least, rate), t8 + _like(s8, least, rate)
        t9, t10, t11 = t9 + _like(s9, least, rate), t10 + _like(s10, least, rate), t11 + _like(s11, least, rate)
    share, found = 1.0 / (q0 * q1 * q2), (t0, t1, t2, t3, t4, t5, t6, t7, t8, t9, t10, t11)
    for pair in tl.static_range(12):
        tl.store(out + here, found[pair] * share, mask=live)
        out += cells


def mind_cells(image: torch.Tensor, radius: int, dilation: int, noise: float, stride) -> torch.Tensor:
    """What mind.mind_ssc computes, averaged over cells: image (X, Y, Z) float32 -> (12, X', Y', Z') float32."""
    image, shape = image.contiguous(), [n // s for n, s in zip(image.shape, stride)]
    out, programs = torch.empty(12, *shape, device=image.device), triton.cdiv(image.numel(), BLOCK)
    totals, tiny = torch.empty(programs, device=image.device), torch.finfo(torch.float32).tiny
    with chosen(image.device):
        _spread[(programs,)](image, totals, *image.shape, dilation, RADIUS=radius, BLOCK=BLOCK)
        mean = (totals.sum(dtype=torch.float64) / image.numel()).float()
        _cells[(triton.cdiv(out[0].numel(), BLOCK),)](
            image, mean, out, float(noise), tiny, *image.shape, out[0].numel(), *shape[1:], *stride, dilation, RADIUS=radius,
            BLOCK=BLOCK,
        )  # fmt: skip
    return out
