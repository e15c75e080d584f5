"""An affine transform fitted to matches of feature blocks, most of which may be wrong by less than they are right."""

import numpy as np
import torch

from nnssl_reg.geometry.affine import AffineTransform
from nnssl_reg.geometry.image import FeatureMap
from nnssl_reg.geometry.sampling import inside, to_voxels
from nnssl_reg.registration.cells import comparable_cells
from nnssl_reg.registration.convex_adam import blocks_and_radius, cell_to_cell, kernels_for
from nnssl_reg.registration.coupled_convex import match_blocks

MINIMUM_MATCHES = 16


@torch.no_grad()
def refine_affine(
    fixed: FeatureMap, moving: FeatureMap, start: AffineTransform, block_mm: float, radius_blocks: int, iterations: int
) -> AffineTransform:
    """An affine transform fitted, by least trimmed squares, to block matches found around the current one; repeated."""
    kernels = kernels_for(fixed.values.device)
    cells = comparable_cells(fixed, moving, (None, None), kernels)
    factor, radius = blocks_and_radius(fixed.grid.spacing_mm, fixed.grid.shape, block_mm, block_mm * radius_blocks)
    still = torch.zeros(3, *fixed.grid.shape, device=fixed.values.device)
    blocks = fixed.grid.coarsened(factor)
    points = blocks.points_mm().reshape(3, -1).T.double().numpy()
    transform = start
    for _ in range(iterations):
        matrix = cell_to_cell(fixed, moving, transform)
        step = match_blocks(*cells, matrix, still, factor, radius, kernels)
        step = step[(slice(None), *(slice(n) for n in blocks.shape))].reshape(3, -1).T.double().cpu().numpy()
        moved = points + step @ blocks.affine[:3, :3].T
        keep = inside(to_voxels(torch.as_tensor(transform.apply(moved).T), moving.grid), moving.grid.shape).numpy()
        if keep.sum() < MINIMUM_MATCHES:
            break
        transform = least_trimmed_squares(points[keep], moved[keep]).then(transform)
    return transform


def least_trimmed_squares(points, moved, keep: float = 0.6, iterations: int = 10) -> AffineTransform:
    """The affine transform from points to moved (N, 3) fitted to the `keep` share of pairs that it fits best."""
    centre, step = points.mean(axis=0), moved - points
    homogeneous = np.c_[points - centre, np.ones(len(points))]
    chosen = np.arange(len(points))
    for _ in range(iterations):
        # of all solutions lstsq takes the smallest: across matches in one plane (a thin image) nothing is stretched
        solution, *_ = np.linalg.lstsq(homogeneous[chosen], step[chosen], rcond=None)
        residual = np.linalg.norm(homogeneous @ solution - step, axis=1)
        chosen = np.argsort(residual, kind="stable")[: max(8, int(keep * len(points)))]
    matrix = np.eye(4)
    matrix[:3, :3] += solution[:3].T
    matrix[:3, 3] = solution[3] - solution[:3].T @ centre
    return AffineTransform(matrix)
