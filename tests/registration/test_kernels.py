"""The kernels of ConvexAdam: compiled ones against plain torch, and both against formulas, derivatives and torch's own Adam."""

import numpy as np
import pytest
import torch

from nnssl_reg.registration import kernels_cpu, kernels_torch
from nnssl_reg.registration.cells import Cells
from nnssl_reg.registration.kernels_torch import displacements, moving_position

BOTH = pytest.mark.parametrize("kernels", [kernels_cpu, kernels_torch], ids=["cpu", "torch"])
# a moving lattice turned, finer along one axis and coarser along another; many positions fall outside
MATRIX = np.array([[1.3, 0.2, -0.1, -1.0], [-0.2, 0.6, 0.1, 1.5], [0.1, -0.1, 0.9, 0.4]])
SHAPES = [((5, 6, 7), (6, 5, 8)), ((4, 1, 5), (3, 4, 1)), ((1, 1, 1), (2, 2, 2))]


WEIGHTS = torch.tensor([[1.0, 2.0, 3.0], [0.5, 0.1, 4.0], [2.0, 0.0, 1.0]])


def some(*shape, seed=0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).random(shape) > 0.3)


def normal(*shape, seed=0, scale=1.0) -> torch.Tensor:
    return torch.from_numpy(scale * np.random.default_rng(seed).standard_normal(shape)).float()


def costs(kernels, fixed, moving, valid, counts, radius, passes) -> torch.Tensor:
    """A cost volume in memory that held something else."""
    room = torch.full((*fixed.shape[:3], len(displacements(radius))), 7.0)
    return kernels.cost_volume(fixed, moving, valid, counts, radius, passes, room)


@pytest.mark.parametrize(("fixed_shape", "moving_shape"), SHAPES)
@pytest.mark.parametrize("channels", [1, 12, 20])
@pytest.mark.parametrize("masked", [(False, False), (True, True)])
def test_the_compiled_energy_gradient_is_the_plain_one(fixed_shape, moving_shape, channels, masked):
    masks = [some(*shape, seed=5) if m else None for shape, m in zip((fixed_shape, moving_shape), masked)]
    fixed = Cells(normal(*fixed_shape, channels), 1.0, masks[0])
    moving = Cells(normal(*moving_shape, channels, seed=1), 1.0, masks[1])
    field = normal(3, *fixed_shape, seed=2, scale=1.5)
    one, two = (k.energy_gradient(fixed, moving, field, MATRIX, WEIGHTS) for k in (kernels_cpu, kernels_torch))
    assert torch.allclose(one, two, rtol=1e-3, atol=2e-3)


@BOTH
def test_outside_the_moving_lattice_there_is_no_cost_and_no_pull(kernels):
    fixed, moving, field = Cells(normal(4, 4, 4, 3)), Cells(normal(4, 4, 4, 3, seed=1)), torch.zeros(3, 4, 4, 4)
    field[0] = torch.tensor([0.0, 10, -10, 0.6])[:, None, None]  # the last lies 0.1 cells beyond the face
    cost = kernels_torch.warp_cost(fixed, moving, field, np.eye(4)[:3])
    gradient = kernels.energy_gradient(fixed, moving, field, np.eye(4)[:3], torch.zeros(3, 3))
    assert (cost[0] > 0).all() and not cost[1:].any() and gradient[:, 0].any() and not gradient[:, 1:].any()


@BOTH
@pytest.mark.parametrize("unit", [1.0, 0.25])
def test_the_gradient_is_that_of_finite_differences(kernels, unit):
    """Between lattice planes the cost is quadratic along each axis, so that central differences are exact."""
    matrix = np.array([[0.5, 0, 0, 0.7], [0, -1.0, 0, 6.0], [0, 0, 2.0, 0.6]])
    fixed, moving = Cells(normal(4, 5, 3, 6), unit), Cells(normal(6, 8, 9, 6, seed=1), unit)
    rng = np.random.default_rng(0)
    whole = np.stack([rng.integers(0, n - 1, (4, 5, 3)) for n in moving.shape])
    target = whole + rng.uniform(0.3, 0.7, (3, 4, 5, 3))
    index = np.stack(np.meshgrid(*map(np.arange, (4, 5, 3)), indexing="ij"))
    per_axis = (slice(None), None, None, None)
    field = torch.from_numpy((target - matrix[:, 3][per_axis]) / np.diag(matrix)[per_axis] - index).float()
    gradient = kernels.energy_gradient(fixed, moving, field, matrix, torch.zeros(3, 3))
    for axis in range(3):
        step = torch.zeros(3, 1, 1, 1)
        step[axis] = 0.05
        high, low = (kernels_torch.warp_cost(fixed, moving, field + s, matrix) for s in (step, -step))
        assert torch.allclose(gradient[axis], (high - low) / 0.1, rtol=1e-2, atol=1e-2)


