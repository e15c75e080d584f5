"""MIND-SSC on the CPU, straight onto the cells of its grid: no tensor of all channels at full resolution.

The twelve pairs of neighbours have six differences of position: the squared differences of the image and itself so shifted,
summed over boxes, hold the distance of two pairs each, at two places. They are made plane by plane.
"""

import math

import numpy as np

from nnssl_reg.geometry.threads import FAST, compiled, on_threads

CHUNK = 24  # planes of voxels computed together; the margin's planes are computed twice
_LOG2_E, _LN_2 = np.float32(1 / math.log(2)), np.float32(math.log(2))
_one = np.float32(1)


@compiled(fastmath=FAST)
def _boxed_plane(padded, x, shift, starts, radius, row, out):
    """Sums over boxes in y and z of the squared differences of a plane and the image shifted, out (Y', Z').

    padded: the image with margins; x: of the plane in it; starts: where its rows and columns begin; row: scratch.
    """
    out[:] = 0
    rows, length = out.shape
    for y in range(rows + 2 * radius):
        a = padded[x, starts[0] + y, starts[1] : starts[1] + row.shape[0]]
        other = starts[1] + shift[2]
        b = padded[x + shift[0], starts[0] + shift[1] + y, other : other + row.shape[0]]
        for z in range(row.shape[0]):
            row[z] = (a[z] - b[z]) * (a[z] - b[z])
        for target in range(max(0, y - 2 * radius), min(rows, y + 1)):
            line = out[target]
            for step in range(2 * radius + 1):
                shifted = row[step : step + length]
                for z in range(length):
                    line[z] += shifted[z]


@compiled(fastmath=FAST)
def _next_plane(padded, x, shifts, radius, dilation, row, boxed, sums):
    """Sums over whole boxes around plane x - radius, from those in y and z of the last planes; of all shifts.

    boxed (6, 2 radius + 1, Y', Z') ring of planes, of which that of x is made here; sums (6, dilation + 1, Y', Z') another.
    """
    width, margin = 2 * radius + 1, radius + dilation
    for s in range(shifts.shape[0]):
        starts = (margin - radius - max(0, shifts[s, 1]), margin - radius - max(0, shifts[s, 2]))
        _boxed_plane(padded, x + margin, shifts[s], starts, radius, row, boxed[s, (x + margin) % width])
        total = sums[s, (x - radius + margin) % (dilation + 1)]
        total[:] = 0
        for other in range(width):
            plane = boxed[s, other]
            for y in range(total.shape[0]):
                for z in range(total.shape[1]):
                    total[y, z] += plane[y, z]


@compiled(fastmath=FAST)
def _contrast(sums, x, y, places, margin, scale, distances, least, variance):
    """Distances (12, Z) of row (x, y) less their least, and the mean of that over the pairs.

    places (12, 4): which shift each pair is of, and where its sums lie relative to the voxel: planes before, rows, columns on.
    """
    count, length = distances.shape
    variance[:] = 0
    for k in range(count):
        s, before, down, right = places[k, 0], places[k, 1], places[k, 2], places[k, 3]
        values = sums[s, (x - before + margin) % sums.shape[1], y + down, right : right + length]
        row = distances[k]
        for z in range(length):
            row[z] = values[z]
            variance[z] += values[z]
    least[:] = np.inf
    for k in range(count):
        row = distances[k]
        for z in range(length):
            least[z] = min(least[z], row[z])
    for z in range(length):
        variance[z] = (variance[z] / count - least[z]) * scale


@compiled(fastmath=FAST)
def _add_exponentials(distances, least, rate, fraction, exponent, out):
    """Add exp((distance - least) * rate), rate <= 0, to out (12, Z): 2^n from the bits of a float, the rest by its series."""
    power = exponent.view(np.float32)
    for k in range(distances.shape[0]):
        row, line = distances[k], out[k]
        for z in range(row.shape[0]):
            t = max((row[z] - least[z]) * rate[z] * _LOG2_E, np.float32(-126))
            n = np.rint(t)
            f = (t - n) * _LN_2  # at most 0.35, where seven terms are exact to 1e-7
            series = _one + f * (np.float32(1 / 5) + f * np.float32(1 / 30))
            series = _one + f * np.float32(1 / 3) * (_one + f * np.float32(1 / 4) * series)
            fraction[z] = _one + f * (_one + f * np.float32(1 / 2) * series)
            exponent[z] = (np.int32(n) + np.int32(127)) << np.int32(23)
        for z in range(row.shape[0]):
            line[z] += fraction[z] * power[z]


