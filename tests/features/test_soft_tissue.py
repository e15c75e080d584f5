"""Soft tissue keeps its contrast, and what is beyond it its order."""

import pytest
import torch

from nnssl_reg.features.soft_tissue import BEYOND, LUNG, LUNG_CONTRAST, SOFT_TISSUE, soft_tissue_contrast, with_lungs


def test_soft_tissue_is_as_it_was_and_air_and_bone_come_near():
    tissue = torch.linspace(*SOFT_TISSUE, 50)
    assert torch.equal(soft_tissue_contrast(tissue), tissue)
    far = soft_tissue_contrast(torch.tensor([-1150.0, 1300.0]))
    torch.testing.assert_close(far, torch.tensor([SOFT_TISSUE[0] - 1000 * BEYOND, SOFT_TISSUE[1] + 1000 * BEYOND]))
    assert (soft_tissue_contrast(torch.arange(-1024.0, 3071.0)).diff() > 0).all()


def seen(hounsfield) -> torch.Tensor:
    return with_lungs(soft_tissue_contrast(torch.as_tensor(hounsfield).reshape(-1, 1, 1)))[0].flatten()


def test_lungs_keep_contrast_and_all_else_is_as_without_them():
    beside = torch.linspace(LUNG[1], 3000, 50)
    torch.testing.assert_close(seen(beside), soft_tissue_contrast(beside))
    air, lung = seen([-900.0, -500.0])
    torch.testing.assert_close(lung - air, torch.tensor(400 * LUNG_CONTRAST))
    below, air = seen([LUNG[0] - 1000, LUNG[0]])  # what scanners fill corners with
    torch.testing.assert_close(air - below, torch.tensor(1000 * BEYOND))
    assert (seen(torch.arange(-3024.0, 3071.0)).diff() > 0).all()


def test_the_share_is_that_of_the_contrast_there_was_before():
    hounsfield = torch.zeros(8, 8, 8)
    hounsfield[4:] = 100.0  # of all differences along the first axis, only soft tissue's
    assert with_lungs(soft_tissue_contrast(hounsfield))[1] == 1.0
    hounsfield[4:] = LUNG[0]
    surface = soft_tissue_contrast(hounsfield)
    shown, share = with_lungs(surface)
    assert share == pytest.approx(float((surface[0, 0, 0] - surface[-1, 0, 0]) / (shown[0, 0, 0] - shown[-1, 0, 0])) ** 2)
    assert with_lungs(torch.zeros(8, 8, 1))[1] == 1.0
