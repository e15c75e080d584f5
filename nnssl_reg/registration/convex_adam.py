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
from nnssl_reg.registration.kernels_torch import moving_position
from nnssl_reg.registration.unfolding import unfolded

MARGIN_BLOCKS = 2  # around what the fixed cells lead to, beside the radius of the search, where the other direction is sought
Searches = list[tuple[float, float]]


@dataclass(frozen=True, eq=False)
class Match:
    """A deformation on the fixed feature grid, and how far the registrations of the two directions lie apart at each of its
    cells, (X, Y, Z) mm; None where only one was made."""

    field: DisplacementField
    apart_mm: torch.Tensor | None


def convex_adam(fixed: FeatureMap, moving: FeatureMap, **settings) -> DisplacementField:
    """The deformation of `register_features`, which takes the same arguments."""
    return register_features(fixed, moving, **settings).field


@dataclass(frozen=True, eq=False)
class _Direction:
    """A registration in one direction: the features in cells (whose are displaced, what they are sought in), and how they lie.

    grid: of the cells that are displaced; matrix: (3, 4), these cells -> the other ones.
    """

    grid: Grid
    cells: tuple[Cells, Cells]
    matrix: np.ndarray
    kernels: ModuleType

    def searched(self, field: torch.Tensor, searches: Searches) -> torch.Tensor:
        """A field (3, X, Y, Z) in cells after each (block, radius) of a search in mm, from the field so far."""
        for block_mm, radius_mm in searches:
            factor, radius = blocks_and_radius(self.grid.spacing_mm, self.grid.shape, block_mm, radius_mm)
            field = search(*self.cells, self.matrix, field, factor, radius, self.kernels)
        return field

    def refined(self, field: torch.Tensor, smoothness: float, *, iterations: int, learning_rate: float,
                smoothing_passes: int) -> torch.Tensor:  # fmt: skip
        """A field (3, X, Y, Z) in cells after Adam, without folds."""
        weights = _weights(smoothness, self.grid, field.device)
        field = optimise(*self.cells, self.matrix, field, weights, iterations, learning_rate, smoothing_passes, self.kernels)
        return unfolded(field, self.kernels)


@torch.no_grad()
def register_features(
    fixed: FeatureMap,
    moving: FeatureMap,
    *,
    initial: AffineTransform,
    coarse_spacing_mm: float,
    search_radius_mm: float,
    rounds: int,
    smoothness: float,
    symmetric: bool = False,
    fixed_mask: torch.Tensor | None = None,
    moving_mask: torch.Tensor | None = None,
    **adam,
) -> Match:
    """The deformation u on the fixed feature grid such that initial(p + u(p)) is the moving point of fixed point p.

    fixed, moving: features on any two grids, same number of channels; initial: fixed world -> moving world. The search looks
    search_radius_mm around, in blocks of coarse_spacing_mm; the second round halves both, each further one the radius alone,
    and each starts from the last field. Adam then refines at the cells for `iterations` steps of `learning_rate` cells, its
    field smoothed by `smoothing_passes` box filters, and folds are smoothed away. smoothness weighs the diffusion regulariser
    against features scaled so that unrelated cells differ by 1. symmetric: the last round and Adam also from moving to fixed,
    from the inverse of what the rounds before it found; the result is the mean of the one field and the inverse of the other.
    Masks (bool, one value per feature cell) say which cells count; the others follow their neighbours. Raises ValueError if the
    channels differ.
    """
    if fixed.values.shape[0] != moving.values.shape[0]:
        raise ValueError(
            f"Fixed has {fixed.values.shape[0]} feature channels, moving {moving.values.shape[0]}: they must agree."
        )
    kernels = kernels_for(fixed.values.device)
    cells = comparable_cells(fixed, moving, (fixed_mask, moving_mask), kernels)
    searches = [(coarse_spacing_mm / 2 ** min(r, 1), search_radius_mm / 2**r) for r in range(rounds)]
    there = _Direction(fixed.grid, cells, cell_to_cell(fixed.grid, moving.grid, initial), kernels)
    still = torch.zeros(3, *fixed.grid.shape, device=fixed.values.device)
    if not symmetric:
        return Match(_in_mm(there.refined(there.searched(still, searches), smoothness, **adam), fixed.grid), None)
    shared = there.searched(still, searches[:-1])
    forward = there.refined(there.searched(shared, searches[-1:]), smoothness, **adam)
    # the fixed cells as the initial transform places them in the moving world, where the other direction is found and inverted
    placed = Grid(fixed.grid.shape, initial.matrix @ fixed.grid.affine)
    box = _reached(shared, there.matrix, moving.grid, searches[-1][1] + MARGIN_BLOCKS * searches[-1][0])
    grid = moving.grid.cropped(box)
    sides, matrix = (cells[1].cropped(box, kernels), cells[0]), cell_to_cell(grid, fixed.grid, initial.inverse())
    back = _Direction(grid, sides, matrix, kernels)
    start = _in_cells(_in_mm(shared, placed).inverse(grid))
    backward = _in_mm(back.refined(back.searched(start, searches[-1:]), smoothness, **adam), grid).inverse(placed)
    backward = _in_cells(backward)  # because in mm they are of two worlds
    apart_mm = _in_mm(forward - backward, fixed.grid).vectors_mm.square().sum(0).sqrt()
    return Match(_in_mm(unfolded((forward + backward) / 2, kernels), fixed.grid), apart_mm)


