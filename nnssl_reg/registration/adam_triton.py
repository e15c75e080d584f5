"""The Adam step in Triton, for GPUs: gradient of the energy, and box smoothing whose last sweep makes the update."""

import numpy as np
import torch
import triton
import triton.language as tl

from nnssl_reg.geometry.lattice_triton import along_axis, mapped, share_within
from nnssl_reg.geometry.triton_devices import chosen, held

BLOCK = 128  # cells that one program works on, one for each of its threads
TOGETHER = 4  # features that a thread loads at once: 8 bytes of 16-bit integers
BLOCK_SMOOTH = 512


@triton.jit
def _slopes_of(p, own, ti, tj, tk, u, v, w, some):
    """Of some features: the difference times the derivative by each axis; p, own: pointers to the moving and fixed ones."""
    a00 = tl.load(p, mask=some, other=0).to(tl.float32)
    a01 = tl.load(p + tj, mask=some, other=0).to(tl.float32)
    a10 = tl.load(p + ti, mask=some, other=0).to(tl.float32)
    a11 = tl.load(p + (ti + tj), mask=some, other=0).to(tl.float32)
    d00 = tl.load(p + tk, mask=some, other=0).to(tl.float32) - a00
    d01 = tl.load(p + (tj + tk), mask=some, other=0).to(tl.float32) - a01
    d10 = tl.load(p + (ti + tk), mask=some, other=0).to(tl.float32) - a10
    d11 = tl.load(p + (ti + tj + tk), mask=some, other=0).to(tl.float32) - a11
    s00, s10 = a00 + w * d00, a10 + w * d10
    e0, e1 = a01 + w * d01 - s00, a11 + w * d11 - s10
    s0 = s00 + v * e0
    slope = s10 + v * e1 - s0
    difference = s0 + u * slope - tl.load(own, mask=some, other=0).to(tl.float32)
    q0, q1 = d00 + v * (d01 - d00), d10 + v * (d11 - d10)
    return difference * slope, difference * (e0 + u * (e1 - e0)), difference * (q0 + u * (q1 - q0))


@triton.jit
def _cost_slopes(fixed, moving, here, at, si, sj, sk, u, v, w, live, C: tl.constexpr, W: tl.constexpr, BLOCK: tl.constexpr):
    """Half the derivative of the squared difference by the moving position, three (BLOCK)."""
    ga, gb, gc = tl.zeros([BLOCK, W], tl.float32), tl.zeros([BLOCK, W], tl.float32), tl.zeros([BLOCK, W], tl.float32)
    u, v, w = u[:, None], v[:, None], w[:, None]
    ti, tj, tk = (si * C)[:, None], (sj * C)[:, None], (sk * C)[:, None]
    rows, own, lane = (at.to(tl.int64) * C)[:, None], (here.to(tl.int64) * C)[:, None], tl.arange(0, W)[None, :]
    if C <= 32:
        for first in tl.static_range(0, C, W):
            some = (live[:, None] & (first + lane < C)) if C % W != 0 else live[:, None]
            da, db, dc = _slopes_of(moving + (rows + (first + lane)), fixed + (own + (first + lane)), ti, tj, tk, u, v, w, some)
            ga, gb, gc = ga + da, gb + db, gc + dc
    else:  # a loop, for code that is written out would take minutes to compile
        for first in range(0, C, W):
            some = live[:, None] & (first + lane < C)
            da, db, dc = _slopes_of(moving + (rows + (first + lane)), fixed + (own + (first + lane)), ti, tj, tk, u, v, w, some)
            ga, gb, gc = ga + da, gb + db, gc + dc
    return tl.sum(ga, 1), tl.sum(gb, 1), tl.sum(gc, 1)


@triton.jit
def _bend(values, here, middle, x, y, z, nx, ny, nz, weights, live):
    """Derivative of the diffusion energy by one component; weights (3) lie 3 apart. Beyond an edge stands the edge value."""
    total = middle * 0
    for axis in tl.static_range(3):
        i, n, step = (x, nx, ny * nz) if axis == 0 else (y, ny, nz) if axis == 1 else (z, nz, 1)
        before = tl.load(values + here - tl.where(i > 0, step, 0), mask=live, other=0)
        after = tl.load(values + here + tl.where(i + 1 < n, step, 0), mask=live, other=0)
        total += 2 * tl.load(weights + 3 * axis) * (middle + middle - before - after)
    return total


