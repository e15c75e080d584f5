"""Likely shifts: the true one is found at the right size, in all overlaps, and scored as a plain loop would."""

import numpy as np
import pytest
import torch

from nnssl_reg.geometry.affine import AffineTransform
from nnssl_reg.geometry.image import FeatureMap
from nnssl_reg.registration.shift_search import likely_shifts
from nnssl_reg.registration.structure import alignment_cost, structure


@pytest.mark.parametrize("size", [0.8, 1.0, 1.25])
@pytest.mark.parametrize("away", [(100.0, 0.0, 0.0), (-60.0, 80.0, 30.0)])
def test_a_shift_by_100_mm_is_found_at_the_right_size(textured_features, turned_grid, size, away):
    matrix = np.diag([size, size, size, 1.0])
    matrix[:3, 3] = away
    truth = AffineTransform(matrix)
    fixed = structure(textured_features(turned_grid((24, 22, 20), 5.0), shortest_mm=30))
    grid = turned_grid((24, 22, 20), 5.0 * size, (0, 0, 0), truth.apply((12.0, -10.0, 8.0)))
    moving = structure(textured_features(grid, truth.inverse().apply_dense, shortest_mm=30))
    found = {
        s: transforms[0] for s, transforms in likely_shifts(fixed, {s: (moving, s) for s in (0.8, 1.0, 1.25)}, 5.0, 2).items()
    }
    correlation = {s: 1 - alignment_cost(fixed, moving, transform) for s, transform in found.items()}
    assert max(correlation, key=correlation.get) == size
    assert np.allclose(found[size].matrix[:3, :3], size * np.eye(3))
    assert np.abs(found[size].matrix[:3, 3] - truth.matrix[:3, 3]).max() < 5.0 * size  # the lattice it searches on


def test_the_best_of_all_shifts_is_the_one_that_the_cost_says(turned_grid):
    generator = torch.Generator().manual_seed(0)
    fixed = structure(FeatureMap(torch.rand(3, 6, 5, 4, generator=generator), turned_grid((6, 5, 4), 2.0)))
    moving = structure(FeatureMap(torch.rand(3, 4, 6, 5, generator=generator), turned_grid((4, 6, 5), 2.0)))
    apart = moving.grid.index_to_world((0, 0, 0)) - fixed.grid.index_to_world((0, 0, 0))
    steps = np.array(np.meshgrid(*[range(1 - n, m) for n, m in zip((6, 5, 4), (4, 6, 5))], indexing="ij")).reshape(3, -1).T
    costs = [alignment_cost(fixed, moving, AffineTransform.translation(apart + 2.0 * step)) for step in steps]
    found = likely_shifts(fixed, {1.0: (moving, 1.0)}, 2.0, 1)[1.0][0]
    assert np.allclose(found.matrix[:3, 3], apart + 2.0 * steps[int(np.argmin(costs))], atol=1e-6)


def test_peaks_come_best_first_and_apart(textured_features, turned_grid):
    features = structure(textured_features(turned_grid((20, 18, 16), 5.0), shortest_mm=20))
    found = likely_shifts(features, {1.0: (features, 1.0)}, 5.0, 4)[1.0]
    assert len(found) == 4 and np.allclose(found[0].matrix, np.eye(4), atol=1e-9)
    shifts = np.array([t.matrix[:3, 3] for t in found])
    apart = np.abs(shifts[:, None] - shifts[None]).max(axis=2)[np.triu_indices(4, 1)]
    assert apart.min() > 3 * 5.0