def _reached(field: torch.Tensor, matrix: np.ndarray, other: Grid, margin_mm: float) -> np.ndarray:
    """The box [[start, stop], ...] of cells of another grid that the cells of a field (3, X, Y, Z) lead to, with a margin."""
    led = moving_position(field, matrix).flatten(1)
    margin = margin_mm / np.array(other.spacing_mm)
    low, high = (np.array(end.tolist()) for end in (led.amin(1), led.amax(1)))
    last = np.array(other.shape) - 1
    return np.stack([np.clip(np.floor(low - margin), 0, last), np.clip(np.ceil(high + margin), 0, last) + 1], 1).astype(int)


@torch.no_grad()
def refine(
    fixed: FeatureMap,
    moving: FeatureMap,
    field: DisplacementField,
    *,
    initial: AffineTransform,
    smoothness: float,
    fixed_mask: torch.Tensor | None,
    moving_mask: torch.Tensor | None,
    **adam,
) -> DisplacementField:
    """A field of `register_features` refined on other, finer features, on their grid: by Adam alone, in one direction."""
    kernels = kernels_for(fixed.values.device)
    cells = comparable_cells(fixed, moving, (fixed_mask, moving_mask), kernels)
    there = _Direction(fixed.grid, cells, cell_to_cell(fixed.grid, moving.grid, initial), kernels)
    return _in_mm(there.refined(_in_cells(field.on(fixed.grid)), smoothness, **adam), fixed.grid)


def _weights(smoothness: float, grid: Grid, device: torch.device) -> torch.Tensor:
    """Of the regulariser, (3, 3): of mm per mm, as if the cells were cubes."""
    spacing = np.array(grid.spacing_mm)
    weights = smoothness * (spacing[None, :] / spacing[:, None]) ** 2
    return torch.as_tensor(weights, dtype=torch.float32, device=device)


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


def cell_to_cell(fixed: Grid, moving: Grid, initial: AffineTransform) -> np.ndarray:
    """(3, 4) float64: fixed cell index -> moving cell index through the initial transform; rounding noise is removed."""
    matrix = np.linalg.inv(moving.affine) @ initial.matrix @ fixed.affine
    nearest = np.round(matrix)
    return np.where(np.abs(matrix - nearest) < 1e-9, nearest, matrix)[:3]


def blocks_and_radius(spacing_mm, shape, coarse_spacing_mm, search_radius_mm) -> tuple[list[int], list[int]]:
    """Cells per block, and search radius in blocks, along each axis; at least one of each, at most the image."""
    # a little more, because planned blocks of 1.5 cells would else be 1 or 2 along each axis by the last digit of its spacing
    factor = [int(min(max(1, round(coarse_spacing_mm / s + 1e-4)), n)) for s, n in zip(spacing_mm, shape)]
    radius = [max(1, round(search_radius_mm / (s * f) + 1e-4)) for s, f in zip(spacing_mm, factor)]
    return factor, [min(r, -(-n // f)) for r, n, f in zip(radius, shape, factor)]