@triton.jit(do_not_specialize=["nx", "ny", "nz", "n0", "n1", "n2"])
def _energy_gradient(fixed, moving, field, matrix, weights, counts, mask, out, scale, nx, ny, nz, n0, n1, n2,
                     C: tl.constexpr, W: tl.constexpr, COUNTS: tl.constexpr, MASK: tl.constexpr,
                     BLOCK: tl.constexpr):  # fmt: skip
    cells = nx * ny * nz
    here = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    live = here < cells
    x, y, z = here // (ny * nz), (here // nz) % ny, here % nz
    f0 = tl.load(field + here, mask=live, other=0)
    f1 = tl.load(field + cells + here, mask=live, other=0)
    f2 = tl.load(field + 2 * cells + here, mask=live, other=0)
    px, py, pz = x.to(tl.float32) + f0, y.to(tl.float32) + f1, z.to(tl.float32) + f2
    i, si, u, in0, free0 = along_axis(mapped(matrix, 0, px, py, pz), n0)
    j, sj, v, in1, free1 = along_axis(mapped(matrix, 1, px, py, pz), n1)
    k, sk, w, in2, free2 = along_axis(mapped(matrix, 2, px, py, pz), n2)
    at, si, sj = (i * n1 + j) * n2 + k, si * (n1 * n2), sj * n2
    counted = live & in0 & in1 & in2
    if COUNTS:
        counted = counted & (tl.load(counts + here, mask=live, other=0) != 0)
    if MASK:
        counted = counted & (share_within(mask, at, si, sj, sk, u, v, w, counted) > 1 - 1e-4)
    ga, gb, gc = _cost_slopes(fixed, moving, here, at, si, sj, sk, u, v, w, counted, C, W, BLOCK)
    # in the outer half cell the value is constant, so it has no slope there
    ga, gb, gc = tl.where(free0, ga, 0.0) * scale, tl.where(free1, gb, 0.0) * scale, tl.where(free2, gc, 0.0) * scale
    for c in tl.static_range(3):
        pull = tl.load(matrix + c) * ga + tl.load(matrix + 4 + c) * gb + tl.load(matrix + 8 + c) * gc
        middle = f0 if c == 0 else f1 if c == 1 else f2
        bend = _bend(field + c * cells, here, middle, x, y, z, nx, ny, nz, weights + c, live)
        tl.store(out + c * cells + here, pull + bend, mask=live)


@triton.jit(do_not_specialize=["count", "n", "inner"])
def _sweep(values, taps, out, moments, powers, rate, count, n, inner,
           HALF: tl.constexpr, FOLDS: tl.constexpr, ADAM: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    here = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    live = here < count
    i = (here // inner) % n
    start, total = here - i * inner, tl.zeros([BLOCK], tl.float32)
    for t in tl.static_range(2 * HALF + 1):
        at = i + (t - HALF)
        for _ in tl.static_range(FOLDS):  # mirrored at the outer faces, as often as short axes need
            at = tl.where(at < 0, -1 - at, at)
            at = tl.where(at >= n, 2 * n - 1 - at, at)
        total += tl.load(taps + t) * tl.load(values + start + at * inner, mask=live, other=0)
    if ADAM:
        m = 0.9 * tl.load(moments + here, mask=live, other=0) + 0.1 * total
        v = 0.999 * tl.load(moments + count + here, mask=live, other=0) + 0.001 * total * total
        tl.store(moments + here, m, mask=live)
        tl.store(moments + count + here, v, mask=live)
        first, second = (1 - tl.load(powers)).to(tl.float32), (1 - tl.load(powers + 1)).to(tl.float32)
        total = tl.load(out + here, mask=live, other=0) - rate * (m / first) / (tl.sqrt(v / second) + 1e-8)
    tl.store(out + here, total, mask=live)


def energy_gradient(fixed, moving, field, matrix: np.ndarray, weights, out) -> None:
    """See kernels_torch.energy_gradient; fixed and moving: Cells."""
    channels, lattice = fixed.values.shape[3], tuple(field.shape[1:])
    masks = [out if c.mask is None else c.mask.contiguous().view(torch.uint8) for c in (fixed, moving)]
    device, grid = field.device, (triton.cdiv(field[0].numel(), BLOCK),)
    with chosen(device):
        _energy_gradient[grid](
            fixed.values.contiguous(), moving.values.contiguous(), field.contiguous(), held(matrix.astype(np.float32), device),
            weights.contiguous(), *masks, out, 2 * fixed.unit**2, *lattice, *moving.shape,
            C=channels, W=min(TOGETHER, triton.next_power_of_2(channels)), COUNTS=fixed.mask is not None,
            MASK=moving.mask is not None, BLOCK=BLOCK,
        )  # fmt: skip


def smooth_sweeps(values, taps: np.ndarray, out, between, adam=None) -> None:
    """Convolve contiguous values (K, X, Y, Z) along each axis with symmetric taps, mirrored at the outer faces, into out.

    between: two like out, which the first sweeps write, neither that read just then. adam: None; or (rate, moments (2, K, X, Y,
    Z), powers (2,) float64 of the betas), and the result is the gradient of an Adam step of out.
    """
    _, nx, ny, nz = values.shape
    half, count = len(taps) // 2, values.numel()
    rate, moments, powers = (0.0, out, out) if adam is None else adam
    taps = held(taps, values.device)
    with chosen(values.device):
        stages = ((values, between[0], nx, ny * nz), (between[0], between[1], ny, nz), (between[1], out, nz, 1))
        for axis, (source, target, n, inner) in enumerate(stages):
            _sweep[(triton.cdiv(count, BLOCK_SMOOTH),)](
                source, taps, target, moments, powers, rate, count, n, inner,
                HALF=half, FOLDS=half // n + 1, ADAM=adam is not None and axis == 2, BLOCK=BLOCK_SMOOTH,
            )  # fmt: skip
