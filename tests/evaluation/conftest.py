"""What tests of the report share: a small pair with a bright block, its labels and everything that a page shows."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from nnssl_reg.evaluation.report_images import PairImages
from nnssl_reg.geometry.displacement import DisplacementField
from nnssl_reg.geometry.grid import Grid
from nnssl_reg.geometry.image import FeatureMap, Image

GRID = Grid((40, 32, 24), np.diag([2.0, 2.5, 4.0, 1.0]))
BLOCK = (slice(22, 36), slice(16, 30), slice(12, 22))  # to the right, anterior and superior
SHIFT_MM = (4.0, -5.0, 8.0)


def _images(seed: int = 0) -> PairImages:
    """Fixed and warped agree; before, the block lies one voxel off. The field is SHIFT_MM everywhere."""
    array = np.random.default_rng(seed).uniform(0, 5, (1, *GRID.shape)).astype(np.float32)
    array[0, 4:37, 3:30, 2:22] += 40
    array[(0, *BLOCK)] += 100
    labels = np.zeros((1, *GRID.shape), dtype=np.uint16)
    labels[(0, *BLOCK)], labels[0, 6:12, 6:12, 6:12] = 7, 300
    fixed, label = Image(array, GRID), Image(labels, GRID)
    before, before_label = (Image(np.roll(image.array, 1, axis=1), GRID) for image in (fixed, label))
    field = DisplacementField(torch.tensor(SHIFT_MM).view(3, 1, 1, 1).expand(3, *GRID.shape).contiguous(), GRID)
    cells = GRID.coarsened(2)
    maps = tuple(FeatureMap(torch.randn(4, *cells.shape, generator=torch.Generator().manual_seed(i)), cells) for i in range(3))
    apart = Image(np.full((1, *cells.shape), 3.0, dtype=np.float32), cells)
    return PairImages(fixed, before, fixed, field, label, before_label, label, maps, apart)


@pytest.fixture(scope="session")
def report_scene():
    """images(seed) -> PairImages; grid; block: its voxels; shift_mm: of the field."""
    return SimpleNamespace(images=_images, grid=GRID, block=BLOCK, shift_mm=SHIFT_MM)
