"""An affine transform fitted to matches of feature blocks, most of which may be wrong by less than they are right."""

import numpy as np
import torch

from nnssl_reg.geometry.affine import AffineTransform
from nnssl_reg.geometry.grid import Grid
from nnssl_reg.geometry.image import FeatureMap
from nnssl_reg.registration.cells import comparable_cells
from nnssl_reg.registration.convex_adam import blocks_and_radius, cell_to_cell, kernels_for
from nnssl_reg.registration.coupled_convex import match_blocks

MINIMUM_MATCHES = 16
STILL_CELLS = 0.25  # a step that moves no corner of the fixed image further is the last
SHAPE_PRIOR = 0.15  # share of what the stretches differ from each other (their logarithms) that a fit takes back


@torch.no_grad()
def refine_affine(
    fixed: FeatureMap, moving: FeatureMap, start: AffineTransform, block_mm: float, radius_blocks: int, iterations: int
) -> AffineTransform:
    """An affine transform fitted, by least trimmed squares, to block matches found around the current one; repeated until it
    stays or for so many iterations."""
    kernels = kernels_for(fixed.values.device)
    cells = comparable_cells(fixed, moving, (None, None), kernels)
    factor, radius = blocks_and_radius(fixed.grid.spacing_mm, fixed.grid.shape, block_mm, block_mm * radius_blocks)
    still = torch.zeros(3, *fixed.grid.shape, device=fixed.values.device)
    blocks = fixed.grid.coarsened(factor)
    points = blocks.points_mm().reshape(3, -1).T.double().numpy()
    transform, least_mm = start, min(fixed.grid.spacing_mm)
    for _ in range(iterations):
        matrix = cell_to_cell(fixed.grid, moving.grid, transform)
        step = match_blocks(*cells, matrix, still, factor, radius, kernels)
        step = step[(slice(None), *(slice(n) for n in blocks.shape))].reshape(3, -1).T.double().cpu().numpy()
        moved = points + step @ blocks.affine[:3, :3].T
        keep = _well_inside(transform.apply(moved), moving.grid, block_mm) & _well_inside(
            transform.apply(points), moving.grid, block_mm
        )
        if keep.sum() < MINIMUM_MATCHES:
            break
        last, corners = transform, fixed.grid.corners_mm()
        transform = tempered(least_trimmed_squares(points[keep], moved[keep]).then(last), points[keep].mean(axis=0))
        if np.linalg.norm(transform.apply(corners) - last.apply(corners), axis=1).max() < STILL_CELLS * least_mm:
            break
    return transform


def tempered(transform: AffineTransform, centre_mm) -> AffineTransform:
    """The transform with its stretches a little more alike, and the same at the centre.

    Patients differ in size more than in proportions, and matches near the end of a field of view pull towards it: without
    this a patient is stretched along its length, step by step, until the fields of view agree.
    """
    u, stretches, vt = np.linalg.svd(transform.matrix[:3, :3])
    logs = np.log(stretches)
    stretches = np.exp(logs.mean() + (1 - SHAPE_PRIOR) * (logs - logs.mean()))
    matrix = np.eye(4)
    matrix[:3, :3] = (u * stretches) @ vt
    matrix[:3, 3] = transform.apply(centre_mm) - matrix[:3, :3] @ centre_mm
    return AffineTransform(matrix)


def _well_inside(points_mm, grid: Grid, margin_mm: float) -> np.ndarray:
    """Which points (N, 3) lie in a field of view and, along axes with room for it, margin_mm from its ends."""
    index, shape = grid.world_to_index(points_mm), np.array(grid.shape)
    margin = np.minimum(margin_mm / np.array(grid.spacing_mm), shape / 16)
    return ((index >= margin - 0.5) & (index <= shape - margin - 0.5)).all(axis=1)


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
