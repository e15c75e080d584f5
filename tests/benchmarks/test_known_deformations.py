"""What the moving image shows at the places it is said to, the fixed image shows at its points."""

import runpy
from pathlib import Path

import numpy as np
import pytest
import torch

from nnssl_reg.geometry.grid import Grid
from nnssl_reg.geometry.image import Image
from nnssl_reg.geometry.sampling import sample_points

BENCHMARK = runpy.run_path(str(Path(__file__).with_name("known_deformations.py")))
AIR_HU, known, lungs = (BENCHMARK[name] for name in ("AIR_HU", "known", "lungs"))


@pytest.fixture(scope="module")
def chest() -> Image:
    """An elliptic trunk with two lungs, in each of which a few vessels."""
    shape, spacing = (80, 60, 70), 4.0
    x, y, z = np.meshgrid(*((np.arange(n) - n / 2) * spacing for n in shape), indexing="ij")
    hounsfield = np.where((x / 130) ** 2 + (y / 95) ** 2 < 1, 40.0, AIR_HU)
    for side in (-60, 60):
        hounsfield[((x - side) / 45) ** 2 + (y / 65) ** 2 + (z / 100) ** 2 < 1] = -850.0
        for j in (-24, 0, 24):
            hounsfield[(x - side - z / 8) ** 2 + (y - j + z / 6) ** 2 < 80] = 40.0
    affine = np.diag([spacing] * 3 + [1.0])
    return Image(hounsfield[None].astype(np.float32), Grid(shape, affine))


def at(image: Image, points: np.ndarray) -> np.ndarray:
    values = sample_points(
        torch.from_numpy(np.ascontiguousarray(image.array)),
        image.grid,
        torch.from_numpy(points.T.astype(np.float32)).reshape(3, -1, 1, 1),
        fill=0.0,
    )
    return values.numpy().ravel()


def test_lungs_are_both_with_their_vessels_and_nothing_beside_them(chest):
    mask, center = lungs(chest.array[0]), np.array(chest.grid.shape) // 2
    assert mask[center[0] + 15, center[1], center[2]] and mask[center[0] - 15, center[1], center[2]]  # a vessel in each
    assert not mask[center[0], center[1], center[2]] and not mask[0].any()
    assert 0.9 < mask.sum() * 64 / (2 * 4 / 3 * np.pi * 45 * 65 * 100) < 1.1  # the volume of two ellipsoids


@pytest.mark.parametrize("breathing_mm", [0.0, 25.0])
def test_the_moving_image_shows_at_each_place_what_the_fixed_one_does(chest, breathing_mm):
    moving, points, there = known(chest, 0.4, breathing_mm, seed=0)
    here, then = at(chest, points), at(moving, there)
    assert len(points) > 1000 and np.median(np.linalg.norm(points - there, axis=1)) > 3
    if breathing_mm:
        down = abs(np.median((there - points)[:, 2]))
        assert 0.4 * breathing_mm < down < 1.3 * breathing_mm  # vessels move with the diaphragm, less far from it
    agreement, beside = (np.corrcoef(here, values)[0, 1] for values in (then, at(moving, there + [12.0, 12.0, 0.0])))
    assert agreement > 0.8 and agreement > beside + 0.2, (agreement, beside)  # vessels are two voxels wide
