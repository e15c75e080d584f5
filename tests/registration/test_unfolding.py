"""Unfolding: folds go, everything that does not fold stays to the bit."""

import pytest
import torch

from nnssl_reg.geometry.displacement import DisplacementField
from nnssl_reg.registration import kernels_cpu, kernels_torch
from nnssl_reg.registration.unfolding import folded_cells, folded_cells_torch, unfolded

BOTH = pytest.mark.parametrize("kernels", [kernels_cpu, kernels_torch], ids=["cpu", "torch"])


def smooth_field(strength: float) -> torch.Tensor:
    """Waves whose steepest slope is about `strength`, (3, X, Y, Z) cells."""
    x, y, z = torch.meshgrid(torch.arange(16.0), torch.arange(14.0), torch.arange(15.0), indexing="ij")
    return strength * torch.stack([2 * torch.sin(x / 2 + y / 5), 2 * torch.cos(y / 2), 2 * torch.sin(z / 2 - x / 7)])


@BOTH
def test_a_field_without_folds_stays_as_it_is_to_the_bit(kernels):
    field = smooth_field(0.4)
    assert not folded_cells(field).any() and torch.equal(unfolded(field, kernels), field)


@BOTH
def test_no_fold_is_left_and_far_from_folds_nothing_changes(kernels, turned_grid):
    field = smooth_field(0.4)
    field[:, 3:6, 3:6, 3:6] += 3 * torch.randn(3, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    assert folded_cells(field).any()
    mended = unfolded(field, kernels)
    assert not folded_cells(mended).any()
    in_mm = DisplacementField(mended, turned_grid((16, 14, 15), 1.0))
    assert in_mm.jacobian_determinant().min() > 0
    assert torch.equal(mended[..., 13:], field[..., 13:])


@pytest.mark.parametrize("shape", [(18, 11, 13), (20, 1, 6), (2, 3, 1)])
def test_rows_near_folds_alone_are_changed_as_all_would_be(shape):
    field = 0.2 * torch.randn(3, *shape, generator=torch.Generator().manual_seed(2))
    field[:, : shape[0] // 2] *= 8  # folds in many rows, and in rows at the edge
    everywhere = torch.ones(shape, dtype=torch.bool)
    one, two = unfolded(field, kernels_cpu), unfolded(field, kernels_torch, everywhere)
    assert folded_cells(field).any() and not torch.equal(one, field) and torch.allclose(one, two, atol=1e-5)


@pytest.mark.parametrize("shape", [(9, 8, 7), (1, 4, 5), (4, 1, 1), (2, 2, 2), (1, 1, 1)])
def test_the_compiled_search_for_folds_is_the_plain_one(shape):
    field = 0.4 * torch.randn(3, *shape, generator=torch.Generator().manual_seed(1))
    assert torch.equal(folded_cells(field), folded_cells_torch(field))
    field[0, -1] = float("nan")  # is no fold, and hides none elsewhere
    assert torch.equal(folded_cells(field), folded_cells_torch(field))


def test_a_fold_is_where_the_order_of_neighbours_is_reversed():
    field = torch.zeros(3, 9, 8, 7)
    field[0, 4, 4, 4] = 1.5  # beyond its neighbour at 5
    folded = folded_cells(field)
    assert folded[4, 4, 4] and folded[5, 4, 4] and folded.sum() <= 27
    assert not folded_cells(torch.zeros(3, 1, 5, 1)).any()