@compiled(fastmath=FAST)
def _sweep(first, last, padded, shape, shifts, places, radius, dilation, planes, totals, limits, stride, out):
    """Over the voxels of `shape`, in chunks of `planes`: the mean over the pairs of D - min D, summed into totals (chunks); or,
    if totals is empty, exp(-D / V) averaged over cells of `stride` voxels into out (12, X', Y', Z').

    limits: the least and the largest V, and what is added to it. One kernel for both, because it takes seconds to compile.
    """
    count, rows, length, margin = len(places), shape[1], shape[2], radius + dilation
    scale, share = np.float32(1 / (2 * radius + 1) ** 3), np.float32(1 / (stride[0] * stride[1] * stride[2]))
    for chunk in range(first, last):
        boxed = np.empty((len(shifts), 2 * radius + 1, rows + dilation, length + dilation), np.float32)
        sums = np.empty((len(shifts), dilation + 1, rows + dilation, length + dilation), np.float32)
        row, distances = np.empty(length + dilation + 2 * radius, np.float32), np.empty((count, length), np.float32)
        least, variance, fraction = np.empty(length, np.float32), np.empty(length, np.float32), np.empty(length, np.float32)
        exponent, along = np.empty(length, np.int32), np.empty((out.shape[2], count, length), np.float32)
        start, stop = chunk * planes, min((chunk + 1) * planes, shape[0])
        for x in range(start - margin, stop + radius):
            _next_plane(padded, x, shifts, radius, dilation, row, boxed, sums)
            here = x - radius
            if here < start:
                continue
            if here % stride[0] == 0:
                along[:] = 0
            for y in range(rows):
                _contrast(sums, here, y, places, margin, scale, distances, least, variance)
                if totals.shape[0] > 0:
                    for z in range(length):
                        totals[chunk] += variance[z]
                    continue
                for z in range(length):
                    variance[z] = -scale / (min(max(variance[z], limits[0]), limits[1]) + limits[2])
                _add_exponentials(distances, least, variance, fraction, exponent, along[y // stride[1]])
            if totals.shape[0] == 0 and here % stride[0] == stride[0] - 1:
                _pool(along, share, stride[2], out[:, here // stride[0]])


@compiled(fastmath=FAST)
def _pool(along, share, stride, out):
    """Sums of runs of `stride` along the last axis of (Y', 12, Z) times share, into out (12, Y', Z')."""
    for j in range(along.shape[0]):
        for k in range(along.shape[1]):
            row, line = along[j, k], out[k, j]
            for z in range(line.shape[0]):
                total = row[z * stride]
                for step in range(1, stride):
                    total += row[z * stride + step]
                line[z] = total * share


def _shifts_and_places(pairs, dilation: int) -> tuple[np.ndarray, np.ndarray]:
    """The six differences of position, the first step of each forward, and of each pair what _contrast says."""
    shifts, places = [], []
    for pair in pairs:
        base, other = sorted(pair)  # so that the first step that differs is forward
        shift = tuple(b - a for a, b in zip(base, other))
        if shift not in shifts:
            shifts.append(shift)
        origin = [max(0, s) for s in shift[1:]]  # rows and columns before the voxel that its sums begin at
        places.append((shifts.index(shift), -base[0], *(b + o for b, o in zip(base[1:], origin))))
    return np.array(shifts) * dilation, np.array(places) * [1, dilation, dilation, dilation]


def mind_cells(image: np.ndarray, pairs, radius: int, dilation: int, noise: float, stride) -> np.ndarray:
    """What mind.mind_ssc computes, averaged over cells: image (X, Y, Z) float32 -> (12, X', Y', Z') float32."""
    padded, stride = np.pad(image, radius + dilation, mode="edge"), tuple(stride)
    fixed = (*_shifts_and_places(pairs, dilation), radius, dilation)
    out = np.empty((len(pairs), *(n // s for n, s in zip(image.shape, stride))), np.float32)

    totals, none = np.zeros(math.ceil(image.shape[0] / CHUNK)), np.zeros(3, np.float32)
    on_threads(_sweep, len(totals), padded, image.shape, *fixed, CHUNK, totals, none, stride, out[:, :0, :0, :0].copy())
    mean = float(totals.sum() / math.prod(image.shape))
    low, high = max(mean * 1e-3, float(np.finfo(np.float32).tiny)), max(mean * 1e3, 1e-30)

    if math.prod(out.shape):
        limits, planes = np.array([low, high, noise * mean], np.float32), math.ceil(CHUNK / stride[0]) * stride[0]
        inside = tuple(n * s for n, s in zip(out.shape[1:], stride))  # the voxels of whole cells
        on_threads(_sweep, math.ceil(inside[0] / planes), padded, inside, *fixed, planes, totals[:0], limits, stride, out)
    return out
