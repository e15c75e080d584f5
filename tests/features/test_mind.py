"""MIND-SSC against its formula voxel by voxel, and what it must not notice."""

from itertools import product

import numpy as np
import pytest
import torch

from nnssl_reg.features.mind import PAIRS, mind_features, mind_ssc, turned_mind
from nnssl_reg.geometry.affine import AffineTransform, right_angled_rotations
from nnssl_reg.geometry.grid import Grid
from nnssl_reg.geometry.image import Image


def noise(*shape, seed=0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(100, 30, shape).astype(np.float32))


def mind_by_the_formula(image: np.ndarray, radius: int, dilation: int, noise: float) -> np.ndarray:
    """One voxel, one pair, one box voxel at a time; positions outside take the nearest edge voxel."""

    def value(*position):
        return image[tuple(int(np.clip(p, 0, n - 1)) for p, n in zip(position, image.shape))]

    box = list(product(range(-radius, radius + 1), repeat=3))
    distances = np.zeros((len(PAIRS), *image.shape))
    for x in product(*map(range, image.shape)):
        for k, (a, b) in enumerate(PAIRS):
            differences = [value(*(np.add(x, o) + dilation * np.array(a))) - value(*(np.add(x, o) + dilation * np.array(b)))
                           for o in box]  # fmt: skip
            distances[(k, *x)] = np.mean(np.square(differences))
    distances -= distances.min(axis=0)
    variance = distances.mean(axis=0)
    kept = np.clip(variance, 1e-3 * variance.mean(), 1e3 * variance.mean())
    return np.exp(-distances / (kept + noise * variance.mean()))


def test_the_pairs_are_the_twelve_of_neighbours_that_are_not_opposite():
    assert len({frozenset(pair) for pair in PAIRS}) == 12
    for a, b in PAIRS:
        assert np.sum(np.square(a)) == np.sum(np.square(b)) == 1 and np.sum(np.square(np.subtract(a, b))) == 2


@pytest.mark.parametrize(("radius", "dilation", "share"), [(1, 1, 0.0), (1, 2, 0.0), (0, 1, 0.0), (1, 2, 1.0)])
def test_mind_is_its_formula(radius, dilation, share):
    image = noise(4, 3, 5)
    truth = mind_by_the_formula(image.double().numpy(), radius, dilation, share)
    assert np.allclose(mind_ssc(image, radius, dilation, share).numpy(), truth, atol=1e-4)


def test_where_the_image_is_flat_by_comparison_noise_makes_no_pattern():
    image = noise(16, 16, 16)
    image[:10] = 100 + 0.01 * (image[:10] - 100)
    spread = [float(mind_ssc(image, 1, 2, share)[:, :6].std()) for share in (0.0, 1.0)]
    assert spread[0] > 0.1 and spread[1] < 0.01


@pytest.mark.parametrize(("factor", "offset"), [(3.0, 0.0), (0.01, -5.0), (-1.0, 40.0)])
def test_a_linear_change_of_intensities_changes_nothing(factor, offset):
    image = noise(8, 9, 7)
    assert torch.allclose(mind_ssc(factor * image + offset), mind_ssc(image), atol=1e-3)


def test_mirroring_the_image_mirrors_the_features():
    image = noise(8, 9, 7)
    mirrored = [[((-a[0], *a[1:])), ((-b[0], *b[1:]))] for a, b in PAIRS]
    order = [next(k for k, pair in enumerate(PAIRS) if set(pair) == set(m)) for m in mirrored]
    assert torch.allclose(mind_ssc(image.flip(0)).flip(1), mind_ssc(image)[order], atol=1e-4)


def test_a_constant_region_gives_no_nan():
    image = noise(12, 12, 12)
    image[:8] = 5
    features = mind_ssc(image)
    assert torch.isfinite(features).all() and features.min() >= 0 and features.max() <= 1
    assert torch.isfinite(mind_ssc(torch.full((5, 5, 5), 7.0))).all()


def test_cells_hold_the_mean_of_their_voxels_at_their_place(turned_grid):
    grid, image = turned_grid((7, 9, 6), (1, 2, 3), (10, 20, 30)), noise(7, 9, 6)
    features = mind_features(image, grid, [(1, 2), (0, 1)], 0.5, (2, 3, 1))
    assert features.grid == grid.coarsened((2, 3, 1)) and features.values.shape == (24, 3, 3, 6)
    whole = torch.cat([mind_ssc(image, 1, 2, 0.5), mind_ssc(image, 0, 1, 0.5)])
    assert torch.allclose(features.values[:, 1, 2, 4], whole[:, 2:4, 6:9, 4].mean(dim=(1, 2)), atol=1e-5)


def test_an_image_thinner_than_a_cell_has_one_cell(turned_grid):
    features = mind_features(noise(3, 1, 8), turned_grid((3, 1, 8), 1.0), [(1, 2)], 0.0, (4, 2, 4))
    assert features.values.shape == (12, 1, 1, 2) and torch.isfinite(features.values).all()


@pytest.mark.parametrize("stride", [(1, 1, 1), (2, 2, 2), (1, 2, 3)])
@pytest.mark.parametrize("scale", [(1, 2), (0, 2), (2, 1)])
def test_cells_on_the_cpu_are_the_reference_averaged(scale, stride, turned_grid):
    image = noise(37, 12, 15)
    image[:9, :6] = 80.0  # flat: V is at its lower bound there
    truth = torch.nn.functional.avg_pool3d(mind_ssc(image, *scale, 0.1)[None], stride, stride=stride)[0]
    cells = mind_features(image, turned_grid((37, 12, 15), 1.0), [scale], 0.1, stride).values
    assert cells.shape == truth.shape and torch.allclose(cells, truth, atol=2e-4)


def test_features_of_a_turned_image_are_those_of_the_image_turned():
    affine = np.diag([2.0, 1.5, 2.5, 1.0])
    affine[:3, 3] = (5, -3, 7)
    grid = Grid((8, 10, 12), affine)
    features = mind_features(noise(*grid.shape), grid, ((1, 2),), 0.0, (2, 2, 2))
    for rotation in right_angled_rotations():
        turn = AffineTransform.about(rotation, (9.0, 1.0, -4.0))
        image = Image(noise(*grid.shape).numpy()[None], Grid(grid.shape, turn.matrix @ affine)).canonical()
        expected = mind_features(torch.from_numpy(image.array[0].copy()), image.grid, ((1, 2),), 0.0, (2, 2, 2))
        found = turned_mind(features, turn)
        assert found.grid.matches(expected.grid)
        assert torch.allclose(found.values, expected.values, atol=1e-5)
