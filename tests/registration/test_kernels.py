"""The kernels of ConvexAdam: compiled ones against plain torch, and both against formulas, derivatives and torch's own Adam."""

import numpy as np
import pytest
import torch

from nnssl_reg.registration import kernels_cpu, kernels_torch
from nnssl_reg.registration.kernels_torch import displacements, moving_position

BOTH = pytest.mark.parametrize("kernels", [kernels_cpu, kernels_torch], ids=["cpu", "torch"])
# a moving lattice turned, finer along one axis and coarser along another; many positions fall outside
MATRIX = np.array([[1.3, 0.2, -0.1, -1.0], [-0.2, 0.6, 0.1, 1.5], [0.1, -0.1, 0.9, 0.4]])
SHAPES = [((5, 6, 7), (6, 5, 8)), ((4, 1, 5), (3, 4, 1)), ((1, 1, 1), (2, 2, 2))]


def normal(*shape, seed=0, scale=1.0) -> torch.Tensor:
    return torch.from_numpy(scale * np.random.default_rng(seed).standard_normal(shape)).float()


@pytest.mark.parametrize(("fixed_shape", "moving_shape"), SHAPES)
@pytest.mark.parametrize("channels", [1, 12])
def test_compiled_warp_cost_is_the_plain_one(fixed_shape, moving_shape, channels):
    fixed, moving = normal(*fixed_shape, channels), normal(*moving_shape, channels, seed=1)
    field = normal(*fixed_shape, 3, seed=2, scale=1.5)
    cost, gradient = kernels_cpu.warp_cost(fixed, moving, field, MATRIX)
    true_cost, true_gradient = kernels_torch.warp_cost(fixed, moving, field, MATRIX)
    assert torch.allclose(cost, true_cost, rtol=1e-4, atol=1e-4)
    assert torch.allclose(gradient, true_gradient, rtol=1e-3, atol=1e-3)


@BOTH
def test_outside_the_moving_lattice_there_is_no_cost_and_no_pull(kernels):
    fixed, moving, field = normal(4, 4, 4, 3), normal(4, 4, 4, 3, seed=1), torch.zeros(4, 4, 4, 3)
    field[..., 0] = torch.tensor([0.0, 10, -10, 0.6])[:, None, None]  # the last lies 0.1 cells beyond the face
    cost, gradient = kernels.warp_cost(fixed, moving, field, np.eye(4)[:3])
    assert (cost[0] > 0).all() and not cost[1:].any() and not gradient[1:].any()


@BOTH
def test_the_gradient_of_warp_cost_is_that_of_finite_differences(kernels):
    """Between lattice planes the cost is quadratic along each axis, so that central differences are exact."""
    matrix = np.array([[0.5, 0, 0, 0.7], [0, -1.0, 0, 6.0], [0, 0, 2.0, 0.6]])
    fixed, moving = normal(4, 5, 3, 6), normal(6, 8, 9, 6, seed=1)
    rng = np.random.default_rng(0)
    target = np.stack([rng.integers(0, n - 1, (4, 5, 3)) for n in moving.shape[:3]], axis=-1) + rng.uniform(
        0.3, 0.7, (4, 5, 3, 3)
    )
    index = np.stack(np.meshgrid(*map(np.arange, (4, 5, 3)), indexing="ij"), axis=-1)
    field = torch.from_numpy((target - matrix[:, 3]) / np.diag(matrix) - index).float()
    _, gradient = kernels.warp_cost(fixed, moving, field, matrix)
    for axis in range(3):
        step = torch.zeros(3)
        step[axis] = 0.05
        high, low = (kernels.warp_cost(fixed, moving, field + s, matrix)[0] for s in (step, -step))
        assert torch.allclose(gradient[..., axis], (high - low) / 0.1, rtol=1e-2, atol=1e-2)


def test_positions_are_the_matrix_times_index_plus_displacement():
    field = normal(3, 4, 5, 3)
    position = moving_position(field, MATRIX)
    truth = MATRIX[:, :3] @ (np.array([2, 1, 4]) + field[2, 1, 4].numpy()) + MATRIX[:, 3]
    assert np.allclose(position[:, 2, 1, 4], truth, atol=1e-5)


@pytest.mark.parametrize("radius", [(1, 1, 1), (2, 1, 3)])
def test_compiled_cost_volume_is_the_plain_one(radius):
    rng = np.random.default_rng(0)
    padded = tuple(n + 2 * r for n, r in zip((4, 3, 5), radius))
    fixed, moving = normal(4, 3, 5, 7), normal(*padded, 7, seed=1)
    valid = torch.from_numpy(rng.random(padded) > 0.4)
    valid[:, :, : 2 * radius[2] + 1] = False  # cells without any valid candidate
    cost = kernels_cpu.cost_volume(fixed, moving, valid, radius)
    assert torch.allclose(cost, kernels_torch.cost_volume(fixed, moving, valid, radius), rtol=1e-4, atol=1e-4)
    assert not cost[:, :, 0].any()


