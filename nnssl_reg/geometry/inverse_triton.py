"""The inverse of a displacement field in Triton, for GPUs."""

import numpy as np
import torch
import triton
import triton.language as tl

from nnssl_reg.geometry.lattice_triton import mapped
from nnssl_reg.geometry.triton_devices import chosen, held

BLOCK = 128


@triton.jit
def _on_axis(p, n):
    """A float64 coordinate kept on an axis of n cells: the cell at or below, the next, and the fraction between."""
    p = tl.minimum(tl.maximum(p, 0.0), (n - 1).to(tl.float64))
    cell = p.to(tl.int32)
    return cell, tl.minimum(cell + 1, n - 1), p - cell.to(tl.float64)


@triton.jit
def _component(values, i, i1, j, j1, k, k1, u, v, w, live):
    """One component, float32, at a position as _on_axis gives it along each axis."""
    s00 = (1 - w) * tl.load(values + (i + j + k), mask=live, other=0) + w * tl.load(values + (i + j + k1), mask=live, other=0)
    s01 = (1 - w) * tl.load(values + (i + j1 + k), mask=live, other=0) + w * tl.load(values + (i + j1 + k1), mask=live, other=0)
    s10 = (1 - w) * tl.load(values + (i1 + j + k), mask=live, other=0) + w * tl.load(values + (i1 + j + k1), mask=live, other=0)
    s11 = (1 - w) * tl.load(values + (i1 + j1 + k), mask=live, other=0) + w * tl.load(
        values + (i1 + j1 + k1), mask=live, other=0
    )
    return (1 - u) * ((1 - v) * s00 + v * s01) + u * ((1 - v) * s10 + v * s11)


@triton.jit
def _missing(vectors, to_index, p0, p1, p2, g0, g1, g2, n0, n1, n2, live):
    """By how much the field (3, n0, n1, n2) leads the points g past or short of p, mm."""
    i, i1, u = _on_axis(mapped(to_index, 0, g0, g1, g2), n0)
    j, j1, v = _on_axis(mapped(to_index, 1, g0, g1, g2), n1)
    k, k1, w = _on_axis(mapped(to_index, 2, g0, g1, g2), n2)
    i, i1, j, j1, size = i * (n1 * n2), i1 * (n1 * n2), j * n2, j1 * n2, n0 * n1 * n2
    m0 = p0 - g0 - _component(vectors, i, i1, j, j1, k, k1, u, v, w, live)
    m1 = p1 - g1 - _component(vectors + size, i, i1, j, j1, k, k1, u, v, w, live)
    m2 = p2 - g2 - _component(vectors + 2 * size, i, i1, j, j1, k, k1, u, v, w, live)
    return m0, m1, m2


@triton.jit
def _turned(back, row, a, b, c):
    """Coordinate `row` of vectors through the linear part of back (3, 4)."""
    return tl.load(back + 4 * row) * a + tl.load(back + 4 * row + 1) * b + tl.load(back + 4 * row + 2) * c


@triton.jit(do_not_specialize=["nx", "ny", "nz", "n0", "n1", "n2", "iterations"])
def _invert(vectors, to_index, affine, back, out, enough, nx, ny, nz, n0, n1, n2, iterations, BLOCK: tl.constexpr):
    cells = nx * ny * nz
    here = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    live = here < cells
    x, y, z = (here // (ny * nz)).to(tl.float64), ((here // nz) % ny).to(tl.float64), (here % nz).to(tl.float64)
    p0, p1, p2 = mapped(affine, 0, x, y, z), mapped(affine, 1, x, y, z), mapped(affine, 2, x, y, z)
    g0, g1, g2 = mapped(back, 0, p0, p1, p2), mapped(back, 1, p0, p1, p2), mapped(back, 2, p0, p1, p2)
    o0, o1, o2 = _missing(vectors, to_index, p0, p1, p2, g0, g1, g2, n0, n1, n2, live)
    step, left = tl.zeros([BLOCK], tl.float64) + 1, iterations
    off = tl.where(live, tl.maximum(tl.maximum(tl.abs(o0), tl.abs(o1)), tl.abs(o2)), 0.0)
    while (left > 0) & (tl.max(off, 0) >= enough):
        on = off >= enough
        h0, h1 = g0 + step * _turned(back, 0, o0, o1, o2), g1 + step * _turned(back, 1, o0, o1, o2)
        h2 = g2 + step * _turned(back, 2, o0, o1, o2)
        m0, m1, m2 = _missing(vectors, to_index, p0, p1, p2, h0, h1, h2, n0, n1, n2, live & on)
        turned = m0 * o0 + m1 * o1 + m2 * o2 < 0  # a full step overshoots where the field stretches
        better = on & (m0 * m0 + m1 * m1 + m2 * m2 < o0 * o0 + o1 * o1 + o2 * o2)
        step = tl.where(better & (turned == 0), tl.minimum(1.2 * step, 1.0), 0.5 * step)
        g0, g1, g2 = tl.where(better, h0, g0), tl.where(better, h1, g1), tl.where(better, h2, g2)
        o0, o1, o2 = tl.where(better, m0, o0), tl.where(better, m1, o1), tl.where(better, m2, o2)
        off = tl.where(live, tl.maximum(tl.maximum(tl.abs(o0), tl.abs(o1)), tl.abs(o2)), 0.0)
        left -= 1
    tl.store(out + here, (g0 - p0).to(tl.float32), mask=live)
    tl.store(out + cells + here, (g1 - p1).to(tl.float32), mask=live)
    tl.store(out + 2 * cells + here, (g2 - p2).to(tl.float32), mask=live)


def invert_lattice(vectors, to_index: np.ndarray, affine: np.ndarray, back: np.ndarray, enough: float, iterations: int, shape):
    """lattice_cpu.invert_lattice: the field (3, *shape) on the grid of affine that leads back what vectors lead."""
    out = torch.empty(3, *shape, dtype=torch.float32, device=vectors.device)
    maps = [held(np.asarray(m, np.float64), vectors.device) for m in (to_index, affine, back)]
    with chosen(vectors.device):
        _invert[(triton.cdiv(out[0].numel(), BLOCK),)](
            vectors.contiguous(), *maps, out, float(enough), *shape, *vectors.shape[1:], iterations, BLOCK=BLOCK
        )
    return out
