"""Folds of a displacement field in Triton, for GPUs."""

import torch
import triton
import triton.language as tl

from nnssl_reg.geometry.triton_devices import chosen

BLOCK = 128


@triton.jit
def _steps(values, here, middle, i, n, stride, own, live):
    """How x + field changes to the next cell and from the last one along an axis of n; at the edge, that of the other side."""
    after = tl.load(values + here + tl.where(i + 1 < n, stride, 0), mask=live, other=0) - middle
    before = middle - tl.load(values + here - tl.where(i > 0, stride, 0), mask=live, other=0)
    return tl.where(i + 1 < n, after, before) + own, tl.where(i > 0, before, after) + own


@triton.jit
def _rows(values, here, x, y, z, nx, ny, nz, own: tl.constexpr, live):
    """The six steps of one component, forward and backward along each axis; own: the axis it is of."""
    middle = tl.load(values + here, mask=live, other=0)
    xf, xb = _steps(values, here, middle, x, nx, ny * nz, 1.0 if own == 0 else 0.0, live)
    yf, yb = _steps(values, here, middle, y, ny, nz, 1.0 if own == 1 else 0.0, live)
    zf, zb = _steps(values, here, middle, z, nz, 1, 1.0 if own == 2 else 0.0, live)
    return xf, xb, yf, yb, zf, zb


@triton.jit(do_not_specialize=["nx", "ny", "nz"])
def _folded(field, out, least, nx, ny, nz, BLOCK: tl.constexpr):
    cells = nx * ny * nz
    here = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    live = here < cells
    x, y, z = here // (ny * nz), (here // nz) % ny, here % nz
    xf0, xb0, yf0, yb0, zf0, zb0 = _rows(field, here, x, y, z, nx, ny, nz, 0, live)
    xf1, xb1, yf1, yb1, zf1, zb1 = _rows(field + cells, here, x, y, z, nx, ny, nz, 1, live)
    xf2, xb2, yf2, yb2, zf2, zb2 = _rows(field + 2 * cells, here, x, y, z, nx, ny, nz, 2, live)
    folded = here < 0
    for corner in tl.static_range(8):
        a0, a1, a2 = (xf0, xf1, xf2) if corner & 4 else (xb0, xb1, xb2)
        b0, b1, b2 = (yf0, yf1, yf2) if corner & 2 else (yb0, yb1, yb2)
        c0, c1, c2 = (zf0, zf1, zf2) if corner & 1 else (zb0, zb1, zb2)
        volume = a0 * (b1 * c2 - b2 * c1) + a1 * (b2 * c0 - b0 * c2) + a2 * (b0 * c1 - b1 * c0)
        folded = folded | (volume < least)
    tl.store(out + here, folded.to(tl.uint8), mask=live)


def folded_cells(field: torch.Tensor, least: float) -> torch.Tensor:
    """See unfolding.folded_cells; field (3, X, Y, Z) float32."""
    out = torch.empty(field.shape[1:], dtype=torch.bool, device=field.device)
    with chosen(field.device):
        _folded[(triton.cdiv(out.numel(), BLOCK),)](
            field.contiguous(), out.view(torch.uint8), float(least), *out.shape, BLOCK=BLOCK
        )
    return out
