"""A displacement field made invertible: the flow of a stationary velocity field, by scaling and squaring."""

import math
from dataclasses import dataclass
from itertools import product

import torch
import torch.nn.functional as F

from nnssl_reg.geometry.displacement import DisplacementField
from nnssl_reg.registration.convex_adam import kernels_for

LARGEST_STEP = 0.1  # voxels that the first small step of a flow may move; the flow is that step doubled again and again
ITERATIONS = 30  # of the search for the velocity
NO_GAIN = 0.98  # the search ends when the distance falls by less
SMOOTHINGS = 200
LEAST_JACOBIAN = 0.01  # of volume that is kept everywhere between voxels; a little above 0, because the field is sampled again


@dataclass(frozen=True)
class Diffeomorphism:
    """exp(v) and exp(-v) of one velocity field v on one grid; each inverts the other up to interpolation between voxels.

    distance_mm: mean distance of `forward` from the field that was asked for.
    """

    forward: DisplacementField
    inverse: DisplacementField
    distance_mm: float


@torch.no_grad()
def diffeomorphic(field: DisplacementField) -> Diffeomorphism:
    """The flow of a stationary velocity field that is nearest to `field`, folding nowhere in either direction.

    Velocities are smoothed around folds of the flow or its inverse until there are none. Raises ValueError if some remain.
    """
    velocity = logarithm(field)
    for _ in range(SMOOTHINGS):
        flows = [exponential(velocity), exponential(velocity, -1)]
        folds = may_fold(flows[0].in_voxels(field.grid)) | may_fold(flows[1].in_voxels(field.grid))
        if not folds.any():
            return Diffeomorphism(*flows, distance_mm=_mean_distance(flows[0].vectors_mm, field.vectors_mm))
        kernels = kernels_for(folds.device)
        share = kernels.smooth(folds.float()[None], 3).mul_(8).clamp_(max=1)
        velocity = DisplacementField(torch.lerp(velocity.vectors_mm, _smoothed(velocity.vectors_mm, 2), share), field.grid)
    raise ValueError(f"{int(folds.sum())} cells of the diffeomorphic field still fold after {SMOOTHINGS} smoothings; "
                     "leave --diffeomorphic out, or regularise more strongly.")  # fmt: skip


def logarithm(field: DisplacementField) -> DisplacementField:
    """The velocity field v (mm per unit of time) whose flow exp(v) comes nearest to a field.

    Fixed-point iteration v <- v + (exp(-v) after field), the first terms of the Baker-Campbell-Hausdorff series (Bossa et
    al. 2007); the best v met on the way is returned.
    """
    velocity = DisplacementField(torch.zeros_like(field.vectors_mm), field.grid)
    best, least = velocity, _mean_distance(velocity.vectors_mm, field.vectors_mm)
    for _ in range(ITERATIONS):
        missing = field.compose(exponential(velocity, -1)).vectors_mm
        velocity = DisplacementField(velocity.vectors_mm + _smoothed(missing, 1), field.grid)
        distance = _mean_distance(exponential(velocity).vectors_mm, field.vectors_mm)
        stalls = distance > NO_GAIN * least
        if distance < least:
            best, least = velocity, distance
        if stalls:
            break
    return best


def exponential(velocity: DisplacementField, time: float = 1.0) -> DisplacementField:
    """Where the flow of a velocity field carries each voxel within `time` (-1: back), by scaling and squaring."""
    longest = float(velocity.in_voxels(velocity.grid).norm(dim=0).max()) * abs(time)  # voxels
    squarings = max(0, math.ceil(math.log2(max(longest / LARGEST_STEP, 1e-12))))
    flow = DisplacementField(velocity.vectors_mm * (time / 2**squarings), velocity.grid)
    for _ in range(squarings):
        flow = flow.compose(flow)
    return flow


def may_fold(field: torch.Tensor) -> torch.Tensor:
    """Voxels (X, Y, Z) bool of the cells in which the interpolated map x + field(x), (3, X, Y, Z), may turn inside out.

    Within a cell the derivative along an axis lies among those of the cell's four edges along it, and the determinant is
    linear in each of the three: it is at least the smallest of the 64 that edges give. None marked: it folds nowhere, not
    outside either, where the edge value counts.
    """
    field = F.pad(field[None], [1] * 6, mode="replicate")[0].permute(1, 2, 3, 0)
    edges = [_edges(field, axis) for axis in range(3)]
    slope = sum(torch.stack([e.square().sum(-1) for e in along]).amax(0) for along in edges)
    steep = slope >= (1 - LEAST_JACOBIAN) ** 2  # below, the determinant cannot reach 0: the field is a contraction
    columns = [[e[steep] for e in along] for along in edges]
    for axis, along in enumerate(columns):
        for column in along:
            column[:, axis] += 1
    least = torch.full((int(steep.sum()),), math.inf, device=field.device)
    for first, second in product(columns[0], columns[1]):
        normal = torch.linalg.cross(first, second)
        for third in columns[2]:
            least = torch.minimum(least, (normal * third).sum(-1))
    folds, marked = torch.zeros_like(steep), torch.zeros(field.shape[:3], dtype=torch.bool, device=field.device)
    folds[steep] = least < LEAST_JACOBIAN
    for corner in product((0, 1), repeat=3):
        marked[tuple(slice(c, n - 1 + c) for c, n in zip(corner, field.shape))] |= folds
    return marked[1:-1, 1:-1, 1:-1]


def _edges(field: torch.Tensor, axis: int) -> list[torch.Tensor]:
    """Differences along the four edges of each cell that run along an axis, (X - 1, Y - 1, Z - 1, 3) each."""
    steps, others = torch.diff(field, dim=axis), [a for a in range(3) if a != axis]
    cells = [n - 1 for n in field.shape[:3]]
    return [steps.narrow(others[0], i, cells[others[0]]).narrow(others[1], j, cells[others[1]])
            for i, j in product((0, 1), repeat=2)]  # fmt: skip


def _smoothed(vectors: torch.Tensor, passes: int) -> torch.Tensor:
    """(3, X, Y, Z) after box filters."""
    return kernels_for(vectors.device).smooth(vectors, passes)


def _mean_distance(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).norm(dim=0).mean())
