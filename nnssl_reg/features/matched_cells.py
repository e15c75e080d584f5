"""The cells of two feature maps that lie on matched points."""

import torch

from nnssl_reg.geometry.displacement import DisplacementField
from nnssl_reg.geometry.image import FeatureMap
from nnssl_reg.geometry.sampling import inside, sample_points, sample_voxels, to_voxels

MOST_VALUES = 2**22  # of matched cells per image, 32 MB; evenly spread ones beyond it are left out


def matched_cells(fixed: FeatureMap, moving: FeatureMap, matches: DisplacementField) -> tuple[torch.Tensor, torch.Tensor]:
    """Evenly spread fixed cells and the moving values where they belong, (F, n) float64 on the CPU each.

    matches: fixed points to moving points, RAS mm; cells that they lead out of the moving map are left out.
    """
    cells = fixed.values.flatten(1)
    every = -(-cells.numel() // MOST_VALUES)
    points = fixed.grid.points_mm(device=cells.device).flatten(1)[:, ::every]
    there = to_voxels(points + sample_points(matches.vectors_mm, matches.grid, points), moving.grid)
    seen = inside(there, moving.grid.shape)
    both = cells[:, ::every][:, seen], sample_voxels(moving.values.float(), there[:, seen])
    return tuple(values.cpu().double() for values in both)
