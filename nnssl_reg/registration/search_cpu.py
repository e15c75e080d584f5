"""The dense search compiled for CPUs: block means of warped features, cost volume, and coupled argmin."""

import numpy as np

from nnssl_reg.geometry.filters_cpu import RUN, weigh_middle
from nnssl_reg.geometry.lattice_cpu import lattice_positions
from nnssl_reg.geometry.threads import FAST, compiled
from nnssl_reg.registration.adam_cpu import silence

FEW = 4  # a candidate looked at by itself takes as long as so many in a row
LANES = 16  # cells of a row that are compared at once
_one = np.float32(1)
_at = np.uint64  # an unsigned index needs no check for being negative, without which loops become vectors


@compiled(fastmath=FAST)
def _add_row(moving, index, steps, fractions, live, size, channels, sums, counts):
    """Add the features of a row of cells, and how many are live, to its blocks of `size`: sums (B * C), counts (B)."""
    us, vs, ws, si, sj, sk = fractions[0], fractions[1], fractions[2], steps[0], steps[1], steps[2]
    count = _at(channels)
    for z in range(live.shape[0]):
        if live[z] == 0:
            continue
        counts[z // size] += 1
        u, v, w, block = us[z], vs[z], ws[z], _at(z // size) * count
        p00, k = _at(index[z]) * count, _at(sk[z]) * count
        p01, p10 = p00 + _at(sj[z]) * count, p00 + _at(si[z]) * count
        p11 = p10 + _at(sj[z]) * count
        for channel in range(channels):
            n = _at(channel)
            a00, a01 = np.float32(moving[p00 + n]), np.float32(moving[p01 + n])
            a10, a11 = np.float32(moving[p10 + n]), np.float32(moving[p11 + n])
            s00, s01 = a00 + w * (moving[p00 + k + n] - a00), a01 + w * (moving[p01 + k + n] - a01)
            s10, s11 = a10 + w * (moving[p10 + k + n] - a10), a11 + w * (moving[p11 + k + n] - a11)
            s0, s1 = s00 + v * (s01 - s00), s10 + v * (s11 - s10)
            sums[block + n] += s0 + u * (s1 - s0)


@compiled(fastmath=FAST)
def block_means(first, last, moving, limits, field, matrix, unit, mask, factor, radius, channels, out, valid):
    """See kernels_torch.block_means; moving and mask are flat, the mask empty if there is none; out (X', Y', Z', C)."""
    _, nx, ny, nz = field.shape
    blocks_x, blocks_y, blocks_z, n = out.shape
    cells = factor[0] * factor[1] * factor[2]
    length, margin = blocks_z * factor[2], np.int32(radius[2] * factor[2])
    nothing = np.empty(0, np.bool_)
    for bx in range(first, last):
        index, live = np.empty(length, np.int32), np.empty(length, np.int32)
        steps, fractions = np.empty((3, length), np.int32), np.empty((3, length), np.float32)
        row, counts = np.empty((3, length), np.float32), np.empty(blocks_z, np.int64)
        for by in range(blocks_y):
            sums = out[bx, by].reshape(-1)
            sums[:] = 0
            counts[:] = 0
            for a in range(factor[0] * factor[1]):
                x = (bx - radius[0]) * factor[0] + a // factor[1]
                y = (by - radius[1]) * factor[1] + a % factor[1]
                inner_x, inner_y = min(max(x, 0), nx - 1), min(max(y, 0), ny - 1)
                for c in range(3):
                    line = field[c, inner_x, inner_y]
                    for z in range(length):
                        row[c, z] = line[min(max(z - margin, 0), nz - 1)] - (margin if c == 2 else 0)
                lattice_positions((row[0], row[1], row[2]), x, y, matrix, limits, index, steps, fractions, live)
                if mask.shape[0] > 0:
                    silence(live, index, steps, fractions, nothing, mask)
                _add_row(moving, index, steps, fractions, live, factor[2], channels, sums, counts)
            for bz in range(blocks_z):
                valid[bx, by, bz] = 2 * counts[bz] >= cells
                share = unit / max(counts[bz], 1)
                for i in range(n):
                    sums[bz * n + i] *= share


@compiled(fastmath=FAST)
def _row_differences(fixed, start, moving, there, channels, stride, sums):
    """Squared differences of a row of cells to one of other cells, into sums (Z).

    Flat fixed and moving hold rows of one feature after the other, of Z and `stride` cells. Four of the features are added
    at once, because to keep a sum takes as long as to add to it, for LANES cells, a number known when compiled.
    """
    count = sums.shape[0]
    sums[:] = 0
    for group in range(channels // 4):
        f0, m0 = _at(start + 4 * group * count), _at(there + 4 * group * stride)
        f1, m1 = f0 + _at(count), m0 + _at(stride)
        f2, m2 = f1 + _at(count), m1 + _at(stride)
        f3, m3 = f2 + _at(count), m2 + _at(stride)
        for lanes in range(count // LANES):
            for i in range(LANES):
                z = _at(lanes * LANES + i)
                d0, d1 = fixed[f0 + z] - moving[m0 + z], fixed[f1 + z] - moving[m1 + z]
                d2, d3 = fixed[f2 + z] - moving[m2 + z], fixed[f3 + z] - moving[m3 + z]
                sums[z] += (d0 * d0 + d1 * d1) + (d2 * d2 + d3 * d3)


@compiled(fastmath=FAST)
def cost_volume(first, last, fixed, moving, known, counts, steps, taps, out):
    """See kernels_torch.cost_volume, smoothed along the last two axes alone; steps (K, 3): from a fixed cell's place in moving.

    fixed (X, Y, C, Z), moving (X', Y', C, Z'), C a multiple of four and Z of LANES; known (X', Y', Z') and counts (X, Y, Z) are
    1 or 0; out (X, Y, Z'', K), beyond whose Z'' cells nothing is known. A row of cells at a time, one displacement after the
    other, so that vectors run along it.
    """
    _, ny, channels, nz = fixed.shape
    lines, length, flat, there, costs = moving.shape[1], moving.shape[3], fixed.reshape(-1), moving.reshape(-1), out.reshape(-1)
    candidates, size = out.shape[3], out.shape[2] * out.shape[3]
    for x in range(first, last):
        tile, total, number = np.empty((candidates, nz), np.float32), np.empty(nz, np.float32), np.empty(nz, np.float32)
        for y in range(ny):
            start, counted = (x * ny + y) * channels * nz, counts[x, y]
            total[:], number[:] = 0, 0
            for k in range(candidates):
                i, j, shift = x + steps[k, 0], y + steps[k, 1], steps[k, 2]
                row, seen = tile[k], known[i, j, shift : shift + nz]
                _row_differences(flat, start, there, (i * lines + j) * channels * length + shift, channels, length, row)
                for z in range(nz):
                    row[z] *= seen[z]
                    total[z] += row[z]
                    number[z] += seen[z]
            for z in range(nz):
                total[z] /= max(number[z], _one)
            for k in range(candidates):
                i, j, shift = x + steps[k, 0], y + steps[k, 1], steps[k, 2]
                row, seen = tile[k], known[i, j, shift : shift + nz]
                for z in range(nz):
                    row[z] = counted[z] * (row[z] + (_one - seen[z]) * total[z])
            for z in range(out.shape[2]):
                row = out[x, y, z]
                for k in range(candidates):
                    row[k] = tile[k, z]
            # smoothed while they are in the cache
            weigh_middle(0, (candidates + RUN - 1) // RUN, costs, (x * ny + y) * size, out.shape[2], candidates, taps)
        weigh_middle(0, (size + RUN - 1) // RUN, costs, x * ny * size, ny, size, taps)


@compiled(fastmath=FAST)
def _nearest(value, radius):
    """The index of the step from -radius to radius that is nearest to value."""
    return min(max(int(np.rint(value)), -radius), radius) + radius


@compiled(fastmath=FAST)
def _within(value, reach, radius):
    """First and last index of the steps from -radius to radius that are no further than reach from value."""
    return max(int(np.ceil(value - reach)), -radius) + radius, min(int(np.floor(value + reach)), radius) + radius


@compiled(fastmath=FAST | {"nnan"})
def coupled_argmin(first, last, cost, displacements, field, weight, least, places, out):
    """See kernels_torch.coupled_argmin: cost (X, Y, Z, K), displacements (3, K), field and out (3, X, Y, Z), least (X, Y, Z).

    places (X'', Y'', Z''): which displacement reaches a place of the search. What wins is no further from the field than the
    one next to it could be at the block's least cost, so where those are few only they are looked at.
    """
    count = cost.shape[3]
    d0, d1, d2 = displacements[0], displacements[1], displacements[2]
    rx, ry, rz = places.shape[0] // 2, places.shape[1] // 2, places.shape[2] // 2
    for x in range(first, last):
        energy = np.empty(count, np.float32)
        for y in range(cost.shape[1]):
            for z in range(cost.shape[2]):
                row = cost[x, y, z]
                a, b, c = field[0, x, y, z], field[1, x, y, z], field[2, x, y, z]
                lowest, winner = np.float32(np.inf), count - 1
                if weight > 0:
                    near = places[_nearest(a, rx), _nearest(b, ry), _nearest(c, rz)]
                    away = (d0[near] - a) * (d0[near] - a) + (d1[near] - b) * (d1[near] - b) + (d2[near] - c) * (d2[near] - c)
                    reach = np.sqrt(away + (row[near] - least[x, y, z]) / weight) * np.float32(1.0001) + np.float32(1e-4)
                    (i0, i1), (j0, j1), (k0, k1) = _within(a, reach, rx), _within(b, reach, ry), _within(c, reach, rz)
                    if FEW * (i1 - i0 + 1) * (j1 - j0 + 1) * (k1 - k0 + 1) < count:
                        for i in range(i0, i1 + 1):
                            for j in range(j0, j1 + 1):
                                for k in range(k0, k1 + 1):
                                    n = places[i, j, k]
                                    e = row[n] + weight * (
                                        (d0[n] - a) * (d0[n] - a) + (d1[n] - b) * (d1[n] - b) + (d2[n] - c) * (d2[n] - c)
                                    )
                                    if e < lowest or (e == lowest and n < winner):
                                        lowest, winner = e, n
                        out[0, x, y, z], out[1, x, y, z], out[2, x, y, z] = d0[winner], d1[winner], d2[winner]
                        continue
                for k in range(count):
                    energy[k] = row[k] + weight * (
                        (d0[k] - a) * (d0[k] - a) + (d1[k] - b) * (d1[k] - b) + (d2[k] - c) * (d2[k] - c)
                    )
                for k in range(count):
                    lowest = min(lowest, energy[k])
                winner = 0
                while winner < count - 1 and energy[winner] > lowest:
                    winner += 1
                if weight == 0:
                    least[x, y, z] = lowest
                out[0, x, y, z], out[1, x, y, z], out[2, x, y, z] = d0[winner], d1[winner], d2[winner]
