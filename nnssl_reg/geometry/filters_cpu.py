"""Convolution along one axis compiled for CPUs, in place."""

import numpy as np

from nnssl_reg.geometry.threads import FAST, compiled, on_threads

_at = np.uint64  # an unsigned index needs no check for being negative, without which loops become vectors
_zero = np.float32(0)
RUN = 1024  # values convolved together: a row of such runs stays in the second cache level


@compiled(fastmath=FAST)
def mirrored(i, count):
    """The cell that stands at place i of a row of `count`, mirrored at the outer faces of its ends again and again."""
    i = i % (2 * count)
    return i if i < count else 2 * count - 1 - i


@compiled(fastmath=FAST)
def weigh(source, start, stride, taps, out, into, count):
    """Write `count` sums of flat source at `start` and steps of `stride` on to flat out; taps: a tuple, so that they unroll.

    start, stride and into are of the type `_at`: numba would compile it anew for each that is a constant.
    """
    for i in range(count):
        total = _zero
        for t in range(len(taps)):
            total += taps[t] * source[start + _at(t) * stride + _at(i)]
        out[into + _at(i)] = total


@compiled(fastmath=FAST)
def copy_part(source, start, out, into, count):
    for i in range(count):
        out[into + _at(i)] = source[start + _at(i)]


@compiled(fastmath=FAST)
def weigh_middle(first, last, flat, start, count, inner, taps):
    """Convolve the (count, inner) values of a flat array from `start` on along the first of both, mirrored at its outer faces.

    first, last: of its runs; taps: a tuple, see `weigh`.
    """
    half = len(taps) // 2
    padded = np.empty((count + 2 * half) * RUN, np.float32)
    for run in range(first, last):
        here, length = start + run * RUN, min(RUN, inner - run * RUN)
        for n in range(-half, count + half):
            copy_part(flat, _at(here + mirrored(n, count) * inner), padded, _at((n + half) * length), length)
        for n in range(count):
            weigh(padded, _at(n * length), _at(length), taps, flat, _at(here + n * inner), length)


@compiled(fastmath=FAST)
def _add_shifted(before, weight, out):
    for k in range(out.shape[0]):
        out[k] += weight * before[k]


@compiled(fastmath=FAST)
def _convolve_middle(first, last, values, taps, mirror):
    """Convolve (A, N, B) along N, in `runs` jobs for each of A, mirrored beyond the ends or else with the end's own value."""
    outer, count, inner = values.shape
    half, runs = taps.shape[0] // 2, (inner + RUN - 1) // RUN
    for job in range(first, last):
        a, start = job // runs, (job % runs) * RUN
        stop = min(start + RUN, inner)
        before = values[a, :, start:stop].copy()
        for n in range(count):
            row = values[a, n, start:stop]
            row[:] = 0
            for t in range(taps.shape[0]):
                i = n + t - half
                i = mirrored(i, count) if mirror else min(max(i, 0), count - 1)
                _add_shifted(before[i], taps[t], row)


@compiled(fastmath=FAST)
def _convolve_last(first, last, values, taps, mirror):
    """Convolve (A, N) along N."""
    outer, count = values.shape
    half = taps.shape[0] // 2
    for a in range(first, last):
        row, padded = values[a], np.empty(count + 2 * half, np.float32)
        for n in range(count):
            padded[half + n] = row[n]
        for i in range(half):
            padded[i] = row[mirrored(i - half, count)] if mirror else row[0]
            padded[half + count + i] = row[mirrored(count + i, count)] if mirror else row[count - 1]
        row[:] = 0
        for t in range(taps.shape[0]):
            _add_shifted(padded[t : t + count], taps[t], row)


@compiled(fastmath=FAST)
def _sum_middle(first, last, values, starts, weights, out):
    """Weighted sums of (A, N, B) along N into out (A, M, B)."""
    count, inner, runs = values.shape[1], values.shape[2], (values.shape[2] + RUN - 1) // RUN
    for job in range(first, last):
        a, start = job // runs, (job % runs) * RUN
        stop = min(start + RUN, inner)
        for m in range(out.shape[1]):
            row = out[a, m, start:stop]
            row[:] = 0
            for t in range(weights.shape[1]):
                if weights[m, t] != 0:
                    _add_shifted(values[a, min(max(starts[m] + t, 0), count - 1), start:stop], weights[m, t], row)


@compiled(fastmath=FAST)
def _sum_last(first, last, values, starts, weights, out):
    """Weighted sums of (A, N) along N into out (A, M)."""
    count = values.shape[1]
    for a in range(first, last):
        for m in range(out.shape[1]):
            total = np.float32(0)
            for t in range(weights.shape[1]):
                total += weights[m, t] * values[a, min(max(starts[m] + t, 0), count - 1)]
            out[a, m] = total


def weighted_sums(values: np.ndarray, axis: int, starts: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Sums of a C-ordered float32 array along an axis: element m of the result is that of weights[m] (M, T) and the T values
    from starts[m] on, beyond whose ends stand the end's own."""
    shape, count = values.shape, values.shape[axis]
    outer, inner = int(np.prod(shape[:axis])), int(np.prod(shape[axis + 1 :]))
    out = np.empty((*shape[:axis], len(starts), *shape[axis + 1 :]), np.float32)
    given = starts.astype(np.int64), weights.astype(np.float32)
    if inner == 1:
        on_threads(_sum_last, outer, values.reshape(outer, count), *given, out.reshape(outer, -1))
    else:
        jobs = outer * ((inner + RUN - 1) // RUN)
        on_threads(_sum_middle, jobs, values.reshape(outer, count, inner), *given, out.reshape(outer, -1, inner))
    return out


def convolve(values: np.ndarray, axis: int, taps: np.ndarray, mirror: bool) -> None:
    """Convolve a C-ordered float32 array along an axis with symmetric taps, in place.

    Beyond the ends stand the mirrored values (mirror), or else the end's own.
    """
    outer, count = int(np.prod(values.shape[:axis])), values.shape[axis]
    inner = int(np.prod(values.shape[axis + 1 :]))
    if inner == 1:
        on_threads(_convolve_last, outer, values.reshape(outer, count), taps, mirror)
    else:
        jobs = outer * ((inner + RUN - 1) // RUN)
        on_threads(_convolve_middle, jobs, values.reshape(outer, count, inner), taps, mirror)