def test_features_are_stored_centred_in_units_and_nothing_outside_a_mask():
    values, middle, mask = normal(5, 3, 4, 2, scale=20.0), torch.arange(5.0), some(3, 4, 2)
    largest = float((values - middle.view(-1, 1, 1, 1)).abs().max())
    unit = kernels_cpu.smallest_unit(largest)
    stored, plain = (k.packed(values, middle, u, mask) for k, u in ((kernels_cpu, unit), (kernels_torch, 1.0)))
    assert stored.dtype == torch.int16 and stored.abs().max() >= 32766
    assert (stored * unit - plain).abs().max() <= unit and not stored[~mask].any()


def test_positions_are_the_matrix_times_index_plus_displacement():
    field = normal(3, 3, 4, 5)
    position = moving_position(field, MATRIX)
    truth = MATRIX[:, :3] @ (np.array([2, 1, 4]) + field[:, 2, 1, 4].numpy()) + MATRIX[:, 3]
    assert np.allclose(position[:, 2, 1, 4], truth, atol=1e-5)


@pytest.mark.parametrize("factor", [(1, 1, 1), (2, 3, 2)])
@pytest.mark.parametrize("masked", [False, True])
def test_compiled_block_means_are_the_plain_ones(factor, masked):
    mask = torch.ones(6, 5, 8, dtype=torch.bool) if masked else None
    if masked:
        mask[4:] = False
    cells = Cells(normal(6, 5, 8, 4), 0.5, mask)
    field = normal(3, 5, 6, 7, seed=1)
    one, two = (k.block_means(cells, MATRIX, field, factor, [1, 2, 1]) for k in (kernels_cpu, kernels_torch))
    assert torch.equal(one[1], two[1]) and one[1].any() and not one[1].all()
    assert torch.allclose(one[0], two[0], atol=1e-4)


@BOTH
def test_block_means_of_a_field_that_leads_nowhere_else_are_means_over_blocks(kernels):
    cells = Cells(normal(4, 6, 5, 3), 2.0)
    means, counts = kernels.block_means(cells, np.eye(4)[:3], torch.zeros(3, 4, 6, 5), [2, 3, 2], [1, 0, 0])
    assert means.shape == (4, 2, 3, 3) and not counts[0].any() and not counts[3].any() and counts[1:3].all()
    assert torch.allclose(means[1, 0, 0], 2 * cells.values[:2, :3, :2].mean((0, 1, 2)), atol=1e-5)
    assert torch.allclose(means[2, 1, 2], 2 * cells.values[2:, 3:, 4:].mean((0, 1, 2)), atol=1e-5)  # half a block is enough


@pytest.mark.parametrize(("radius", "shape", "channels"),
                         [((1, 1, 1), (4, 3, 5), 7), ((2, 1, 3), (4, 3, 5), 1), ((2, 1, 3), (3, 2, 37), 13)])  # fmt: skip
@pytest.mark.parametrize("passes", [0, 2])
def test_the_compiled_cost_volume_is_the_plain_one(radius, shape, channels, passes):
    rng = np.random.default_rng(0)
    padded = tuple(n + 2 * r for n, r in zip(shape, radius))
    fixed, moving = normal(*shape, channels), normal(*padded, channels, seed=1)
    valid, counts = torch.from_numpy(rng.random(padded) > 0.4), some(*shape)
    valid[:, :, : 2 * radius[2] + 1] = False  # cells without any valid candidate
    one, two = (costs(k, fixed, moving, valid, counts, radius, passes) for k in (kernels_cpu, kernels_torch))
    assert torch.allclose(one, two, rtol=1e-4, atol=1e-4)
    assert passes or (not one[:, :, 0].any() and not one[~counts].any())


@BOTH
def test_the_cost_volume_holds_squared_differences_and_the_mean_where_nothing_is_known(kernels):
    radius, fixed, moving = (1, 2, 1), normal(3, 3, 3, 4), normal(5, 7, 5, 4, seed=1)
    valid = torch.ones(5, 7, 5, dtype=torch.bool)
    valid[2, 3, 2] = False
    cost = costs(kernels, fixed, moving, valid, torch.ones(3, 3, 3, dtype=torch.bool), radius, 0)
    steps = displacements(radius).int().tolist()
    row = [float((fixed[1, 1, 1] - moving[2 + i, 3 + j, 2 + k]).square().sum()) for i, j, k in steps]
    centre = steps.index([0, 0, 0])
    row[centre] = np.mean(row[:centre] + row[centre + 1 :])
    assert np.allclose(cost[1, 1, 1], row, rtol=1e-4)


