"""Linear interpolation on lattices compiled for CPUs: where rows of cells lead, and whole arrays through an affine map."""

import numpy as np

from nnssl_reg.geometry.threads import FAST, compiled

_at = np.uint64  # an unsigned index needs no check for being negative, without which loops become vectors
_zero = np.float32(0)


@compiled(fastmath=FAST)
def lattice_positions(rows, x, y, matrix, limits, index, steps, fractions, live):
    """Where the cells (x, y, 0...) displaced by rows lead on another lattice: the cell at or below, steps on, and fractions.

    rows: three (Z,) displacements in cells; matrix (3, 4) float32, cell -> cell of the other lattice; limits: its shape.
    Writes the flat index (Z), steps to the next cells and fractions between (3, Z), and live (Z): 0 outside the lattice's outer
    faces, else 1 plus 2, 4, 8 for every axis along which the position is not clamped to the outermost cells.
    """
    last = (np.float32(limits[0] - 1), np.float32(limits[1] - 1), np.float32(limits[2] - 1))
    n0, n1, n2 = np.int32(limits[0]), np.int32(limits[1]), np.int32(limits[2])
    none, one, half = np.int32(0), np.int32(1), np.float32(0.5)
    f0, f1, f2 = rows
    u, v, w = fractions[0], fractions[1], fractions[2]
    si, sj, sk = steps[0], steps[1], steps[2]
    m = matrix
    m00, m01, m02, m10, m11, m12, m20, m21, m22 = (
        m[0, 0],
        m[0, 1],
        m[0, 2],
        m[1, 0],
        m[1, 1],
        m[1, 2],
        m[2, 0],
        m[2, 1],
        m[2, 2],
    )
    m03, m13, m23 = m[0, 3], m[1, 3], m[2, 3]
    for z in range(index.shape[0]):
        px, py, pz = np.float32(x) + f0[z], np.float32(y) + f1[z], np.float32(z) + f2[z]
        a = m00 * px + m01 * py + m02 * pz + m03
        b = m10 * px + m11 * py + m12 * pz + m13
        c = m20 * px + m21 * py + m22 * pz + m23
        ca, cb, cc = min(max(a, _zero), last[0]), min(max(b, _zero), last[1]), min(max(c, _zero), last[2])
        inside = (abs(a - ca) <= half) & (abs(b - cb) <= half) & (abs(c - cc) <= half)
        free = (np.int32(2) if a == ca else none) + (np.int32(4) if b == cb else none) + (np.int32(8) if c == cc else none)
        live[z] = one + free if inside else none
        i, j, k = np.int32(ca), np.int32(cb), np.int32(cc)
        u[z], v[z], w[z] = ca - np.float32(i), cb - np.float32(j), cc - np.float32(k)
        index[z] = (i * n1 + j) * n2 + k
        si[z], sj[z], sk[z] = n1 * n2 if i + one < n0 else none, n2 if j + one < n1 else none, one if k + one < n2 else none


@compiled(fastmath=FAST)
def _interpolated(values, index, steps, fractions, out):
    """values (X * Y * Z) at a row of lattice positions."""
    u, v, w = fractions[0], fractions[1], fractions[2]
    si, sj, sk = steps[0], steps[1], steps[2]
    for z in range(out.shape[0]):
        p00, k = _at(index[z]), _at(sk[z])
        p01, p10 = p00 + _at(sj[z]), p00 + _at(si[z])
        p11 = p10 + _at(sj[z])
        s00 = values[p00] + w[z] * (values[p00 + k] - values[p00])
        s01 = values[p01] + w[z] * (values[p01 + k] - values[p01])
        s10 = values[p10] + w[z] * (values[p10 + k] - values[p10])
        s11 = values[p11] + w[z] * (values[p11 + k] - values[p11])
        s0, s1 = s00 + v[z] * (s01 - s00), s10 + v[z] * (s11 - s10)
        out[z] = s0 + u[z] * (s1 - s0)


@compiled(fastmath=FAST)
def _sample_row(values, index, steps, fractions, live, fill, out):
    """values (C, X, Y, Z) at a row of lattice positions into out (C, Z); fill (C,) outside, unless it is NaN."""
    for c in range(out.shape[0]):
        row = out[c]
        _interpolated(values[c].reshape(-1), index, steps, fractions, row)
        if not np.isnan(fill[c]):
            for z in range(row.shape[0]):
                row[z] = row[z] if live[z] else fill[c]


