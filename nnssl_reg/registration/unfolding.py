"""Remove folds from a displacement field: smooth it where, and only where, it turns space inside out."""

from itertools import product

import numpy as np
import torch

from nnssl_reg.geometry.threads import on_threads
from nnssl_reg.geometry.triton_devices import runs_triton
from nnssl_reg.registration.unfolding_cpu import folded_rows

LEAST_JACOBIAN = 0.05  # of volume a cell must keep; a little above 0, because the field is interpolated afterwards
ITERATIONS = 50


def unfolded(field: torch.Tensor, kernels, free: torch.Tensor | None = None) -> torch.Tensor:
    """A field (3, X, Y, Z) in cells with its folds smoothed away; unchanged, to the bit, where nothing folds.

    Cells around a fold are diffused until every corner of the linearly interpolated field keeps LEAST_JACOBIAN of its volume,
    or ITERATIONS are over. free: (X, Y, Z) bool, the cells that may change; None: all.
    """
    for _ in range(ITERATIONS):
        folds = folded_cells(field) if free is None else folded_cells(field) & free
        if not folds.any():
            break
        share = kernels.smooth(folds.float()[None], 2).mul_(4).clamp_(max=1)
        share = share if free is None else share * free
        field = torch.lerp(field, kernels.smooth(field, 1), share)
    return field


def folded_cells(field: torch.Tensor, least: float = LEAST_JACOBIAN) -> torch.Tensor:
    """Cells (X, Y, Z) bool at one of whose eight corners the interpolated map x + field(x) keeps less than `least` volume."""
    if field.device.type == "cpu" and field.dtype == torch.float32:
        out = torch.empty(field.shape[1:], dtype=torch.bool)
        on_threads(folded_rows, len(out), field.contiguous().numpy(), np.float32(least), out.numpy())
        return out
    if runs_triton(field.device) and field.dtype == torch.float32:
        from nnssl_reg.registration import unfolding_triton

        return unfolding_triton.folded_cells(field, least)
    return folded_cells_torch(field, least)


def folded_cells_torch(field: torch.Tensor, least: float = LEAST_JACOBIAN) -> torch.Tensor:
    """folded_cells in plain torch, for other devices."""
    steps = [[_step(field, axis, forward) for forward in (True, False)] for axis in range(3)]
    folded = torch.zeros(field.shape[1:], dtype=torch.bool, device=field.device)
    for corner in product((0, 1), repeat=3):
        a, b, c = (steps[axis][side] for axis, side in enumerate(corner))
        volume = a[0] * (b[1] * c[2] - b[2] * c[1]) + a[1] * (b[2] * c[0] - b[0] * c[2]) + a[2] * (b[0] * c[1] - b[1] * c[0])
        folded |= volume < least
    return folded


def _step(field: torch.Tensor, axis: int, forward: bool) -> torch.Tensor:
    """How x + field(x) changes to the next (or from the last) cell along an axis; at the edge, that of the other side."""
    step = torch.zeros_like(field)
    if field.shape[axis + 1] > 1:
        inner = torch.diff(field, dim=axis + 1)
        edge = inner.narrow(axis + 1, inner.shape[axis + 1] - 1 if forward else 0, 1)
        step = torch.cat([inner, edge] if forward else [edge, inner], dim=axis + 1)
    step[axis] += 1
    return step
