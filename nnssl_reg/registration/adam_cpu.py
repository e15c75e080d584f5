"""The Adam step compiled for CPUs: gradient of the energy, box smoothing and update, each in one sweep over the field."""

import numpy as np

from nnssl_reg.geometry.filters_cpu import mirrored
from nnssl_reg.geometry.lattice_cpu import lattice_positions
from nnssl_reg.geometry.threads import FAST, compiled

_at = np.uint64  # an unsigned index needs no check for being negative, without which loops become vectors
_zero = np.float32(0)


@compiled(fastmath=FAST)
def silence(live, index, steps, fractions, counts, mask):
    """Set live to 0 where the fixed cell does not count (counts (Z), or none), or not all cells of the moving mask it needs."""
    for z in range(live.shape[0]):
        if counts.shape[0] > 0 and not counts[z]:
            live[z] = 0
        if mask.shape[0] > 0 and live[z] > 0:
            u, v, w = fractions[0, z], fractions[1, z], fractions[2, z]
            share, i = _zero, index[z]
            for a in range(2):
                for b in range(2):
                    for c in range(2):
                        weight = (u if a else 1 - u) * (v if b else 1 - v) * (w if c else 1 - w)
                        if mask[i + a * steps[0, z] + b * steps[1, z] + c * steps[2, z]]:
                            share += weight
            if share <= np.float32(1 - 1e-4):
                live[z] = 0


@compiled(fastmath=FAST)
def _cost_slopes(fixed, moving, index, steps, fractions, live, count, slopes):
    """Half the derivative of the squared difference by the moving position, slopes (3, Z), for a row of cells.

    fixed (Z * C), moving (X' * Y' * Z' * C); count: C.
    """
    us, vs, ws, si, sj, sk = fractions[0], fractions[1], fractions[2], steps[0], steps[1], steps[2]
    s0s, s1s, s2s = slopes[0], slopes[1], slopes[2]
    for z in range(live.shape[0]):
        ga, gb, gc = _zero, _zero, _zero
        if live[z] != 0:
            u, v, w = us[z], vs[z], ws[z]
            p00, here, k = _at(index[z]) * _at(count), _at(z) * _at(count), _at(sk[z]) * _at(count)
            p01, p10 = p00 + _at(sj[z]) * _at(count), p00 + _at(si[z]) * _at(count)
            p11 = p10 + _at(sj[z]) * _at(count)
            for channel in range(count):
                n = _at(channel)
                a00, a01 = np.float32(moving[p00 + n]), np.float32(moving[p01 + n])
                a10, a11 = np.float32(moving[p10 + n]), np.float32(moving[p11 + n])
                d00, d01 = np.float32(moving[p00 + k + n]) - a00, np.float32(moving[p01 + k + n]) - a01
                d10, d11 = np.float32(moving[p10 + k + n]) - a10, np.float32(moving[p11 + k + n]) - a11
                s00, s10 = a00 + w * d00, a10 + w * d10
                e0, e1 = a01 + w * d01 - s00, a11 + w * d11 - s10
                s0 = s00 + v * e0
                slope = s10 + v * e1 - s0
                difference = s0 + u * slope - np.float32(fixed[here + n])
                q0, q1 = d00 + v * (d01 - d00), d10 + v * (d11 - d10)
                ga += difference * slope
                gb += difference * (e0 + u * (e1 - e0))
                gc += difference * (q0 + u * (q1 - q0))
            # in the outer half cell the value is constant, so it has no slope there
            ga, gb, gc = ga if live[z] & 2 else _zero, gb if live[z] & 4 else _zero, gc if live[z] & 8 else _zero
        s0s[z], s1s[z], s2s[z] = ga, gb, gc


@compiled(fastmath=FAST)
def _row_gradient(field, c, x, y, slopes, pull, weights, out):
    """Derivative by component c of row (x, y): pull (3) times slopes (3, Z), and that of the diffusion energy, into out (Z).

    Beyond an edge stands the edge value, so that it has no difference to its neighbour.
    """
    _, nx, ny, nz = field.shape
    here, s0, s1, s2 = field[c, x, y], slopes[0], slopes[1], slopes[2]
    x0, x1 = field[c, max(x - 1, 0), y], field[c, min(x + 1, nx - 1), y]
    y0, y1 = field[c, x, max(y - 1, 0)], field[c, x, min(y + 1, ny - 1)]
    p0, p1, p2, w0, w1, w2 = pull[0], pull[1], pull[2], 2 * weights[0, c], 2 * weights[1, c], 2 * weights[2, c]
    for z in range(nz):
        twice = here[z] + here[z]
        out[z] = p0 * s0[z] + p1 * s1[z] + p2 * s2[z] + w0 * (twice - x0[z] - x1[z]) + w1 * (twice - y0[z] - y1[z])
    before, after, inner, middle = here[: nz - 2], here[2:], here[1 : nz - 1], out[1 : nz - 1]
    for z in range(nz - 2):
        middle[z] += w2 * (inner[z] + inner[z] - before[z] - after[z])
    out[0] += w2 * (here[0] - here[min(1, nz - 1)])
    out[nz - 1] += w2 * (here[nz - 1] - here[max(nz - 2, 0)])


