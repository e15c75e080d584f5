"""Fused, parallel CPU kernels of ConvexAdam in numba; kernels_torch says in plain torch what each computes."""

import numba
import numpy as np
import torch

# contract lets a multiply and an add fuse, reassoc lets the sum over channels use vectors; NaN keeps its meaning
_FAST = {"contract", "reassoc", "nsz"}
RUN = 4096  # values convolved together: seven such rows stay in the first cache levels
SHORT = 16  # values per cell below which a row of cells is convolved as one run


@numba.njit(parallel=True, fastmath=_FAST, cache=True, error_model="numpy")
def _warp_cost(fixed, moving, field, matrix, cost, gradient):
    """Squared feature difference at the warped position of every fixed cell, and its gradient by the displacement.

    fixed (X, Y, Z, C), moving (X', Y', Z', C), field (X, Y, Z, 3) displacement in fixed cells, matrix (3, 4): fixed cell ->
    moving cell. Writes cost (X, Y, Z) and gradient (X, Y, Z, 3); both are 0 where the position is outside the moving cells.
    """
    shape, channels, limits = fixed.shape, fixed.shape[3], moving.shape
    for x in numba.prange(shape[0]):
        for y in range(shape[1]):
            for z in range(shape[2]):
                px, py, pz = x + field[x, y, z, 0], y + field[x, y, z, 1], z + field[x, y, z, 2]
                a = matrix[0, 0] * px + matrix[0, 1] * py + matrix[0, 2] * pz + matrix[0, 3]
                b = matrix[1, 0] * px + matrix[1, 1] * py + matrix[1, 2] * pz + matrix[1, 3]
                c = matrix[2, 0] * px + matrix[2, 1] * py + matrix[2, 2] * pz + matrix[2, 3]
                cost[x, y, z] = 0
                gradient[x, y, z, 0] = gradient[x, y, z, 1] = gradient[x, y, z, 2] = 0
                inside = -0.5 <= a <= limits[0] - 0.5 and -0.5 <= b <= limits[1] - 0.5 and -0.5 <= c <= limits[2] - 0.5
                if not inside:
                    continue
                free_a, free_b, free_c = 0 <= a <= limits[0] - 1, 0 <= b <= limits[1] - 1, 0 <= c <= limits[2] - 1
                a, b, c = max(a, 0.0), max(b, 0.0), max(c, 0.0)
                i, j, k = int(a), int(b), int(c)
                i1, j1, k1 = min(i + 1, limits[0] - 1), min(j + 1, limits[1] - 1), min(k + 1, limits[2] - 1)
                i, j, k = min(i, limits[0] - 1), min(j, limits[1] - 1), min(k, limits[2] - 1)
                u, v, w = np.float32(min(a - i, 1.0)), np.float32(min(b - j, 1.0)), np.float32(min(c - k, 1.0))
                u0, v0, w0 = np.float32(1) - u, np.float32(1) - v, np.float32(1) - w
                f = fixed[x, y, z]
                m000, m001, m010, m011 = moving[i, j, k], moving[i, j, k1], moving[i, j1, k], moving[i, j1, k1]
                m100, m101, m110, m111 = moving[i1, j, k], moving[i1, j, k1], moving[i1, j1, k], moving[i1, j1, k1]
                total = np.float32(0)
                ga, gb, gc = np.float32(0), np.float32(0), np.float32(0)
                for n in range(channels):
                    s00, s01 = w0 * m000[n] + w * m001[n], w0 * m010[n] + w * m011[n]
                    s10, s11 = w0 * m100[n] + w * m101[n], w0 * m110[n] + w * m111[n]
                    s0, s1 = v0 * s00 + v * s01, v0 * s10 + v * s11
                    difference = u0 * s0 + u * s1 - f[n]
                    total += difference * difference
                    ga += difference * (s1 - s0)
                    gb += difference * (u0 * (s01 - s00) + u * (s11 - s10))
                    d0 = v0 * (m001[n] - m000[n]) + v * (m011[n] - m010[n])
                    d1 = v0 * (m101[n] - m100[n]) + v * (m111[n] - m110[n])
                    gc += difference * (u0 * d0 + u * d1)
                cost[x, y, z] = total
                # in the outer half cell the value is constant, so it has no slope there
                ga, gb, gc = ga if free_a else 0, gb if free_b else 0, gc if free_c else 0
                for axis in range(3):
                    slope = ga * matrix[0, axis] + gb * matrix[1, axis] + gc * matrix[2, axis]
                    gradient[x, y, z, axis] = 2 * slope


