"""The inverse of a displacement field in Triton, for GPUs: inverse_cpu has the method, the names and the way."""

import numpy as np
import torch
import triton
import triton.language as tl

from nnssl_reg.geometry.inverse_cpu import FLATTENED
from nnssl_reg.geometry.lattice_triton import mapped
from nnssl_reg.geometry.triton_devices import chosen, held

BLOCK = 128


@triton.jit
def _on_axis(q, n):
    """Of a coordinate on an axis of n cells: the cell before it, the next one, the fraction between, and 1 inside, else 0."""
    near = tl.minimum(tl.maximum(q, 0.0), (n - 1).to(tl.float64))
    cell = tl.minimum(near.to(tl.int32), tl.maximum(n - 2, 0))
    return cell, tl.minimum(cell + 1, n - 1), near - cell.to(tl.float64), (near == q).to(tl.float64)


@triton.jit
def _cell(values, at, live):
    return tl.load(values + at, mask=live, other=0).to(tl.float64)


@triton.jit
def _component(values, i, i1, j, j1, k, k1, u, v, w, live):
    """One component at a position as _on_axis gives it along each axis, and its slopes as if that were inside."""
    a00, a01, a10, a11 = (_cell(values, i + j + k, live), _cell(values, i + j1 + k, live),
                          _cell(values, i1 + j + k, live), _cell(values, i1 + j1 + k, live))  # fmt: skip
    d00, d01 = _cell(values, i + j + k1, live) - a00, _cell(values, i + j1 + k1, live) - a01
    d10, d11 = _cell(values, i1 + j + k1, live) - a10, _cell(values, i1 + j1 + k1, live) - a11
    s00, s10 = a00 + w * d00, a10 + w * d10
    e0, e1 = a01 + w * d01 - s00, a11 + w * d11 - s10
    s0, s1 = s00 + v * e0, s10 + v * e1
    g0, g1 = d00 + v * (d01 - d00), d10 + v * (d11 - d10)
    return s0 + u * (s1 - s0), s1 - s0, e0 + u * (e1 - e0), g0 + u * (g1 - g0)


@triton.jit
def _missing(vectors, own, p0, p1, p2, q0, q1, q2, n0, n1, n2, live):
    """vectors(q), p - own q - vectors(q), and the derivative of what is taken from p by rows: 3, 3 and 9 values."""
    i, i1, u, in0 = _on_axis(q0, n0)
    j, j1, v, in1 = _on_axis(q1, n1)
    k, k1, w, in2 = _on_axis(q2, n2)
    i, i1, j, j1, size = i * (n1 * n2), i1 * (n1 * n2), j * n2, j1 * n2, n0 * n1 * n2
    f0, a0, b0, c0 = _component(vectors, i, i1, j, j1, k, k1, u, v, w, live)
    f1, a1, b1, c1 = _component(vectors + size, i, i1, j, j1, k, k1, u, v, w, live)
    f2, a2, b2, c2 = _component(vectors + 2 * size, i, i1, j, j1, k, k1, u, v, w, live)
    o0, o1 = p0 - mapped(own, 0, q0, q1, q2) - f0, p1 - mapped(own, 1, q0, q1, q2) - f1
    o2 = p2 - mapped(own, 2, q0, q1, q2) - f2
    return (f0, f1, f2, o0, o1, o2, tl.load(own) + in0 * a0, tl.load(own + 1) + in1 * b0, tl.load(own + 2) + in2 * c0,
            tl.load(own + 4) + in0 * a1, tl.load(own + 5) + in1 * b1, tl.load(own + 6) + in2 * c1,
            tl.load(own + 8) + in0 * a2, tl.load(own + 9) + in1 * b2, tl.load(own + 10) + in2 * c2)  # fmt: skip


@triton.jit
def _turned(m, row, a, b, c):
    """Coordinate `row` of vectors through the linear part of m (4, 4)."""
    return tl.load(m + 4 * row) * a + tl.load(m + 4 * row + 1) * b + tl.load(m + 4 * row + 2) * c


@triton.jit
def _whole_step(o0, o1, o2, a0, b0, c0, a1, b1, c1, a2, b2, c2, least, to_index, back):
    """From a place that misses by o to where the derivative, or else the affine part, says; least: share of a cell's volume."""
    x0, x1, x2 = b1 * c2 - c1 * b2, c1 * a2 - a1 * c2, a1 * b2 - b1 * a2
    now = a0 * x0 + b0 * x1 + c0 * x2
    flat = now * least < least * least  # smaller than it, or of the other sign
    now = tl.where(flat, 1.0, now)
    h0, h1, h2 = _turned(back, 0, o0, o1, o2), _turned(back, 1, o0, o1, o2), _turned(back, 2, o0, o1, o2)
    s0 = (x0 * o0 + (b2 * c0 - c2 * b0) * o1 + (b0 * c1 - c0 * b1) * o2) / now
    s1 = (x1 * o0 + (c2 * a0 - a2 * c0) * o1 + (c0 * a1 - a0 * c1) * o2) / now
    s2 = (x2 * o0 + (a2 * b0 - b2 * a0) * o1 + (a0 * b1 - b0 * a1) * o2) / now
    s0, s1 = tl.where(flat, _turned(to_index, 0, h0, h1, h2), s0), tl.where(flat, _turned(to_index, 1, h0, h1, h2), s1)
    return s0, s1, tl.where(flat, _turned(to_index, 2, h0, h1, h2), s2)