@compiled(fastmath=FAST)
def energy_gradient(first, last, fixed, moving, limits, field, matrix, weights, unit, counts, mask, channels, gradient):
    """See kernels_torch.energy_gradient; fixed, moving, counts and mask are flat, the last two empty if there are none."""
    _, nx, ny, nz = field.shape
    pull = np.float32(2) * unit * unit * matrix[:, :3]
    for x in range(first, last):
        index, live, slopes = np.empty(nz, np.int32), np.empty(nz, np.int32), np.empty((3, nz), np.float32)
        steps, fractions = np.empty((3, nz), np.int32), np.empty((3, nz), np.float32)
        for y in range(ny):
            start = (x * ny + y) * nz
            rows = (field[0, x, y], field[1, x, y], field[2, x, y])
            lattice_positions(rows, x, y, matrix, limits, index, steps, fractions, live)
            if counts.shape[0] > 0 or mask.shape[0] > 0:
                silence(live, index, steps, fractions, counts[start : start + nz], mask)
            row = fixed[start * channels : (start + nz) * channels]
            _cost_slopes(row, moving, index, steps, fractions, live, channels, slopes)
            for c in range(3):
                _row_gradient(field, c, x, y, slopes, pull[:, c], weights, gradient[c, x, y])


@compiled(fastmath=FAST)
def _smooth_plane(plane, taps, padded, rows, out):
    """Convolve a plane (Y, Z) along both axes with symmetric taps; padded (Z + taps - 1) and rows (Y, Z) are scratch."""
    ny, nz = plane.shape
    half = taps.shape[0] // 2
    for y in range(ny):
        row, values = rows[y], plane[y]
        for z in range(nz):
            padded[half + z] = values[z]
        for i in range(half):
            padded[i], padded[half + nz + i] = values[mirrored(i - half, nz)], values[mirrored(nz + i, nz)]
        row[:] = 0
        for t in range(taps.shape[0]):
            shifted, weight = padded[t : t + nz], taps[t]
            for z in range(nz):
                row[z] += weight * shifted[z]
    for y in range(ny):
        target = out[y]
        target[:] = 0
        for t in range(taps.shape[0]):
            other, weight = rows[mirrored(y + t - half, ny)], taps[t]
            for z in range(nz):
                target[z] += weight * other[z]


@compiled(fastmath=FAST)
def _sum_planes(ring, first, taps, out):
    """Sum of the planes of a ring (T, Y * Z), the `first` one weighted by taps[0]."""
    out[:] = 0
    for t in range(taps.shape[0]):
        plane, weight = ring[(first + t) % taps.shape[0]], taps[t]
        for i in range(out.shape[0]):
            out[i] += weight * plane[i]


@compiled(fastmath=FAST)
def _adam(parameter, gradient, first, second, rate, correction1, correction2):
    """One Adam step in place on flat arrays."""
    for i in range(parameter.shape[0]):
        g = gradient[i]
        m = np.float32(0.9) * first[i] + np.float32(0.1) * g
        v = np.float32(0.999) * second[i] + np.float32(0.001) * g * g
        first[i], second[i] = m, v
        parameter[i] -= rate * (m / correction1) / (np.sqrt(v / correction2) + np.float32(1e-8))


@compiled(fastmath=FAST)
def smooth_sweep(first, last, values, taps, chunk, out, moments, adam):
    """Convolve (K, X, Y, Z) along its axes with symmetric taps, mirrored at the outer faces.

    first, last: of K times the chunks of planes; the planes of the filter's halo are computed twice.

    adam: empty, and out becomes the result; or (rate, 1 - beta1^t, 1 - beta2^t), and the result is the gradient of an Adam step
    of out, with moments (2, K, X, Y, Z).
    """
    _, nx, ny, nz = values.shape
    half, chunks = taps.shape[0] // 2, (nx + chunk - 1) // chunk
    for job in range(first, last):
        c, start = job // chunks, (job % chunks) * chunk
        ring, rows = np.empty((taps.shape[0], ny, nz), np.float32), np.empty((ny, nz), np.float32)
        padded, plane = np.empty(nz + 2 * half, np.float32), np.empty(ny * nz, np.float32)
        flat = ring.reshape(taps.shape[0], ny * nz)
        for x in range(start - half, min(start + chunk, nx) + half):
            _smooth_plane(values[c, mirrored(x, nx)], taps, padded, rows, ring[(x - start + half) % taps.shape[0]])
            done = x - half
            if done < start:
                continue
            target = out[c, done].reshape(ny * nz)
            if adam.shape[0] == 0:
                _sum_planes(flat, done - start, taps, target)
            else:
                _sum_planes(flat, done - start, taps, plane)
                mean, square = moments[0, c, done].reshape(ny * nz), moments[1, c, done].reshape(ny * nz)
                _adam(target, plane, mean, square, adam[0], adam[1], adam[2])