@BOTH
def test_the_cost_volume_holds_squared_differences_and_the_mean_where_nothing_is_known(kernels):
    radius, fixed, moving = (1, 2, 1), normal(3, 3, 3, 4), normal(5, 7, 5, 4, seed=1)
    valid = torch.ones(5, 7, 5, dtype=torch.bool)
    valid[2, 3, 2] = False
    cost = kernels.cost_volume(fixed, moving, valid, radius)
    steps = displacements(radius).int().tolist()
    row = [float((fixed[1, 1, 1] - moving[2 + i, 3 + j, 2 + k]).square().sum()) for i, j, k in steps]
    centre = steps.index([0, 0, 0])
    row[centre] = np.mean(row[:centre] + row[centre + 1 :])
    assert np.allclose(cost[1, 1, 1], row, rtol=1e-4)


@pytest.mark.parametrize("weight", [0.0, 0.03, 1.0])
def test_compiled_coupled_argmin_is_the_plain_one(weight):
    steps = displacements((1, 2, 1))
    cost, field = normal(4, 5, 3, len(steps)).abs(), normal(4, 5, 3, 3, seed=1)
    found = kernels_cpu.coupled_argmin(cost, steps, field, weight)
    assert torch.equal(found, kernels_torch.coupled_argmin(cost, steps, field, weight))
    best = (cost + weight * (steps - field[..., None, :]).square().sum(-1)).argmin(-1)
    assert torch.equal(found, steps[best])


@BOTH
def test_of_equally_good_displacements_the_shortest_is_chosen(kernels):
    steps = displacements((1, 1, 1))
    assert not kernels.coupled_argmin(torch.zeros(2, 2, 2, 27), steps, torch.zeros(2, 2, 2, 3), 0.0).any()


@pytest.mark.parametrize("shape", [(6, 5, 7, 3), (1, 2, 3, 5), (2, 1, 1, 1)])
@pytest.mark.parametrize("passes", [1, 2, 3, 5])
def test_compiled_smoothing_is_the_plain_one(shape, passes):
    values = normal(*shape)
    before = values.clone()
    assert torch.allclose(kernels_cpu.smooth(values, passes), kernels_torch.smooth(values, passes), atol=1e-5)
    assert torch.equal(values, before)


@BOTH
@pytest.mark.parametrize("passes", [0, 1, 3])
def test_smoothing_is_its_own_adjoint_and_keeps_constants_and_sums(kernels, passes):
    a, b = normal(6, 4, 5, 3), normal(6, 4, 5, 3, seed=1)
    assert torch.isclose((kernels.smooth(a, passes) * b).sum(), (a * kernels.smooth(b, passes)).sum(), atol=1e-3)
    assert torch.allclose(kernels.smooth(torch.full_like(a, 3.5), passes), torch.full_like(a, 3.5), atol=1e-5)
    assert torch.allclose(kernels.smooth(a, passes).sum((0, 1, 2)), a.sum((0, 1, 2)), atol=1e-3)


@BOTH
@pytest.mark.parametrize("shape", [(5, 4, 6), (1, 3, 2)])
def test_the_diffusion_gradient_is_the_derivative_of_its_formula(kernels, shape):
    weights = torch.tensor([[1.0, 2.0, 3.0], [0.5, 0.1, 4.0], [2.0, 0.0, 1.0]])
    field = normal(*shape, 3).requires_grad_(True)
    energy = sum(weights[axis, c] * (torch.diff(field[..., c], dim=axis) ** 2).sum() for axis in range(3) for c in range(3))
    energy.backward()
    gradient = torch.ones(*shape, 3)
    kernels.add_diffusion_gradient(field.detach(), weights, gradient)
    assert torch.allclose(gradient - 1, field.grad, atol=1e-4)


@BOTH
def test_adam_is_that_of_torch(kernels):
    ours = normal(4, 5, 6, 3)
    theirs = ours.clone().requires_grad_(True)
    optimizer = torch.optim.Adam([theirs], lr=0.3)
    first, second = torch.zeros_like(ours), torch.zeros_like(ours)
    for step in range(1, 8):
        gradient = normal(4, 5, 6, 3, seed=step, scale=10.0 ** (step - 5))
        theirs.grad = gradient.clone()
        optimizer.step()
        kernels.adam_step(ours, gradient, first, second, 0.3, step)
    assert torch.allclose(ours, theirs.detach(), atol=1e-5)
