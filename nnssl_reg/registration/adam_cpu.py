"""The Adam step compiled for CPUs: gradient of the energy, box smoothing and update, each in one sweep over the field."""

import numpy as np

from nnssl_reg.geometry.filters_cpu import copy_part, mirrored, weigh
from nnssl_reg.geometry.lattice_cpu import lattice_positions
from nnssl_reg.geometry.threads import FAST, compiled

_at = np.uint64  # an unsigned index needs no check for being negative, without which loops become vectors
_zero = np.float32(0)
GROUP = 16  # features of a cell that are worked on at once


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
def _cost_slopes(fixed, start, moving, index, steps, fractions, live, count, lanes, slopes):
    """Half the derivative of the squared difference by the moving position, slopes (3, Z), for a row of cells.

    fixed and moving: flat, `count` features per cell; start: the first cell of the row. Features are taken GROUP at a time, a
    number known when compiled, so that no loop has a remainder; lanes (a multiple of GROUP) are 0 for those beyond a cell's.
    """
    us, vs, ws, si, sj, sk = fractions[0], fractions[1], fractions[2], steps[0], steps[1], steps[2]
    s0s, s1s, s2s, groups, count = slopes[0], slopes[1], slopes[2], lanes.shape[0] // GROUP, _at(count)
    for z in range(live.shape[0]):
        ga, gb, gc = _zero, _zero, _zero
        if live[z] != 0:
            u, v, w = us[z], vs[z], ws[z]
            p00, here, k = _at(index[z]) * count, _at(start + z) * count, _at(sk[z]) * count
            p01, p10 = p00 + _at(sj[z]) * count, p00 + _at(si[z]) * count
            p11 = p10 + _at(sj[z]) * count
            for group in range(groups):
                first = _at(group) * _at(GROUP)
                for channel in range(GROUP):
                    n = first + _at(channel)
                    a00, a01 = np.float32(moving[p00 + n]), np.float32(moving[p01 + n])
                    a10, a11 = np.float32(moving[p10 + n]), np.float32(moving[p11 + n])
                    d00, d01 = np.float32(moving[p00 + k + n]) - a00, np.float32(moving[p01 + k + n]) - a01
                    d10, d11 = np.float32(moving[p10 + k + n]) - a10, np.float32(moving[p11 + k + n]) - a11
                    s00, s10 = a00 + w * d00, a10 + w * d10
                    e0, e1 = a01 + w * d01 - s00, a11 + w * d11 - s10
                    s0 = s00 + v * e0
                    slope = s10 + v * e1 - s0
                    difference = lanes[n] * (s0 + u * slope - np.float32(fixed[here + n]))
                    q0, q1 = d00 + v * (d01 - d00), d10 + v * (d11 - d10)
                    ga += difference * slope
                    gb += difference * (e0 + u * (e1 - e0))
                    gc += difference * (q0 + u * (q1 - q0))
            # in the outer half cell the value is constant, so it has no slope there
            ga, gb, gc = ga if live[z] & 2 else _zero, gb if live[z] & 4 else _zero, gc if live[z] & 8 else _zero
        s0s[z], s1s[z], s2s[z] = ga, gb, gc


@compiled(fastmath=FAST)
def _cost_slopes_of_one(fixed, start, moving, index, steps, fractions, live, slopes):
    """As _cost_slopes for a single feature: a GROUP of one would be mostly empty."""
    us, vs, ws, si, sj, sk = fractions[0], fractions[1], fractions[2], steps[0], steps[1], steps[2]
    s0s, s1s, s2s = slopes[0], slopes[1], slopes[2]
    for z in range(live.shape[0]):
        u, v, w, p00, k = us[z], vs[z], ws[z], _at(index[z]), _at(sk[z])
        p01, p10 = p00 + _at(sj[z]), p00 + _at(si[z])
        p11 = p10 + _at(sj[z])
        a00, a01, a10, a11 = np.float32(moving[p00]), np.float32(moving[p01]), np.float32(moving[p10]), np.float32(moving[p11])
        d00, d01 = np.float32(moving[p00 + k]) - a00, np.float32(moving[p01 + k]) - a01
        d10, d11 = np.float32(moving[p10 + k]) - a10, np.float32(moving[p11 + k]) - a11
        s00, s10 = a00 + w * d00, a10 + w * d10
        e0, e1 = a01 + w * d01 - s00, a11 + w * d11 - s10
        s0 = s00 + v * e0
        slope = s10 + v * e1 - s0
        difference = s0 + u * slope - np.float32(fixed[_at(start + z)])
        q0, q1 = d00 + v * (d01 - d00), d10 + v * (d11 - d10)
        # in the outer half cell the value is constant, so it has no slope there; live is 0 outside
        s0s[z] = difference * slope if live[z] & 2 else _zero
        s1s[z] = difference * (e0 + u * (e1 - e0)) if live[z] & 4 else _zero
        s2s[z] = difference * (q0 + u * (q1 - q0)) if live[z] & 8 else _zero


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
def energy_gradient(first, last, fixed, moving, limits, field, matrix, weights, unit, counts, mask, channels, lanes,
                    gradient):  # fmt: skip
    """See kernels_torch.energy_gradient; fixed, moving, counts and mask are flat, the last two empty if there are none.

    lanes: 1 for each of the `channels`, 0 up to a multiple of GROUP; GROUP values beyond the last of fixed and moving are read.
    """
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
            if channels == 1:
                _cost_slopes_of_one(fixed, start, moving, index, steps, fractions, live, slopes)
            else:
                _cost_slopes(fixed, start, moving, index, steps, fractions, live, channels, lanes, slopes)
            for c in range(3):
                _row_gradient(field, c, x, y, slopes, pull[:, c], weights, gradient[c, x, y])


