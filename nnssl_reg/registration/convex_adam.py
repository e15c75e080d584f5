"""ConvexAdam from two feature maps to a displacement field in millimetres (Siebert et al. 2021, 2024)."""

from dataclasses import dataclass
from types import ModuleType

import numpy as np
import torch

from nnssl_reg.geometry.affine import AffineTransform
from nnssl_reg.geometry.displacement import DisplacementField
from nnssl_reg.geometry.grid import Grid
from nnssl_reg.geometry.image import FeatureMap
from nnssl_reg.geometry.triton_devices import runs_triton
from nnssl_reg.registration import kernels_cpu, kernels_torch
from nnssl_reg.registration.cells import Cells, comparable_cells
from nnssl_reg.registration.coupled_convex import search
from nnssl_reg.registration.instance_optimization import optimise
from nnssl_reg.registration.unfolding import unfolded


@dataclass(frozen=True, eq=False)
class Match:
    """A deformation on the fixed feature grid, and how far the registrations of the two directions lie apart at each of its
    cells, (X, Y, Z) mm; None where only one was made."""

    field: DisplacementField
    apart_mm: torch.Tensor | None


def convex_adam(fixed: FeatureMap, moving: FeatureMap, **settings) -> DisplacementField:
    """The deformation of `register_features`, which takes the same arguments."""
    return register_features(fixed, moving, **settings).field


@torch.no_grad()
def register_features(
    fixed: FeatureMap,
    moving: FeatureMap,
    *,
    initial: AffineTransform,
    symmetric: bool = False,
    fixed_mask: torch.Tensor | None = None,
    moving_mask: torch.Tensor | None = None,
    **settings,
) -> Match:
    """The deformation u on the fixed feature grid such that initial(p + u(p)) is the moving point of fixed point p.

    fixed, moving: features on any two grids, same number of channels; initial: fixed world -> moving world; settings: those of
    `one_way`. symmetric: also register moving to fixed and take the mean of the one field and the inverse of the other. Masks
    (bool, one value per feature cell) say which cells count; the others follow their neighbours. Raises ValueError if the
    channels differ.
    """
    if fixed.values.shape[0] != moving.values.shape[0]:
        raise ValueError(
            f"Fixed has {fixed.values.shape[0]} feature channels, moving {moving.values.shape[0]}: they must agree."
        )
    kernels = kernels_for(fixed.values.device)
    cells = comparable_cells(fixed, moving, (fixed_mask, moving_mask), kernels)
    forward = one_way(fixed, moving, initial, cells, **settings)
    if not symmetric:
        return Match(forward, None)
    # the fixed cells as the initial transform places them in the moving world, where the other direction is inverted
    placed = Grid(fixed.grid.shape, initial.matrix @ fixed.grid.affine)
    backward = one_way(moving, fixed, initial.inverse(), cells[::-1], **settings).inverse(placed)
    there, back = _in_cells(forward), _in_cells(backward)  # in cells, because in mm they are of two worlds
    apart_mm = _in_mm(there - back, fixed.grid).vectors_mm.square().sum(0).sqrt()
    return Match(_in_mm(unfolded((there + back) / 2, kernels), fixed.grid), apart_mm)


def one_way(
    fixed: FeatureMap,
    moving: FeatureMap,
    initial: AffineTransform,
    cells: tuple[Cells, Cells],
    *,
    coarse_spacing_mm: float,
    search_radius_mm: float,
    rounds: int,
    iterations: int,
    learning_rate: float,
    smoothness: float,
    smoothing_passes: int,
) -> DisplacementField:
    """ConvexAdam from the fixed to the moving image, whose features are in `cells`; see register_features.

    The search looks search_radius_mm around, in blocks of coarse_spacing_mm; the second round halves both, each further one the
    radius alone, and each starts from the last field. Adam then refines at the fixed cells for `iterations` steps of
    `learning_rate` cells, and folds are smoothed away. smoothness weighs the diffusion regulariser against features scaled so
    that unrelated cells differ by 1.
    """
    kernels = kernels_for(fixed.values.device)
    matrix = cell_to_cell(fixed, moving, initial)
    spacing = np.array(fixed.grid.spacing_mm)
    field = torch.zeros(3, *fixed.grid.shape, device=fixed.values.device)
    for r in range(rounds):
        block_mm, radius_mm = coarse_spacing_mm / 2 ** min(r, 1), search_radius_mm / 2**r
        factor, radius = blocks_and_radius(spacing, fixed.grid.shape, block_mm, radius_mm)
        field = search(*cells, matrix, field, factor, radius, kernels)
    weights = _weights(smoothness, fixed)
    field = optimise(*cells, matrix, field, weights, iterations, learning_rate, smoothing_passes, kernels)
    return _in_mm(unfolded(field, kernels), fixed.grid)


