"""Flows of velocity fields: the matrix exponential, exact inverses, no folds, and closeness to what was asked for."""

import numpy as np
import pytest
import torch
from scipy.linalg import expm

from nnssl_reg.geometry.displacement import DisplacementField
from nnssl_reg.geometry.grid import Grid
from nnssl_reg.geometry.sampling import sample_voxels
from nnssl_reg.registration import kernels_torch
from nnssl_reg.registration.diffeomorphic import diffeomorphic, exponential, logarithm, may_fold
from nnssl_reg.registration.kernels_torch import smooth
from nnssl_reg.registration.unfolding import folded_cells, unfolded

GRID = Grid((26, 22, 24), np.array([[2.0, 0, 0, -25], [0, 0, 2.5, -30], [0, 2.2, 0, -24], [0, 0, 0, 1]]))
INNER = (slice(None), slice(6, -6), slice(6, -6), slice(6, -6))


def linear(matrix) -> DisplacementField:
    """v(p) = matrix (p - middle of the grid), mm."""
    points = GRID.points_mm() - torch.as_tensor(GRID.center_mm, dtype=torch.float32).view(3, 1, 1, 1)
    return DisplacementField(torch.einsum("ij,jxyz->ixyz", torch.as_tensor(matrix, dtype=torch.float32), points), GRID)


def waves(height_mm: float, length_mm: float) -> DisplacementField:
    x, y, z = GRID.points_mm() * (2 * np.pi / length_mm)
    return DisplacementField(height_mm * torch.stack([torch.sin(y), torch.cos(z + x), torch.sin(x + 1)]), GRID)


TURN = np.array([[0, -0.3, 0.1], [0.3, 0, -0.05], [-0.1, 0.05, 0.08]])


def test_the_flow_of_a_linear_velocity_is_the_matrix_exponential():
    for time in (1.0, -1.0):
        flow = exponential(linear(TURN), time)
        truth = linear(expm(time * TURN) - np.eye(3))
        assert (flow.vectors_mm - truth.vectors_mm)[INNER].norm(dim=0).max() < 0.15  # mm, voxels being 2 mm and more
        assert truth.vectors_mm[INNER].norm(dim=0).max() > 4


def test_the_logarithm_of_a_flow_is_its_velocity():
    velocity = waves(3.0, 40.0)
    found = logarithm(exponential(velocity))
    difference = (found.vectors_mm - velocity.vectors_mm)[INNER].norm(dim=0)
    assert difference.mean() < 0.15 and velocity.vectors_mm.norm(dim=0).mean() > 3


def test_a_smooth_field_is_kept_and_gets_an_inverse():
    asked = waves(3.0, 40.0)
    done = diffeomorphic(asked)
    assert done.distance_mm < 0.2
    assert np.isclose(done.distance_mm, (done.forward.vectors_mm - asked.vectors_mm).norm(dim=0).mean(), rtol=1e-5)
    for one, other in ((done.forward, done.inverse), (done.inverse, done.forward)):
        error = one.compose(other).vectors_mm[INNER].norm(dim=0)
        assert error.mean() < 0.15 and error.max() < 0.4  # mm, voxels being 2 mm and more: interpolation


@pytest.mark.parametrize("height_mm", [9.0, 25.0])
def test_a_folding_field_becomes_one_without_folds_in_both_directions(height_mm):
    asked = waves(height_mm, 30.0)
    assert (asked.jacobian_determinant() <= 0).float().mean() > 0.02
    done = diffeomorphic(asked)
    fine = GRID.with_spacing(0.9)
    for flow in (done.forward, done.inverse):
        assert flow.jacobian_determinant().min() > 0 and flow.on(fine).jacobian_determinant().min() > 0
    assert done.distance_mm < asked.vectors_mm.norm(dim=0).mean()


def test_a_wild_field_folds_nowhere_between_voxels_either():
    grid = Grid((20, 18, 16), np.diag([2.0, 2.0, 2.0, 1.0]))
    wild = 60 * torch.randn(3, 20, 18, 16, generator=torch.Generator().manual_seed(1))
    asked = unfolded(smooth(wild, 3) / 2, kernels_torch) * 2
    done = diffeomorphic(DisplacementField(asked, grid))
    assert done.distance_mm < 0.5 * asked.norm(dim=0).mean()
    share = torch.rand(3, 40_000, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    points = share * (torch.tensor(grid.shape).view(3, 1) - 1)
    for flow in (done.forward, done.inverse):
        voxels, columns = flow.in_voxels(grid).double(), []
        for axis in torch.eye(3, dtype=torch.float64):
            ends = [points + 1e-4 * sign * axis.view(3, 1) for sign in (1, -1)]
            moved = [end + sample_voxels(voxels, end) for end in ends]
            columns.append((moved[0] - moved[1]) / 2e-4)
        assert torch.linalg.det(torch.stack(columns).permute(2, 1, 0)).min() > 0


@pytest.mark.parametrize("height", [0.3, 0.5, 0.8, 1.5])
def test_cells_that_may_fold_hold_all_that_do(height):
    field = height * torch.randn(9, 8, 7, 3, generator=torch.Generator().manual_seed(3)).permute(3, 0, 1, 2)
    assert not (folded_cells(field, least=0.0) & ~may_fold(field)).any()
    assert not may_fold(0.1 * field).any()


def test_no_displacement_stays_exactly_none():
    done = diffeomorphic(waves(0.0, 30.0))
    assert not done.forward.vectors_mm.any() and not done.inverse.vectors_mm.any() and done.distance_mm == 0
