"""A displacement field made invertible: the flow of a stationary velocity field, by scaling and squaring."""

import math
from dataclasses import dataclass

import torch

from nnssl_reg.geometry.displacement import DisplacementField
from nnssl_reg.registration.convex_adam import kernels_for
from nnssl_reg.registration.unfolding import folded_cells

LARGEST_STEP = 0.1  # voxels that the first small step of a flow may move; the flow is that step doubled again and again
ITERATIONS = 30  # of the search for the velocity
NO_GAIN = 0.98  # the search ends when the distance falls by less
SMOOTHINGS = 200


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
        folds = folded_cells(_channels_last(flows[0])) | folded_cells(_channels_last(flows[1]))
        if not folds.any():
            return Diffeomorphism(*flows, distance_mm=_mean_distance(flows[0].vectors_mm, field.vectors_mm))
        kernels = kernels_for(folds.device)
        share = kernels.smooth(folds.float()[..., None].contiguous(), 3).mul_(8).clamp_(max=1)[..., 0]
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
    longest = float(_channels_last(velocity).norm(dim=-1).max()) * abs(time)  # voxels
    squarings = max(0, math.ceil(math.log2(max(longest / LARGEST_STEP, 1e-12))))
    flow = DisplacementField(velocity.vectors_mm * (time / 2**squarings), velocity.grid)
    for _ in range(squarings):
        flow = flow.compose(flow)
    return flow


def _channels_last(field: DisplacementField) -> torch.Tensor:
    """The vectors in voxels of their own grid, (X, Y, Z, 3)."""
    return field.in_voxels(field.grid).permute(1, 2, 3, 0).contiguous()


def _smoothed(vectors: torch.Tensor, passes: int) -> torch.Tensor:
    """(3, X, Y, Z) after box filters."""
    return kernels_for(vectors.device).smooth(vectors.permute(1, 2, 3, 0).contiguous(), passes).permute(3, 0, 1, 2).contiguous()


def _mean_distance(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).norm(dim=0).mean())