@triton.jit(do_not_specialize=["nx", "ny", "nz", "n0", "n1", "n2", "iterations"])
def _invert(vectors, own, to_index, back, affine, out, enough, least, nx, ny, nz, n0, n1, n2, iterations,
            BLOCK: tl.constexpr):  # fmt: skip
    cells = nx * ny * nz
    here = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    live = here < cells
    x, y, z = (here // (ny * nz)).to(tl.float64), ((here // nz) % ny).to(tl.float64), (here % nz).to(tl.float64)
    p0, p1, p2 = mapped(affine, 0, x, y, z), mapped(affine, 1, x, y, z), mapped(affine, 2, x, y, z)
    g0, g1, g2 = mapped(back, 0, p0, p1, p2), mapped(back, 1, p0, p1, p2), mapped(back, 2, p0, p1, p2)
    q0, q1, q2 = mapped(to_index, 0, g0, g1, g2), mapped(to_index, 1, g0, g1, g2), mapped(to_index, 2, g0, g1, g2)
    v0, v1, v2, o0, o1, o2, a0, b0, c0, a1, b1, c1, a2, b2, c2 = _missing(
        vectors, own, p0, p1, p2, q0, q1, q2, n0, n1, n2, live)  # fmt: skip
    step, left = tl.zeros([BLOCK], tl.float64) + 1, iterations
    off = tl.where(live, tl.maximum(tl.maximum(tl.abs(o0), tl.abs(o1)), tl.abs(o2)), 0.0)
    while (left > 0) & (tl.max(off, 0) >= enough):
        on = off >= enough
        s0, s1, s2 = _whole_step(o0, o1, o2, a0, b0, c0, a1, b1, c1, a2, b2, c2, least, to_index, back)
        h0, h1, h2 = q0 + step * s0, q1 + step * s1, q2 + step * s2
        w0, w1, w2, m0, m1, m2, d0, e0, f0, d1, e1, f1, d2, e2, f2 = _missing(
            vectors, own, p0, p1, p2, h0, h1, h2, n0, n1, n2, live & on)  # fmt: skip
        nearer = on & (m0 * m0 + m1 * m1 + m2 * m2 < o0 * o0 + o1 * o1 + o2 * o2)
        step = tl.where(nearer, tl.minimum(2 * step, 1.0), 0.5 * step)
        q0, q1, q2 = tl.where(nearer, h0, q0), tl.where(nearer, h1, q1), tl.where(nearer, h2, q2)
        v0, v1, v2 = tl.where(nearer, w0, v0), tl.where(nearer, w1, v1), tl.where(nearer, w2, v2)
        o0, o1, o2 = tl.where(nearer, m0, o0), tl.where(nearer, m1, o1), tl.where(nearer, m2, o2)
        a0, b0, c0 = tl.where(nearer, d0, a0), tl.where(nearer, e0, b0), tl.where(nearer, f0, c0)
        a1, b1, c1 = tl.where(nearer, d1, a1), tl.where(nearer, e1, b1), tl.where(nearer, f1, c1)
        a2, b2, c2 = tl.where(nearer, d2, a2), tl.where(nearer, e2, b2), tl.where(nearer, f2, c2)
        off = tl.where(live, tl.maximum(tl.maximum(tl.abs(o0), tl.abs(o1)), tl.abs(o2)), 0.0)
        left -= 1
    tl.store(out + here, (-v0).to(tl.float32), mask=live)
    tl.store(out + cells + here, (-v1).to(tl.float32), mask=live)
    tl.store(out + 2 * cells + here, (-v2).to(tl.float32), mask=live)


def invert_lattice(vectors, own: np.ndarray, to_index: np.ndarray, back: np.ndarray, affine: np.ndarray, enough: float,
                   iterations: int, shape):  # fmt: skip
    """inverse_cpu.invert_lattice: the field (3, *shape) on the grid of affine that leads back what vectors lead."""
    out = torch.empty(3, *shape, dtype=torch.float32, device=vectors.device)
    maps = [held(np.asarray(m, np.float64), vectors.device) for m in (own, to_index, back, affine)]
    least = FLATTENED * float(np.linalg.det(own[:3, :3]))
    with chosen(vectors.device):
        _invert[(triton.cdiv(out[0].numel(), BLOCK),)](
            vectors.contiguous(), *maps, out, float(enough), least, *shape, *vectors.shape[1:], iterations, BLOCK=BLOCK
        )
    return out