@compiled(fastmath=FAST)
def _displaced_row(vectors, linear, x, y, rows):
    """The row (x, y) of vectors (3, X, Y, Z) through linear (3, 3) float32."""
    v0, v1, v2 = vectors[0, x, y], vectors[1, x, y], vectors[2, x, y]
    for a in range(3):
        l0, l1, l2, row = linear[a, 0], linear[a, 1], linear[a, 2], rows[a]
        for z in range(row.shape[0]):
            row[z] = l0 * v0[z] + l1 * v1[z] + l2 * v2[z]


@compiled(fastmath=FAST)
def warp_lattice(first, last, values, vectors, linear, matrix, fill, out):
    """values (C, X, Y, Z) float32 at every cell of out (C, X', Y', Z') through matrix (3, 4) float32, cell of out -> of values.

    The cells are first displaced by linear @ vectors (3, X', Y', Z'), in cells of out, or not if vectors is empty. Linear;
    outside the outer faces fill (C,), or the nearest value where fill is NaN.
    """
    _, nx, ny, nz = out.shape
    limits = values.shape[1:]
    for x in range(first, last):
        index, live, rows = np.empty(nz, np.int32), np.empty(nz, np.int32), np.zeros((3, nz), np.float32)
        steps, fractions = np.empty((3, nz), np.int32), np.empty((3, nz), np.float32)
        for y in range(ny):
            if vectors.shape[1] > 0:
                _displaced_row(vectors, linear, x, y, rows)
            lattice_positions((rows[0], rows[1], rows[2]), x, y, matrix, limits, index, steps, fractions, live)
            _sample_row(values, index, steps, fractions, live, fill, out[:, x, y])


@compiled(fastmath=FAST)
def warp_lattice_nearest(first, last, labels, vectors, linear, matrix, fill, out):
    """As warp_lattice for integers of any type (X, Y, Z): the value of the nearest cell, fill outside the outer faces."""
    nx, ny, nz = out.shape
    flat = labels.reshape(-1)
    for x in range(first, last):
        index, live, rows = np.empty(nz, np.int32), np.empty(nz, np.int32), np.zeros((3, nz), np.float32)
        steps, fractions = np.empty((3, nz), np.int32), np.empty((3, nz), np.float32)
        for y in range(ny):
            if vectors.shape[1] > 0:
                _displaced_row(vectors, linear, x, y, rows)
            lattice_positions((rows[0], rows[1], rows[2]), x, y, matrix, labels.shape, index, steps, fractions, live)
            for z in range(nz):
                cell = index[z]
                for a in range(3):
                    cell += steps[a, z] if fractions[a, z] >= 0.5 else 0
                out[x, y, z] = flat[cell] if live[z] else fill


@compiled(fastmath=FAST)
def jacobian_lattice(first, last, vectors, linear, out):
    """Determinant of 1 + linear @ d vectors / d cell, central differences, one-sided at the ends; linear: mm -> cells."""
    _, nx, ny, nz = vectors.shape
    for x in range(first, last):
        m, slopes = (
            np.empty((3, 3), np.float32),
            np.empty((3, 3, nz), np.float32),
        )  # slopes: of component c along axis a, in mm per cell
        x0, x1 = max(x - 1, 0), min(x + 1, nx - 1)
        for y in range(ny):
            y0, y1 = max(y - 1, 0), min(y + 1, ny - 1)
            for c in range(3):
                here, dx, dy, dz = vectors[c, x, y], slopes[c, 0], slopes[c, 1], slopes[c, 2]
                xa, xb, ya, yb = vectors[c, x0, y], vectors[c, x1, y], vectors[c, x, y0], vectors[c, x, y1]
                sx, sy = np.float32(1 / max(x1 - x0, 1)), np.float32(1 / max(y1 - y0, 1))
                for z in range(nz):
                    dx[z], dy[z] = sx * (xb[z] - xa[z]), sy * (yb[z] - ya[z])
                for z in range(nz):
                    z0, z1 = max(z - 1, 0), min(z + 1, nz - 1)
                    dz[z] = (here[z1] - here[z0]) / max(z1 - z0, 1)
            for z in range(nz):
                for a in range(3):
                    for b in range(3):
                        m[a, b] = (
                            linear[a, 0] * slopes[0, b, z] + linear[a, 1] * slopes[1, b, z] + linear[a, 2] * slopes[2, b, z]
                        )
                    m[a, a] += 1
                minor0 = m[1, 1] * m[2, 2] - m[1, 2] * m[2, 1]
                minor1 = m[1, 0] * m[2, 2] - m[1, 2] * m[2, 0]
                minor2 = m[1, 0] * m[2, 1] - m[1, 1] * m[2, 0]
                out[x, y, z] = m[0, 0] * minor0 - m[0, 1] * minor1 + m[0, 2] * minor2
