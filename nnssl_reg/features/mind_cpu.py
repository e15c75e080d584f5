"""MIND-SSC on the CPU, straight onto the cells of its grid: no tensor of all channels at full resolution."""

import math

import numba
import numpy as np

_FAST = {"contract", "reassoc", "nsz"}
CHUNK = 16  # planes of cells computed together by one core; each chunk computes 2 radius planes twice


@numba.njit(fastmath=_FAST, cache=True, error_model="numpy")
def _boxed_plane(padded, x, pairs, radius, dilation, row, out):
    """Sums over boxes in y and z of the squared differences of each pair in plane x (counted with the box's margin).

    padded: image with margins of radius + dilation; pairs (K, 2, 3); row (Z + 2 radius); out (K, Y, Z).
    """
    out[:] = 0
    count, rows, length = out.shape
    for k in range(count):
        ax, ay, az = x + dilation * (1 + pairs[k, 0, 0]), dilation * (1 + pairs[k, 0, 1]), dilation * (1 + pairs[k, 0, 2])
        bx, by, bz = x + dilation * (1 + pairs[k, 1, 0]), dilation * (1 + pairs[k, 1, 1]), dilation * (1 + pairs[k, 1, 2])
        for y in range(rows + 2 * radius):
            a, b = padded[ax, ay + y, az : az + row.shape[0]], padded[bx, by + y, bz : bz + row.shape[0]]
            for z in range(row.shape[0]):
                row[z] = (a[z] - b[z]) * (a[z] - b[z])
            for target in range(max(0, y - 2 * radius), min(rows, y + 1)):
                line = out[k, target]
                for step in range(2 * radius + 1):
                    for z in range(length):
                        line[z] += row[z + step]


@numba.njit(fastmath=_FAST, cache=True, error_model="numpy")
def _contrast(planes, y, scale, distances, least, variance):
    """Distances (K, Z) of row y less their least, and the mean of that over the pairs, from the planes of a box."""
    count, length = distances.shape
    distances[:] = 0
    for k in range(count):
        for p in range(planes.shape[0]):
            for z in range(length):
                distances[k, z] += planes[p, k, y, z]
    least[:] = distances[0]
    variance[:] = 0
    for k in range(count):
        for z in range(length):
            least[z] = min(least[z], distances[k, z])
            variance[z] += distances[k, z]
    for z in range(length):
        variance[z] = (variance[z] / count - least[z]) * scale
    for k in range(count):
        for z in range(length):
            distances[k, z] = (distances[k, z] - least[z]) * scale


@numba.njit(parallel=True, fastmath=_FAST, cache=True, error_model="numpy")
def _mean_variance(padded, shape, pairs, radius, dilation):
    """Mean over all voxels of the mean over the pairs of D - min D."""
    chunks = (shape[0] + CHUNK - 1) // CHUNK
    sums = np.zeros(chunks)
    for chunk in numba.prange(chunks):
        planes = np.empty((2 * radius + 1, pairs.shape[0], shape[1], shape[2]), np.float32)
        row = np.empty(shape[2] + 2 * radius, np.float32)
        distances = np.empty((pairs.shape[0], shape[2]), np.float32)
        least, variance = np.empty(shape[2], np.float32), np.empty(shape[2], np.float32)
        scale = np.float32(1 / (2 * radius + 1) ** 3)
        first, last = chunk * CHUNK, min((chunk + 1) * CHUNK, shape[0])
        for x in range(first, last + 2 * radius):
            _boxed_plane(padded, x, pairs, radius, dilation, row, planes[x % (2 * radius + 1)])
            if x < first + 2 * radius:
                continue
            for y in range(shape[1]):
                _contrast(planes, y, scale, distances, least, variance)
                sums[chunk] += np.sum(variance)
    return np.sum(sums) / (shape[0] * shape[1] * shape[2])


@numba.njit(parallel=True, fastmath=_FAST, cache=True, error_model="numpy")
def _features(padded, pairs, radius, dilation, low, high, extra, stride, out):
    """exp(-D / V) averaged over cells of `stride` voxels into out (K, X', Y', Z'); V kept within low..high, plus extra."""
    count, cells = out.shape[0], out.shape[1:]
    rows, length = cells[1] * stride[1], cells[2] * stride[2]
    per_chunk = (CHUNK + stride[0] - 1) // stride[0]
    for chunk in numba.prange((cells[0] + per_chunk - 1) // per_chunk):
        planes = np.empty((2 * radius + 1, count, rows, length), np.float32)
        row = np.empty(length + 2 * radius, np.float32)
        distances = np.empty((count, length), np.float32)
        least, variance = np.empty(length, np.float32), np.empty(length, np.float32)
        scale = np.float32(1 / (2 * radius + 1) ** 3)
        share = np.float32(1 / (stride[0] * stride[1] * stride[2]))
        first, last = chunk * per_chunk * stride[0], min((chunk + 1) * per_chunk, cells[0]) * stride[0]
        out[:, first // stride[0] : last // stride[0]] = 0
        for x in range(first, last + 2 * radius):
            _boxed_plane(padded, x, pairs, radius, dilation, row, planes[x % (2 * radius + 1)])
            if x < first + 2 * radius:
                continue
            i = (x - 2 * radius) // stride[0]
            for y in range(rows):
                _contrast(planes, y, scale, distances, least, variance)
                for z in range(length):
                    variance[z] = np.float32(-1) / (min(max(variance[z], low), high) + extra)
                for k in range(count):
                    cell = out[k, i, y // stride[1]]
                    for z in range(length):
                        cell[z // stride[2]] += share * np.exp(distances[k, z] * variance[z])


def mind_cells(image: np.ndarray, pairs, radius: int, dilation: int, noise: float, stride) -> np.ndarray:
    """What mind.mind_ssc computes, averaged over cells: image (X, Y, Z) float32 -> (12, X', Y', Z') float32."""
    padded = np.pad(image, radius + dilation, mode="edge")
    pairs = np.asarray(pairs, dtype=np.int64)
    mean = float(_mean_variance(padded, image.shape, pairs, radius, dilation))
    low, high = max(mean * 1e-3, float(np.finfo(np.float32).tiny)), max(mean * 1e3, 1e-30)
    out = np.empty((len(pairs), *(n // s for n, s in zip(image.shape, stride))), np.float32)
    if math.prod(out.shape):
        limits = (np.float32(v) for v in (low, high, noise * mean))
        _features(padded, pairs, radius, dilation, *limits, tuple(stride), out)
    return out
