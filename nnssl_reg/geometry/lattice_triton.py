"""Linear interpolation on lattices in Triton, for GPUs: where cells lead, and whole arrays through an affine map."""

import numpy as np
import torch
import triton
import triton.language as tl

from nnssl_reg.geometry.triton_devices import chosen, held

BLOCK = 128  # cells that one program works on, one for each of its threads


@triton.jit
def mapped(matrix, row, x, y, z):
    """Coordinate `row` of the points x, y, z through a matrix (3, 4)."""
    m = matrix + 4 * row
    return tl.load(m) * x + tl.load(m + 1) * y + tl.load(m + 2) * z + tl.load(m + 3)


@triton.jit
def along_axis(p, n):
    """Of coordinates p on an axis of n cells: the cell at or below, the step to the next, the fraction between, whether they
    lie within the outer faces, and whether within the outermost centres, beyond which the edge value stands."""
    clamped = tl.minimum(tl.maximum(p, 0.0), (n - 1).to(tl.float32))
    cell = clamped.to(tl.int32)
    step = tl.where(cell + 1 < n, 1, 0)
    return cell, step, clamped - cell.to(tl.float32), tl.abs(p - clamped) <= 0.5, p == clamped


@triton.jit
def share_within(mask, at, si, sj, sk, u, v, w, live):
    """The weight of those of the eight cells around a position that lie within mask."""
    share = u * 0
    for corner in tl.static_range(8):
        step, weight = at, u * 0 + 1
        step, weight = (step + si, weight * u) if corner & 4 else (step, weight * (1 - u))
        step, weight = (step + sj, weight * v) if corner & 2 else (step, weight * (1 - v))
        step, weight = (step + sk, weight * w) if corner & 1 else (step, weight * (1 - w))
        share += tl.where(tl.load(mask + step, mask=live, other=0) != 0, weight, 0.0)
    return share


@triton.jit
def interpolated(values, si, sj, sk, u, v, w, live):
    """Float32 values at the pointers `values` and the cells a step further, weighted by the fractions u, v, w."""
    a00, a01 = tl.load(values, mask=live, other=0).to(tl.float32), tl.load(values + sj, mask=live, other=0).to(tl.float32)
    a10, a11 = (
        tl.load(values + si, mask=live, other=0).to(tl.float32),
        tl.load(values + si + sj, mask=live, other=0).to(tl.float32),
    )
    b00, b01 = (
        tl.load(values + sk, mask=live, other=0).to(tl.float32),
        tl.load(values + sj + sk, mask=live, other=0).to(tl.float32),
    )
    b10, b11 = (
        tl.load(values + si + sk, mask=live, other=0).to(tl.float32),
        tl.load(values + si + sj + sk, mask=live, other=0).to(tl.float32),
    )
    s00, s01, s10, s11 = a00 + w * (b00 - a00), a01 + w * (b01 - a01), a10 + w * (b10 - a10), a11 + w * (b11 - a11)
    s0, s1 = s00 + v * (s01 - s00), s10 + v * (s11 - s10)
    return s0 + u * (s1 - s0)


@triton.jit(do_not_specialize=["nx", "ny", "nz", "n0", "n1", "n2", "channels"])
def _warp(values, vectors, linear, matrix, out, fill, nx, ny, nz, n0, n1, n2, channels,
          MOVED: tl.constexpr, FILLED: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    cells = nx * ny * nz
    here = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    live = here < cells
    x, y, z = (here // (ny * nz)).to(tl.float32), ((here // nz) % ny).to(tl.float32), (here % nz).to(tl.float32)
    if MOVED:
        a, b = tl.load(vectors + here, mask=live, other=0), tl.load(vectors + cells + here, mask=live, other=0)
        c = tl.load(vectors + 2 * cells + here, mask=live, other=0)
        x += tl.load(linear) * a + tl.load(linear + 1) * b + tl.load(linear + 2) * c
        y += tl.load(linear + 3) * a + tl.load(linear + 4) * b + tl.load(linear + 5) * c
        z += tl.load(linear + 6) * a + tl.load(linear + 7) * b + tl.load(linear + 8) * c
    i, si, u, in0, _ = along_axis(mapped(matrix, 0, x, y, z), n0)
    j, sj, v, in1, _ = along_axis(mapped(matrix, 1, x, y, z), n1)
    k, sk, w, in2, _ = along_axis(mapped(matrix, 2, x, y, z), n2)
    source, target = values + ((i * n1 + j) * n2 + k), out + here
    for _ in range(channels):
        found = interpolated(source, si * (n1 * n2), sj * n2, sk, u, v, w, live)
        if FILLED:
            found = tl.where(in0 & in1 & in2, found, fill)
        tl.store(target, found, mask=live)
        source += n0 * n1 * n2
        target += cells


def warp_lattice(values: torch.Tensor, vectors: torch.Tensor | None, linear: np.ndarray, matrix: np.ndarray,
                 fill: float | None, shape) -> torch.Tensor:  # fmt: skip
    """lattice_cpu.warp_lattice: values (C, X, Y, Z) float32 at every cell of `shape` through matrix (3, 4), cell -> cell of
    values, first displaced by linear @ vectors (3, *shape); outside the outer faces fill, or the nearest value if None."""
    values, out = values.contiguous(), torch.empty(len(values), *shape, dtype=torch.float32, device=values.device)
    maps = [held(m.astype(np.float32), values.device) for m in (linear, matrix)]
    moved = values if vectors is None else vectors.contiguous()
    grid = (triton.cdiv(shape[0] * shape[1] * shape[2], BLOCK),)
    with chosen(values.device):
        _warp[grid](values, moved, *maps, out, 0.0 if fill is None else float(fill), *shape, *values.shape[1:], len(values),
                    MOVED=vectors is not None, FILLED=fill is not None, BLOCK=BLOCK)  # fmt: skip
    return out