@compiled(fastmath=FAST)
def _pad_rows(plane, ny, nz, half, wide):
    """Copy plane (Y * Z) into wide (Y * (Z + 2 half)), each row mirrored at its ends."""
    length = nz + 2 * half
    for y in range(ny):
        copy_part(plane, _at(y * nz), wide, _at(y * length + half), nz)
    for i in range(half):
        before, after = mirrored(i - half, nz), mirrored(nz + i, nz)
        for y in range(ny):
            wide[y * length + i], wide[y * length + half + nz + i] = plane[y * nz + before], plane[y * nz + after]


@compiled(fastmath=FAST)
def _adam(parameter, gradient, moments, start, rate, correction1, correction2):
    """One Adam step in place on the part of a flat parameter from `start` on that has this gradient; moments (2 N)."""
    for i in range(gradient.shape[0]):
        here, g = _at(start) + _at(i), gradient[i]
        second = here + _at(parameter.shape[0])
        m = np.float32(0.9) * moments[here] + np.float32(0.1) * g
        v = np.float32(0.999) * moments[second] + np.float32(0.001) * g * g
        moments[here], moments[second] = m, v
        parameter[here] -= rate * (m / correction1) / (np.sqrt(v / correction2) + np.float32(1e-8))


@compiled(fastmath=FAST)
def smooth_sweep(first, last, values, shape, taps, out, moments, adam):
    """Convolve flat values (K * X * Y * Z) along the axes of `shape` with symmetric taps, a tuple, mirrored at the outer faces.

    first, last: of the K * X planes.
    adam: empty, and out becomes the result; or (rate, 1 - beta1^t, 1 - beta2^t), and the result is the gradient of an Adam step
    of out, with moments (2 * K * X * Y * Z). Whole planes are summed at once, because short rows waste the vectors.
    """
    nx, ny, nz = shape
    half, size, length = len(taps) // 2, ny * nz, nz + 2 * (len(taps) // 2)
    window, tall = np.empty(len(taps) * size, np.float32), np.empty((ny + 2 * half) * nz, np.float32)
    wide, sums = np.zeros(ny * length + 2 * half, np.float32), np.empty(ny * length, np.float32)
    plane = np.empty(size, np.float32)
    for job in range(first, last):
        x, here = job % nx, job * size
        planes, start = values, here - half * size
        if x < half or x >= nx - half:
            planes, start = window, 0
            for t in range(len(taps)):
                copy_part(values, _at(here + (mirrored(x + t - half, nx) - x) * size), window, _at(t * size), size)
        weigh(planes, _at(start), _at(size), taps, tall, _at(half * nz), size)
        for i in range(half):
            copy_part(tall, _at((half + mirrored(i - half, ny)) * nz), tall, _at(i * nz), nz)
            copy_part(tall, _at((half + mirrored(ny + i, ny)) * nz), tall, _at((half + ny + i) * nz), nz)
        weigh(tall, _at(0), _at(nz), taps, plane, _at(0), size)
        _pad_rows(plane, ny, nz, half, wide)
        weigh(wide, _at(0), _at(1), taps, sums, _at(0), ny * length)
        for y in range(ny):
            copy_part(sums, _at(y * length), plane, _at(y * nz), nz)
        if adam.shape[0] == 0:
            copy_part(plane, _at(0), out, _at(here), size)
        else:
            _adam(out, plane, moments, here, adam[0], adam[1], adam[2])
