"""Soft tissue keeps its contrast, and what is beyond it its order."""

import torch

from nnssl_reg.features.soft_tissue import BEYOND, SOFT_TISSUE, soft_tissue_contrast


def test_soft_tissue_is_as_it_was_and_air_and_bone_come_near():
    tissue = torch.linspace(*SOFT_TISSUE, 50)
    assert torch.equal(soft_tissue_contrast(tissue), tissue)
    far = soft_tissue_contrast(torch.tensor([-1150.0, 1300.0]))
    torch.testing.assert_close(far, torch.tensor([SOFT_TISSUE[0] - 1000 * BEYOND, SOFT_TISSUE[1] + 1000 * BEYOND]))
    assert (soft_tissue_contrast(torch.arange(-1024.0, 3071.0)).diff() > 0).all()