@torch.no_grad()
def refine(
    fixed: FeatureMap,
    moving: FeatureMap,
    field: DisplacementField,
    *,
    initial: AffineTransform,
    fixed_mask: torch.Tensor | None,
    moving_mask: torch.Tensor | None,
    iterations: int,
    learning_rate: float,
    smoothness: float,
    smoothing_passes: int,
) -> DisplacementField:
    """A field of `register_features` refined on other, finer features, on their grid: the Adam part of `one_way` alone."""
    kernels = kernels_for(fixed.values.device)
    cells = comparable_cells(fixed, moving, (fixed_mask, moving_mask), kernels)
    matrix, start = cell_to_cell(fixed, moving, initial), _in_cells(field.on(fixed.grid))
    weights = _weights(smoothness, fixed)
    found = optimise(*cells, matrix, start, weights, iterations, learning_rate, smoothing_passes, kernels)
    return _in_mm(unfolded(found, kernels), fixed.grid)


def _weights(smoothness: float, fixed: FeatureMap) -> torch.Tensor:
    """Of the regulariser, (3, 3): of mm per mm, as if the cells were cubes."""
    spacing = np.array(fixed.grid.spacing_mm)
    weights = smoothness * (spacing[None, :] / spacing[:, None]) ** 2
    return torch.as_tensor(weights, dtype=torch.float32, device=fixed.values.device)


def _in_mm(field: torch.Tensor, grid: Grid) -> DisplacementField:
    """A field (3, X, Y, Z) in cells of grid as a displacement field."""
    linear = torch.as_tensor(grid.affine[:3, :3].copy(), dtype=torch.float32, device=field.device)
    return DisplacementField(torch.einsum("ij,jxyz->ixyz", linear, field), grid)


def _in_cells(field: DisplacementField) -> torch.Tensor:
    """The vectors of a field (3, X, Y, Z) in cells of its grid."""
    linear = np.linalg.inv(field.grid.affine[:3, :3])
    linear = torch.as_tensor(linear, dtype=torch.float32, device=field.vectors_mm.device)
    return torch.einsum("ij,jxyz->ixyz", linear, field.vectors_mm)


def kernels_for(device: torch.device) -> ModuleType:
    """The kernels that run on a device: compiled ones on the CPU and on CUDA devices, torch elsewhere."""
    if runs_triton(device):
        from nnssl_reg.registration import kernels_cuda

        return kernels_cuda
    return kernels_cpu if device.type == "cpu" else kernels_torch


def cell_to_cell(fixed: FeatureMap, moving: FeatureMap, initial: AffineTransform) -> np.ndarray:
    """(3, 4) float64: fixed cell index -> moving cell index through the initial transform; rounding noise is removed."""
    matrix = np.linalg.inv(moving.grid.affine) @ initial.matrix @ fixed.grid.affine
    nearest = np.round(matrix)
    return np.where(np.abs(matrix - nearest) < 1e-9, nearest, matrix)[:3]


def blocks_and_radius(spacing_mm, shape, coarse_spacing_mm, search_radius_mm) -> tuple[list[int], list[int]]:
    """Cells per block, and search radius in blocks, along each axis; at least one of each, at most the image."""
    # a little more, because planned blocks of 1.5 cells would else be 1 or 2 along each axis by the last digit of its spacing
    factor = [int(min(max(1, round(coarse_spacing_mm / s + 1e-4)), n)) for s, n in zip(spacing_mm, shape)]
    radius = [max(1, round(search_radius_mm / (s * f) + 1e-4)) for s, f in zip(spacing_mm, factor)]
    return factor, [min(r, -(-n // f)) for r, n, f in zip(radius, shape, factor)]