@numba.njit(parallel=True, fastmath=_FAST, cache=True, error_model="numpy")
def _cost_volume(fixed, moving, valid, radius, out):
    """Squared difference of each fixed cell to the moving cells around it: fixed (X, Y, Z, C), out (X, Y, Z, K).

    moving (X + 2 r0, Y + 2 r1, Z + 2 r2, C) has a margin of `radius` cells; K runs over displacements -r..r in C order. Where
    `valid` (shape of moving without C) is False the cost is the mean of the cell's valid ones: it neither pulls nor pushes.
    """
    r0, r1, r2 = radius
    channels = fixed.shape[3]
    for x in numba.prange(fixed.shape[0]):
        for y in range(fixed.shape[1]):
            for z in range(fixed.shape[2]):
                f, row = fixed[x, y, z], out[x, y, z]
                k, count, total = 0, 0, np.float32(0)
                for i in range(2 * r0 + 1):
                    for j in range(2 * r1 + 1):
                        for l in range(2 * r2 + 1):  # noqa: E741
                            if valid[x + i, y + j, z + l]:
                                m = moving[x + i, y + j, z + l]
                                s = np.float32(0)
                                for n in range(channels):
                                    s += (f[n] - m[n]) * (f[n] - m[n])
                                row[k] = s
                                total += s
                                count += 1
                            else:
                                row[k] = -1
                            k += 1
                mean = total / count if count else np.float32(0)
                for k in range(row.shape[0]):
                    if row[k] < 0:
                        row[k] = mean


@numba.njit(parallel=True, fastmath=_FAST, cache=True, error_model="numpy")
def _coupled_argmin(cost, displacements, field, weight, out):
    """out(x) = the displacement d that minimises cost(x, d) + weight |d - field(x)|^2.

    cost (X, Y, Z, K), displacements (K, 3), field and out (X, Y, Z, 3); ties go to the displacement nearest to 0.
    """
    count = displacements.shape[0]
    for x in numba.prange(cost.shape[0]):
        for y in range(cost.shape[1]):
            for z in range(cost.shape[2]):
                row = cost[x, y, z]
                a, b, c = field[x, y, z, 0], field[x, y, z, 1], field[x, y, z, 2]
                best, winner, nearest = np.float32(np.inf), 0, np.float32(np.inf)
                for k in range(count):
                    d0, d1, d2 = displacements[k, 0], displacements[k, 1], displacements[k, 2]
                    value = row[k] + weight * ((d0 - a) * (d0 - a) + (d1 - b) * (d1 - b) + (d2 - c) * (d2 - c))
                    if value <= best:
                        length = d0 * d0 + d1 * d1 + d2 * d2
                        if value < best or length < nearest:
                            best, winner, nearest = value, k, length
                for axis in range(3):
                    out[x, y, z, axis] = displacements[winner, axis]


@numba.njit(parallel=True, fastmath=_FAST, cache=True, error_model="numpy")
def _smooth_middle(source, taps, chunk, out):
    """Convolve (A, N, B) along N with symmetric taps, mirrored at the outer faces of the edge cells; B in runs of `chunk`."""
    outer, count, inner = source.shape
    half, chunks = taps.shape[0] // 2, (inner + chunk - 1) // chunk
    for job in numba.prange(outer * chunks):
        a, start = job // chunks, (job % chunks) * chunk
        stop = min(start + chunk, inner)
        for n in range(count):
            row = out[a, n, start:stop]
            row[:] = 0
            for t in range(-half, half + 1):
                i = (n + t) % (2 * count)
                other = source[a, i if i < count else 2 * count - 1 - i, start:stop]
                weight = taps[t + half]
                for k in range(row.shape[0]):
                    row[k] += weight * other[k]


@numba.njit(parallel=True, fastmath=_FAST, cache=True, error_model="numpy")
def _smooth_last(source, taps, width, out):
    """Convolve the rows of (A, N * width) along N as _smooth_middle does, for so small a width that rows are one run."""
    outer, length = source.shape
    count, half = length // width, taps.shape[0] // 2
    edge = min(half, count)
    for a in numba.prange(outer):
        row, values = out[a], source[a]
        row[:] = 0
        for t in range(-half, half + 1):
            weight, shift = taps[t + half], t * width
            for k in range(edge * width, (count - edge) * width):
                row[k] += weight * values[k + shift]
            for m in range(2 * edge if count > 2 * edge else count):
                n = m if m < edge or count <= 2 * edge else count - 2 * edge + m
                i = (n + t) % (2 * count)
                i = i if i < count else 2 * count - 1 - i
                for k in range(width):
                    row[n * width + k] += weight * values[i * width + k]


