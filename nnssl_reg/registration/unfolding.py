"""Remove folds from a displacement field: smooth it where, and only where, it turns space inside out."""

from itertools import product

import numpy as np
import torch
import torch.nn.functional as F

from nnssl_reg.geometry.threads import on_threads
from nnssl_reg.geometry.triton_devices import runs_triton
from nnssl_reg.registration.kernels_cpu import box_taps
from nnssl_reg.registration.unfolding_cpu import REACH, diffused_rows, folded_rows

LEAST_JACOBIAN = 0.05  # of volume a cell must keep; a little above 0, because the field is interpolated afterwards
ITERATIONS = 50
SPREAD, SHARE = 2, 4  # box filters of 3 cells over the folds, and by what the result is multiplied for the share, at most 1


def unfolded(field: torch.Tensor, kernels, free: torch.Tensor | None = None) -> torch.Tensor:
    """A field (3, X, Y, Z) in cells with its folds smoothed away; unchanged, to the bit, where nothing folds.

    Cells around a fold are diffused until every corner of the linearly interpolated field keeps LEAST_JACOBIAN of its volume,
    or ITERATIONS are over. free: (X, Y, Z) bool, the cells that may change; None: all.
    """
    if free is None and _is_compiled(field):
        return _unfolded_on_cpu(field)
    for _ in range(ITERATIONS):
        folds = folded_cells(field) if free is None else folded_cells(field) & free
        if not folds.any():
            break
        share = kernels.smooth(folds.float()[None], SPREAD).mul_(SHARE).clamp_(max=1)
        share = share if free is None else share * free
        field = torch.lerp(field, kernels.smooth(field, 1), share)
    return field


def folded_cells(field: torch.Tensor, least: float = LEAST_JACOBIAN) -> torch.Tensor:
    """Cells (X, Y, Z) bool at one of whose eight corners the interpolated map x + field(x) keeps less than `least` volume."""
    if _is_compiled(field):
        return _folded_in(torch.ones(field.shape[1:3], dtype=torch.bool), field.contiguous(), least)
    if runs_triton(field.device) and field.dtype == torch.float32:
        from nnssl_reg.registration import unfolding_triton

        return unfolding_triton.folded_cells(field, least)
    return folded_cells_torch(field, least)


def _is_compiled(field: torch.Tensor) -> bool:
    return field.device.type == "cpu" and field.dtype == torch.float32


def _unfolded_on_cpu(field: torch.Tensor) -> torch.Tensor:
    """What `unfolded` does, on the CPU: after the first look only on rows near a fold, of which there are ever fewer."""
    rows, before = torch.ones(field.shape[1:3], dtype=torch.bool), field
    narrow, wide = box_taps(1), box_taps(SPREAD)
    for _ in range(ITERATIONS):
        folds = _folded_in(rows, field.contiguous())
        changed = _grown(folds.any(2), REACH)
        if not changed.any():
            break
        if field is before:
            field, after = field.clone(memory_format=torch.contiguous_format), torch.empty(field.shape)
        arrays = field.numpy(), folds.numpy(), changed.numpy()
        on_threads(diffused_rows, len(folds), *arrays, narrow, wide, np.float32(SHARE), after.numpy())
        field[:, changed] = after[:, changed]
        rows = _grown(changed, 1)
    return field


def _folded_in(rows: torch.Tensor, field: torch.Tensor, least: float = LEAST_JACOBIAN) -> torch.Tensor:
    out = torch.empty(field.shape[1:], dtype=torch.bool)
    on_threads(folded_rows, len(out), field.numpy(), np.float32(least), rows.numpy(), out.numpy())
    return out


def _grown(rows: torch.Tensor, by: int) -> torch.Tensor:
    """Rows (X, Y) bool and those at most `by` beside them."""
    return F.max_pool2d(rows[None].float(), 2 * by + 1, 1, by)[0] > 0


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
