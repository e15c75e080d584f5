"""The dense search: exact zeros, exact shifts, composition and inverse consistency by their definitions, masks."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from nnssl_reg.registration import kernels_cpu, kernels_torch
from nnssl_reg.registration.cells import Cells
from nnssl_reg.registration.coupled_convex import compose, inverse_consistent, match_blocks, search

STILL = np.eye(4)[:3]
BOTH = pytest.mark.parametrize("kernels", [kernels_cpu, kernels_torch], ids=["cpu", "torch"])


@pytest.fixture
def cells(turned_grid, textured_features):
    """cells(shift, shape): channels-last features of the texture moved by `shift` cells, about as far apart as 1."""

    def make(shift=(0, 0, 0), shape=(24, 20, 22)) -> Cells:
        offset = torch.tensor(shift).double().view(3, 1, 1, 1)
        features = textured_features(turned_grid(shape, 1.0), lambda points: points - offset).values
        return Cells((features.permute(1, 2, 3, 0).contiguous() - 100) / 400)

    return make


def still(cells: Cells) -> torch.Tensor:
    return torch.zeros(3, *cells.shape)


@BOTH
@pytest.mark.parametrize("factor", [[1, 1, 1], [2, 2, 2], [3, 2, 5]])
def test_equal_images_do_not_move_at_all(cells, kernels, factor):
    field = search(cells(), cells(), STILL, still(cells()), factor, [2, 1, 1], kernels)
    assert field.shape == (3, 24, 20, 22) and not field.any()


@BOTH
def test_a_shift_by_whole_blocks_is_found_in_cells(cells, kernels):
    field = search(cells(), cells((4, 0, -2)), STILL, still(cells()), [2, 2, 2], [3, 2, 2], kernels)
    error = field - torch.tensor([4.0, 0.0, -2.0]).view(3, 1, 1, 1)
    assert error[:, 6:-8, 5:-5, 7:-5].abs().mean() < 0.1


def test_the_search_starts_from_the_field_given(cells):
    start = still(cells()) + torch.tensor([7.0, 0.0, 0.0]).view(3, 1, 1, 1)
    field = search(cells(), cells((7, 0, 0)), STILL, start, [2, 2, 2], [1, 1, 1], kernels_cpu)
    assert torch.allclose(field[:, :12], start[:, :12], atol=0.05)  # beyond cell 16 there is nothing to see


def test_where_the_moving_image_does_not_reach_nothing_moves(cells):
    away = np.array(STILL)
    away[0, 3] = 1000
    assert not search(cells(), cells(), away, still(cells()), [2, 2, 2], [2, 2, 2], kernels_cpu).any()


def test_the_matrix_places_the_moving_lattice(cells):
    """The same world stored upside down, in other axes: the field does not change."""
    moving = cells((2, 2, 0))
    matrix = np.array([[0, -1.0, 0, 19], [1.0, 0, 0, 0], [0, 0, 1.0, 0]])  # fixed (x, y, z) -> moving (19 - y, x, z)
    other = Cells(moving.values.permute(1, 0, 2, 3).flip(0).contiguous())
    one, two = (
        search(cells(), m, t, still(moving), [2, 2, 2], [2, 2, 2], kernels_cpu) for m, t in ((moving, STILL), (other, matrix))
    )
    assert torch.allclose(one, two, atol=1e-3)


def test_composition_is_first_the_step_then_the_field():
    index = torch.stack(torch.meshgrid(*[torch.arange(9.0)] * 3, indexing="ij"))
    step, linear = torch.full((3, 9, 9, 9), 0.5), torch.tensor([[0.1, 0, 0.2], [0, -0.1, 0], [0.1, 0.1, 0]])
    found = compose(step, torch.einsum("ij,jxyz->ixyz", linear, index))
    truth = 0.5 + torch.einsum("ij,jxyz->ixyz", linear, index + 0.5)
    assert torch.allclose(found[:, :8, :8, :8], truth[:, :8, :8, :8], atol=1e-5)


def test_fields_that_undo_each_other_stay_and_others_meet_in_the_middle():
    there = torch.zeros(3, 7, 7, 7) + torch.tensor([1.0, -2.0, 0.0]).view(3, 1, 1, 1)
    assert torch.allclose(inverse_consistent(there, -there), there)
    forward, backward = inverse_consistent(there, torch.zeros_like(there)), inverse_consistent(torch.zeros_like(there), there)
    assert torch.allclose(forward, there / 2, atol=1e-4) and torch.allclose(backward, -there / 2, atol=1e-4)


@pytest.mark.parametrize("which", [0, 1])
def test_what_lies_outside_a_mask_has_no_say(cells, which):
    images = [cells(), cells((2, 0, 1))]
    mask = torch.ones(24, 20, 22, dtype=torch.bool)
    mask[13:] = False
    masked = [replace(c, mask=mask) if i == which else c for i, c in enumerate(images)]
    arguments = (STILL, still(cells()), [2, 2, 2], [2, 2, 2], kernels_cpu)
    one = match_blocks(*masked, *arguments)
    images[which] = Cells(torch.where(mask[..., None], images[which].values, 5 * cells((9, 9, 9)).values))
    masked[which] = replace(images[which], mask=mask)
    two, without = match_blocks(*masked, *arguments), match_blocks(*images, *arguments)
    assert torch.allclose(one, two, atol=1e-5) and not torch.allclose(without, two, atol=0.1)
