"""The Adam stage: no motion stays none, a part of a cell is found, the regulariser and the masks do what they say."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from nnssl_reg.registration import kernels_cpu, kernels_torch
from nnssl_reg.registration.cells import Cells
from nnssl_reg.registration.instance_optimization import optimise

STILL = np.eye(4)[:3]
SHIFT = torch.tensor([0.6, -0.4, 0.3]).view(3, 1, 1, 1)


@pytest.fixture
def cells(turned_grid, textured_features):
    def make(shift=(0, 0, 0)) -> Cells:
        offset = torch.as_tensor(shift).double().view(3, 1, 1, 1)
        features = textured_features(turned_grid((16, 14, 15), 1.0), lambda points: points - offset).values
        return Cells((features.permute(1, 2, 3, 0).contiguous() - 100) / 400)

    return make


def refined(fixed, moving, smoothness=0.3, kernels=kernels_cpu, start=None) -> torch.Tensor:
    start = torch.zeros(3, *fixed.shape) if start is None else start
    return optimise(fixed, moving, STILL, start, torch.full((3, 3), smoothness), 60, 0.3, 2, kernels)


@pytest.mark.parametrize(("kernels", "rounding"), [(kernels_cpu, 0), (kernels_torch, 0.02)], ids=["cpu", "torch"])
def test_equal_images_do_not_move_and_a_part_of_a_cell_is_found(cells, kernels, rounding):
    """In torch, positions are rounded on their way through grid_sample, and Adam makes whole steps of any gradient."""
    assert refined(cells(), cells(), kernels=kernels).abs().max() <= rounding
    field = refined(cells(), cells(SHIFT), kernels=kernels)
    assert (field - SHIFT)[:, 3:-3, 3:-3, 3:-3].norm(dim=0).mean() < 0.05


def test_both_kernels_find_the_same_field(cells):
    one, two = (refined(cells(), cells(SHIFT), kernels=k) for k in (kernels_cpu, kernels_torch))
    assert (one - two).abs().mean() < 0.01


def test_the_start_is_not_changed_in_place(cells):
    start = torch.ones(3, 16, 14, 15)
    refined(cells(), cells(SHIFT), start=start)
    assert torch.equal(start, torch.ones_like(start))


def test_more_smoothness_gives_a_smoother_field(cells):
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(3, 16, 14, 15, generator=generator)
    rough = [refined(cells(), cells(SHIFT), s, start=start).diff(dim=1).square().mean() for s in (0.01, 0.3, 10.0)]
    assert rough[0] > 2 * rough[1] > 4 * rough[2]


@pytest.mark.parametrize("which", [0, 1])
def test_outside_a_mask_nothing_pulls(cells, which):
    images = [cells(), cells(SHIFT)]
    mask = torch.ones(16, 14, 15, dtype=torch.bool)
    mask[:, 8:] = False
    one = refined(*(replace(c, mask=mask) if i == which else c for i, c in enumerate(images)))
    images[which] = Cells(torch.where(mask[..., None], images[which].values, cells((5, 5, 5)).values))
    masked = [replace(c, mask=mask) if i == which else c for i, c in enumerate(images)]
    assert (refined(*images) - one).abs().max() > 0.5
    assert (refined(*masked) - one).abs().max() < 0.05
    assert (one - SHIFT)[:, 3:-3, 3:5, 3:-3].norm(dim=0).mean() < 0.1