@numba.njit(parallel=True, fastmath=_FAST, cache=True, error_model="numpy")
def _diffusion_gradient(field, weights, gradient):
    """Add to gradient the derivative of sum over axes a, components c of weights[a, c] (field(x + e_a) - field(x))_c^2."""
    shape = field.shape
    for x in numba.prange(shape[0]):
        for y in range(shape[1]):
            for z in range(shape[2]):
                for c in range(3):
                    here = field[x, y, z, c]
                    total = np.float32(0)
                    if x > 0:
                        total += weights[0, c] * (here - field[x - 1, y, z, c])
                    if x < shape[0] - 1:
                        total += weights[0, c] * (here - field[x + 1, y, z, c])
                    if y > 0:
                        total += weights[1, c] * (here - field[x, y - 1, z, c])
                    if y < shape[1] - 1:
                        total += weights[1, c] * (here - field[x, y + 1, z, c])
                    if z > 0:
                        total += weights[2, c] * (here - field[x, y, z - 1, c])
                    if z < shape[2] - 1:
                        total += weights[2, c] * (here - field[x, y, z + 1, c])
                    gradient[x, y, z, c] += 2 * total


@numba.njit(parallel=True, fastmath=_FAST, cache=True, error_model="numpy")
def _adam_step(parameter, gradient, first, second, rate, correction1, correction2):
    """One Adam step in place on flat arrays (Kingma & Ba 2015; beta 0.9 and 0.999, epsilon 1e-8)."""
    for i in numba.prange(parameter.shape[0]):
        g = gradient[i]
        m = np.float32(0.9) * first[i] + np.float32(0.1) * g
        v = np.float32(0.999) * second[i] + np.float32(0.001) * g * g
        first[i], second[i] = m, v
        parameter[i] -= rate * (m / correction1) / (np.sqrt(v / correction2) + np.float32(1e-8))


def _arrays(*tensors: torch.Tensor):
    """The same memory as numpy arrays."""
    return [tensor.detach().numpy() for tensor in tensors]


def warp_cost(fixed, moving, field, matrix) -> tuple[torch.Tensor, torch.Tensor]:
    """See kernels_torch.warp_cost."""
    cost, gradient = torch.empty(fixed.shape[:3]), torch.empty_like(field)
    _warp_cost(*_arrays(fixed, moving, field), matrix, *_arrays(cost, gradient))
    return cost, gradient


def cost_volume(fixed, moving, valid, radius) -> torch.Tensor:
    """See kernels_torch.cost_volume."""
    out = torch.empty(*fixed.shape[:3], int(np.prod([2 * r + 1 for r in radius])))
    _cost_volume(*_arrays(fixed, moving, valid), tuple(radius), out.numpy())
    return out


def coupled_argmin(cost, displacements, field, weight: float) -> torch.Tensor:
    """See kernels_torch.coupled_argmin."""
    out = torch.empty_like(field)
    _coupled_argmin(*_arrays(cost, displacements, field), np.float32(weight), out.numpy())
    return out


def smooth(values, passes: int) -> torch.Tensor:
    """See kernels_torch.smooth."""
    taps = np.ones(1)
    for _ in range(passes):
        taps = np.convolve(taps, np.ones(3) / 3)
    taps = taps.astype(np.float32)
    x, y, z, width = values.shape
    first, second = torch.empty_like(values), torch.empty_like(values)
    _smooth_middle(values.numpy().reshape(1, x, y * z * width), taps, RUN, first.numpy().reshape(1, x, y * z * width))
    _smooth_middle(first.numpy().reshape(x, y, z * width), taps, RUN, second.numpy().reshape(x, y, z * width))
    if width < SHORT:
        _smooth_last(second.numpy().reshape(x * y, z * width), taps, width, first.numpy().reshape(x * y, z * width))
    else:
        _smooth_middle(second.numpy().reshape(x * y, z, width), taps, RUN, first.numpy().reshape(x * y, z, width))
    return first


def add_diffusion_gradient(field, weights, gradient) -> None:
    """See kernels_torch.add_diffusion_gradient."""
    _diffusion_gradient(*_arrays(field, weights, gradient))


def adam_step(parameter, gradient, first, second, rate: float, step: int) -> None:
    """See kernels_torch.adam_step."""
    arrays = [tensor.view(-1).numpy() for tensor in (parameter, gradient, first, second)]  # view: a copy would be lost
    _adam_step(*arrays, np.float32(rate), np.float32(1 - 0.9**step), np.float32(1 - 0.999**step))
