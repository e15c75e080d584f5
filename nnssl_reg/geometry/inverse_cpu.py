"""The inverse of a displacement field compiled for CPUs: Newton's method at each point, halved where it overshoots.

In double precision and in cells q of the field: own q + vectors(q) = p is solved for q. own, to_index: cell -> world and back;
back: the inverse of the field's affine part, (4, 4) each. What leads back is then -vectors(q), exactly 0 where nothing moves.
"""

from nnssl_reg.geometry.threads import compiled

FLATTENED = 0.05  # where the field keeps less of a volume its slopes do not tell where to go, and the affine part does


@compiled()
def mapped(m, p):
    """A point through (4, 4)."""
    return (m[0, 0] * p[0] + m[0, 1] * p[1] + m[0, 2] * p[2] + m[0, 3],
            m[1, 0] * p[0] + m[1, 1] * p[1] + m[1, 2] * p[2] + m[1, 3],
            m[2, 0] * p[0] + m[2, 1] * p[1] + m[2, 2] * p[2] + m[2, 3])  # fmt: skip


@compiled()
def _turned(m, v):
    """A vector through the linear part of (4, 4)."""
    return (m[0, 0] * v[0] + m[0, 1] * v[1] + m[0, 2] * v[2],
            m[1, 0] * v[0] + m[1, 1] * v[1] + m[1, 2] * v[2],
            m[2, 0] * v[0] + m[2, 1] * v[1] + m[2, 2] * v[2])  # fmt: skip


@compiled()
def _on_axis(q, n):
    """Of a coordinate on an axis of n cells: the cell before it, the next one, the fraction between, and 1 inside, else 0."""
    near = min(max(q, 0.0), n - 1.0)
    cell = min(int(near), max(n - 2, 0))
    return cell, min(cell + 1, n - 1), near - cell, (1.0 if near == q else 0.0)


@compiled()
def _component(f, x, y, z):
    """A component (X, Y, Z) at a place as _on_axis gives it, linearly, and its slopes along the axes, 0 outside."""
    (i, i1, u, _), (j, j1, v, _), (k, k1, w, _) = x, y, z
    a00, a01, a10, a11 = float(f[i, j, k]), float(f[i, j1, k]), float(f[i1, j, k]), float(f[i1, j1, k])
    d00, d01, d10, d11 = f[i, j, k1] - a00, f[i, j1, k1] - a01, f[i1, j, k1] - a10, f[i1, j1, k1] - a11
    s00, s10 = a00 + w * d00, a10 + w * d10
    e0, e1 = a01 + w * d01 - s00, a11 + w * d11 - s10
    s0, s1 = s00 + v * e0, s10 + v * e1
    g0, g1 = d00 + v * (d01 - d00), d10 + v * (d11 - d10)
    return s0 + u * (s1 - s0), x[3] * (s1 - s0), y[3] * (e0 + u * (e1 - e0)), z[3] * (g0 + u * (g1 - g0))


@compiled()
def _missing(vectors, own, p, q):
    """vectors(q), p - own q - vectors(q), and the rows of the derivative of what is taken from p."""
    x, y, z = _on_axis(q[0], vectors.shape[1]), _on_axis(q[1], vectors.shape[2]), _on_axis(q[2], vectors.shape[3])
    f0, a0, b0, c0 = _component(vectors[0], x, y, z)
    f1, a1, b1, c1 = _component(vectors[1], x, y, z)
    f2, a2, b2, c2 = _component(vectors[2], x, y, z)
    there = mapped(own, q)
    return ((f0, f1, f2),
            (p[0] - there[0] - f0, p[1] - there[1] - f1, p[2] - there[2] - f2),
            (own[0, 0] + a0, own[0, 1] + b0, own[0, 2] + c0),
            (own[1, 0] + a1, own[1, 1] + b1, own[1, 2] + c1),
            (own[2, 0] + a2, own[2, 1] + b2, own[2, 2] + c2))  # fmt: skip


@compiled()
def _cross(a, b):
    return a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]


@compiled()
def _dot(a, b):
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


@compiled()
def _whole_step(off, rows, volume, to_index, back):
    """From a place that misses by `off` to where the derivative there, or else the affine part, says; volume: of a cell."""
    m0, m1, m2 = rows
    c0, c1, c2 = _cross(m1, m2), _cross(m2, m0), _cross(m0, m1)
    now = _dot(m0, c0)
    if now / volume < FLATTENED:
        return _turned(to_index, _turned(back, off))
    return (
        (c0[0] * off[0] + c1[0] * off[1] + c2[0] * off[2]) / now,
        (c0[1] * off[0] + c1[1] * off[1] + c2[1] * off[2]) / now,
        (c0[2] * off[0] + c1[2] * off[1] + c2[2] * off[2]) / now,
    )


@compiled()
def found_place(vectors, own, to_index, back, p, q, enough, iterations):
    """The place that the field (3, X, Y, Z) leads to p, from the guess q on, the vector there, and whether both are done."""
    volume = _dot(own[0], _cross(own[1], own[2]))
    vector, off, m0, m1, m2 = _missing(vectors, own, p, q)
    step = 1.0
    for _ in range(iterations):
        if max(abs(off[0]), abs(off[1]), abs(off[2])) < enough:
            return q, vector, True
        s = _whole_step(off, (m0, m1, m2), volume, to_index, back)
        there = (q[0] + step * s[0], q[1] + step * s[1], q[2] + step * s[2])
        found, missing, r0, r1, r2 = _missing(vectors, own, p, there)
        if _dot(missing, missing) < _dot(off, off):
            q, vector, off, m0, m1, m2, step = there, found, missing, r0, r1, r2, min(2 * step, 1.0)
        else:
            step *= 0.5
    return q, vector, max(abs(off[0]), abs(off[1]), abs(off[2])) < enough


@compiled()
def invert_lattice(first, last, vectors, own, to_index, back, affine, enough, iterations, out):
    """The field out (3, X', Y', Z') on the grid of affine (4, 4) that leads back what vectors (3, X, Y, Z) lead, all in mm.

    A cell that misses by less than `enough` mm along each axis is done; the search for the next in its row begins beside it.
    """
    _, nx, ny, nz = out.shape
    beside = _turned(to_index, (affine[0, 2], affine[1, 2], affine[2, 2]))
    for x in range(first, last):
        for y in range(ny):
            q, done = (0.0, 0.0, 0.0), False
            for z in range(nz):
                p = mapped(affine, (float(x), float(y), float(z)))
                q = (q[0] + beside[0], q[1] + beside[1], q[2] + beside[2]) if done else mapped(to_index, mapped(back, p))
                q, vector, done = found_place(vectors, own, to_index, back, p, q, enough, iterations)
                out[0, x, y, z], out[1, x, y, z], out[2, x, y, z] = -vector[0], -vector[1], -vector[2]


@compiled()
def invert_points(first, last, vectors, own, to_index, back, points, enough, iterations, out):
    """The points out (N, 3) that the field leads to points (N, 3), both float64 mm; see invert_lattice."""
    for n in range(first, last):
        p = (points[n, 0], points[n, 1], points[n, 2])
        _, vector, _ = found_place(vectors, own, to_index, back, p, mapped(to_index, mapped(back, p)), enough, iterations)
        out[n, 0], out[n, 1], out[n, 2] = p[0] - vector[0], p[1] - vector[1], p[2] - vector[2]
