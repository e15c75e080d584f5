"""Shifts of the moving patient, at several sizes, that look likely: peaks of the correlation over all overlaps, by FFT."""

from collections.abc import Mapping
from typing import TypeVar

import numpy as np
import torch
from scipy.fft import next_fast_len

from nnssl_reg.geometry.affine import AffineTransform
from nnssl_reg.geometry.grid import Grid
from nnssl_reg.geometry.image import FeatureMap
from nnssl_reg.geometry.sampling import sample_voxels, to_voxels
from nnssl_reg.registration.structure import MINIMUM_OVERLAP

SEPARATION_CELLS = 3  # peaks nearer to a higher one are part of it
IMPOSSIBLE = -9.0
Key = TypeVar("Key")


@torch.no_grad()
def likely_shifts(
    fixed: FeatureMap, candidates: Mapping[Key, tuple[FeatureMap, float]], cell_mm: float, peaks: int
) -> dict[Key, list[AffineTransform]]:
    """The best transforms p -> size p + shift of each candidate, a moving map and a size, best first: up to `peaks` each.

    The maps are structures. They are brought to cubic cells (cell_mm; of a moving map size times that); the score of a
    shift is what alignment_cost is of it: correlation over the overlap times the root of the overlap's share of structure.
    """
    directions = fixed.grid.affine[:3, :3] / np.array(fixed.grid.spacing_mm)
    a = _on_lattice(fixed, cell_mm, directions)
    others = {key: _on_lattice(moving, cell_mm * size, directions) for key, (moving, size) in candidates.items()}
    longest = np.max([b.grid.shape for b in others.values()], axis=0)
    shape = [next_fast_len(int(n + m - 1), real=True) for n, m in zip(a.grid.shape, longest)]
    spectra, origin = _spectra(a.values, shape), a.grid.index_to_world((0, 0, 0))
    found = {}
    for key, b in others.items():
        score, size = _scores(spectra, _spectra(b.values, shape), shape), candidates[key][1]
        shifts = [[s if s < m else s - n for s, m, n in zip(peak, b.grid.shape, shape)] for peak in _peaks(score, peaks)]
        linear = np.diag([size, size, size, 1.0])
        found[key] = [AffineTransform(_with_shift(linear, b.grid.index_to_world(s) - size * origin)) for s in shifts]
    return found


def _with_shift(linear: np.ndarray, shift_mm) -> np.ndarray:
    matrix = linear.copy()
    matrix[:3, 3] = shift_mm
    return matrix


def _spectra(values: torch.Tensor, shape):
    """Fourier transforms of (F, ...) values, of their energy and of where they are, zero-padded to `shape`."""
    parts = (values, values.square().sum(0, keepdim=True), torch.ones_like(values[:1]))
    return [torch.fft.rfftn(part, shape) for part in parts]


def _scores(fixed, moving, shape) -> torch.Tensor:
    """Correlation over the overlap times the root of the overlap, for every shift; IMPOSSIBLE below MINIMUM_OVERLAP."""

    def over_overlap(p, q):  # sum over x of p(x) q(x + s) for every shift s
        return torch.fft.irfftn((p.conj() * q).sum(0), shape)

    energies = over_overlap(fixed[1], moving[2]), over_overlap(fixed[2], moving[1])
    totals = [max(float(part[1].flatten()[0].real), 1e-12) for part in (fixed, moving)]
    shares = [(energy / total).clamp(0, 1) for energy, total in zip(energies, totals)]
    overlap = torch.maximum(*shares)
    # where hardly any structure of one image lies, a correlation is noise divided by noise
    product = (shares[0] * shares[1]).clamp(min=MINIMUM_OVERLAP**4) * (totals[0] * totals[1])
    score = over_overlap(fixed[0], moving[0]) * (overlap / product).sqrt()
    return torch.where(overlap < MINIMUM_OVERLAP, IMPOSSIBLE, score)


def _peaks(score: torch.Tensor, count: int) -> list[tuple[int, ...]]:
    """Indices of the highest values that are the highest within SEPARATION_CELLS (the ends of an axis meet), highest first."""
    highest = score[None, None]
    for axis, length in enumerate(score.shape):
        around = torch.arange(-SEPARATION_CELLS, length + SEPARATION_CELLS, device=score.device) % length
        highest = highest.index_select(axis + 2, around)
        window = [2 * SEPARATION_CELLS + 1 if a == axis else 1 for a in range(3)]
        highest = torch.nn.functional.max_pool3d(highest, window, stride=1)
    alone = torch.where(score == highest[0, 0], score, IMPOSSIBLE).flatten()
    values, places = alone.topk(min(count, alone.numel()))
    shape = tuple(score.shape)
    return [
        tuple(int(i) for i in np.unravel_index(p, shape)) for v, p in zip(values.tolist(), places.tolist()) if v > IMPOSSIBLE
    ]


def _on_lattice(features: FeatureMap, spacing: float, directions) -> FeatureMap:
    """Features on cubic cells along `directions`, (near) the same field of view."""
    corners = features.grid.corners_mm() @ directions
    low = corners.min(axis=0)
    shape = np.maximum(1, np.round((corners.max(axis=0) - low) / spacing).astype(int) + 1)
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = directions * spacing, directions @ low
    grid = Grid(tuple(int(n) for n in shape), affine)
    position = to_voxels(grid.points_mm(device=features.values.device), features.grid)
    return FeatureMap(sample_voxels(features.values, position), grid)
