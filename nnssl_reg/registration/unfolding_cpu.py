"""The search for folds, and their smoothing, compiled for CPUs: only rows near a fold are looked at again, and changed."""

import numpy as np

from nnssl_reg.geometry.filters_cpu import mirrored
from nnssl_reg.geometry.threads import FAST, compiled

_at = np.uint64  # an unsigned index needs no check for being negative, without which loops become vectors
REACH = 2  # cells that two box filters of 3 look to each side


@compiled(fastmath=FAST)
def _row_steps(before, here, after, own, edges, forward, backward):
    """How a row of x + field(x) changes to the next and from the last cell along an axis; at an edge, that of the other side.

    own: 1 if the field's component is that of the axis, else 0; edges: whether the row is the axis's first, and its last.
    """
    for z in range(here.shape[0]):
        to, since = own + after[z] - here[z], own + here[z] - before[z]
        forward[z], backward[z] = since if edges[1] else to, to if edges[0] else since


@compiled(fastmath=FAST)
def _fill_steps(field, x, y, padded, steps):
    """Steps (3, 2, 3, Z) of row (x, y): along each axis, forward and backward, of each component; padded (Z + 2): scratch."""
    _, nx, ny, nz = field.shape
    for c in range(3):
        here = field[c, x, y]
        for z in range(nz):
            padded[z + 1] = here[z]
        padded[0], padded[nz + 1] = here[0] - (here[min(1, nz - 1)] - here[0]), 2 * here[nz - 1] - here[max(nz - 2, 0)]
        xs, ys = (max(x - 1, 0), min(x + 1, nx - 1)), (max(y - 1, 0), min(y + 1, ny - 1))
        ends_x, ends_y = (x == 0 and nx > 1, x == nx - 1 and nx > 1), (y == 0 and ny > 1, y == ny - 1 and ny > 1)
        own = (np.float32(c == 0), np.float32(c == 1), np.float32(c == 2))
        _row_steps(field[c, xs[0], y], here, field[c, xs[1], y], own[0], ends_x, steps[0, 0, c], steps[0, 1, c])
        _row_steps(field[c, x, ys[0]], here, field[c, x, ys[1]], own[1], ends_y, steps[1, 0, c], steps[1, 1, c])
        inner = (nz < 0, nz < 0)  # never, but no constant, for which numba would compile it anew
        _row_steps(padded[:nz], here, padded[2:], own[2], inner, steps[2, 0, c], steps[2, 1, c])


@compiled(fastmath=FAST)
def folded_rows(first, last, field, least, rows, out):
    """See unfolding.folded_cells_torch; planes first to last of out (X, Y, Z) bool for a field (3, X, Y, Z).

    rows (X, Y) bool: which to look at; in the others nothing is folded.
    """
    _, _, ny, nz = field.shape
    steps, padded = np.empty((3, 2, 3, nz), np.float32), np.empty(nz + 2, np.float32)
    smallest = np.empty(nz, np.float32)
    for x in range(first, last):
        for y in range(ny):
            if not rows[x, y]:
                out[x, y, :] = False
                continue
            _fill_steps(field, x, y, padded, steps)
            smallest[:] = np.inf
            for corner in range(8):
                a, b, c = steps[0, corner // 4], steps[1, corner // 2 % 2], steps[2, corner % 2]
                a0, a1, a2, b0, b1, b2, c0, c1, c2 = a[0], a[1], a[2], b[0], b[1], b[2], c[0], c[1], c[2]
                for z in range(nz):
                    volume = a0[z] * (b1[z] * c2[z] - b2[z] * c1[z])
                    volume += a1[z] * (b2[z] * c0[z] - b0[z] * c2[z])
                    volume += a2[z] * (b0[z] * c1[z] - b1[z] * c0[z])
                    smallest[z] = min(smallest[z], volume)
            row = out[x, y]
            for z in range(nz):
                row[z] = smallest[z] < least


@compiled(fastmath=FAST)
def _convolve_row(row, taps, padded, out):
    """A row (Z) convolved with symmetric taps, mirrored at its outer faces, into out; padded (Z + 2 REACH): scratch."""
    nz, half = row.shape[0], taps.shape[0] // 2
    for z in range(nz):
        padded[half + z] = row[z]
    for i in range(half):
        padded[i], padded[half + nz + i] = row[mirrored(i - half, nz)], row[mirrored(nz + i, nz)]
    out[:] = 0
    for t in range(taps.shape[0]):
        for z in range(nz):
            out[z] += taps[t] * padded[_at(t + z)]


@compiled(fastmath=FAST)
def diffused_rows(first, last, field, folds, rows, narrow, wide, factor, out):
    """Rows of a field (3, X, Y, Z) as one step of unfolding.unfolded leaves them, in out; rows (X, Y) bool: which.

    folds (X, Y, Z) bool; narrow (3), wide (5): taps of one and of two box filters; factor: of the share of the smoothed field.
    """
    _, nx, ny, nz = field.shape
    near, share, sums, smooth = (np.empty(nz, np.float32), np.empty(nz, np.float32), np.empty(nz, np.float32),
                                 np.empty(nz, np.float32))  # fmt: skip
    padded = np.empty(nz + 2 * REACH, np.float32)
    for x in range(first, last):
        for y in range(ny):
            if not rows[x, y]:
                continue
            near[:] = 0
            for a in range(5):
                for b in range(5):
                    row = folds[mirrored(x + a - REACH, nx), mirrored(y + b - REACH, ny)]
                    for z in range(nz):
                        near[z] += wide[a] * wide[b] * np.float32(row[z])
            _convolve_row(near, wide, padded, share)
            for z in range(nz):
                share[z] = min(factor * share[z], np.float32(1))
            for c in range(3):
                sums[:] = 0
                for a in range(3):
                    for b in range(3):
                        row = field[c, mirrored(x + a - 1, nx), mirrored(y + b - 1, ny)]
                        for z in range(nz):
                            sums[z] += narrow[a] * narrow[b] * row[z]
                _convolve_row(sums, narrow, padded, smooth)
                here, target = field[c, x, y], out[c, x, y]
                for z in range(nz):
                    target[z] = here[z] + share[z] * (smooth[z] - here[z])