@pytest.mark.parametrize("radius", [(1, 2, 1), (4, 4, 4), (3, 0, 5)])
def test_compiled_coupled_argmin_is_the_plain_one_and_looks_only_where_a_winner_may_be(radius):
    steps = displacements(radius)
    cost, field = normal(4, 5, 3, len(steps)).abs(), 3 * normal(3, 4, 5, 3, seed=1)  # some of it beyond the search
    least, nothing = torch.full((4, 5, 3), float("nan")), torch.empty(0)
    found = kernels_cpu.coupled_argmin(cost, steps, field, 0.0, least)
    assert torch.equal(found, steps[cost.argmin(-1)].permute(3, 0, 1, 2)) and torch.equal(least, cost.amin(-1))
    for weight in (0.003, 0.03, 0.3, 1.0, 30.0):
        found = kernels_cpu.coupled_argmin(cost, steps, field, weight, least)
        assert torch.equal(found, kernels_torch.coupled_argmin(cost, steps, field, weight, nothing))
        away = (steps.T.view(3, 1, 1, 1, -1) - field[..., None]).square().sum(0)
        assert torch.equal(found, steps[(cost + weight * away).argmin(-1)].permute(3, 0, 1, 2))


@BOTH
def test_of_equally_good_displacements_the_shortest_is_chosen(kernels):
    steps = displacements((1, 1, 1))
    least = torch.empty(2, 2, 2)
    for weight in (0.0, 0.1):
        assert not kernels.coupled_argmin(torch.zeros(2, 2, 2, 27), steps, torch.zeros(3, 2, 2, 2), weight, least).any()


@pytest.mark.parametrize("shape", [(3, 6, 5, 7), (3, 40, 4, 5), (5, 1, 2, 3), (1, 2, 1, 1)])
@pytest.mark.parametrize("passes", [0, 1, 2, 3, 5])
def test_compiled_smoothing_is_the_plain_one(shape, passes):
    values = normal(*shape)
    before = values.clone()
    one, two = kernels_cpu.smooth(values, passes), kernels_torch.smooth(values, passes)
    assert torch.allclose(one, two, atol=1e-5) and torch.equal(values, before)
    assert one.data_ptr() != values.data_ptr() != two.data_ptr()


@BOTH
@pytest.mark.parametrize("passes", [0, 1, 3])
def test_smoothing_is_its_own_adjoint_and_keeps_constants_and_sums(kernels, passes):
    a, b = normal(3, 6, 4, 5), normal(3, 6, 4, 5, seed=1)
    assert torch.isclose((kernels.smooth(a, passes) * b).sum(), (a * kernels.smooth(b, passes)).sum(), atol=1e-3)
    assert torch.allclose(kernels.smooth(torch.full_like(a, 3.5), passes), torch.full_like(a, 3.5), atol=1e-5)
    assert torch.allclose(kernels.smooth(a, passes).sum((1, 2, 3)), a.sum((1, 2, 3)), atol=1e-3)


@BOTH
@pytest.mark.parametrize("shape", [(5, 4, 6), (1, 3, 2), (2, 1, 1)])
def test_the_diffusion_gradient_is_the_derivative_of_its_formula(kernels, shape):
    field = normal(3, *shape).requires_grad_(True)
    energy = sum(WEIGHTS[a, c] * (torch.diff(field[c], dim=a) ** 2).sum() for a in range(3) for c in range(3))
    energy.backward()
    same = Cells(torch.ones(*shape, 2))
    found = kernels.energy_gradient(same, same, field.detach(), np.eye(4)[:3], WEIGHTS)
    assert torch.allclose(found, field.grad, atol=1e-4)


@BOTH
@pytest.mark.parametrize("passes", [0, 2])
def test_adam_is_that_of_torch_by_the_smoothed_gradient(kernels, passes):
    ours = normal(3, 20, 5, 6)
    theirs = ours.clone().requires_grad_(True)
    optimizer = torch.optim.Adam([theirs], lr=0.3)
    moments = torch.zeros(2, *ours.shape)
    for step in range(1, 8):
        gradient = normal(*ours.shape, seed=step, scale=10.0 ** (step - 5))
        theirs.grad = kernels_torch.smooth(gradient, passes)
        optimizer.step()
        kernels.smooth_adam_step(ours, gradient, moments, passes, 0.3, step)
    assert torch.allclose(ours, theirs.detach(), atol=1e-4)
