"""Pairs with a known answer, made of single images: the image itself, deformed smoothly and with its intensities changed."""

from dataclasses import dataclass

import numpy as np
import torch

from nnssl_reg.evaluation.phantoms import KnownDeformation, random_deformation
from nnssl_reg.geometry.grid import Grid
from nnssl_reg.geometry.image import Image
from nnssl_reg.geometry.sampling import sample_points, slabs
from nnssl_reg.imageio.modality import guess_modality
from nnssl_reg.planning.foreground import foreground_mask

PHANTOM_DIAGONAL_MM = 585.0  # of the field of view that random_deformation was made for
POINTS = 5000
KNOTS = 7  # of the curve that changes intensities
DRIFT = 0.3  # of the intensities' logarithm over the image, at most
NOISE = 0.02  # of the range


@dataclass(frozen=True, eq=False)
class KnownPair:
    """The moving image that belongs to a fixed one; points in the fixed body and where they are in it, (N, 3) RAS mm."""

    moving: Image
    fixed_points_mm: np.ndarray
    moving_points_mm: np.ndarray


@dataclass(frozen=True, eq=False)
class PlacedDeformation:
    """A deformation made for a phantom, moved to the middle of a grid and scaled to its size."""

    known: KnownDeformation
    middle_mm: np.ndarray
    scale: float

    def apply(self, points_mm: np.ndarray) -> np.ndarray:
        return self.middle_mm + self.scale * self.known.apply((points_mm - self.middle_mm) / self.scale)

    def inverse(self, points_mm: np.ndarray) -> np.ndarray:
        return self.middle_mm + self.scale * self.known.inverse((points_mm - self.middle_mm) / self.scale)


def make_known_pair(fixed: Image, rng: np.random.Generator, strength: float = 1.0) -> KnownPair:
    """Deform an image on its own grid, in proportion to its size as much as two patients differ, times strength.

    Intensities go through a random curve that turns some contrasts around, as between modalities, and get drift and noise.
    """
    grid = fixed.grid
    scale = float(np.linalg.norm(grid.extent_mm)) / PHANTOM_DIAGONAL_MM
    placed = PlacedDeformation(random_deformation(rng, strength), grid.center_mm, scale)
    body = foreground_mask(fixed.array[0], guess_modality(fixed))
    source = torch.from_numpy(remapped(fixed.array, body[None], rng))
    direction = rng.standard_normal(3)
    values = np.empty(fixed.array.shape, np.float32)
    for start, stop in slabs(grid.shape, 2**19):
        points = np.moveaxis(grid.points_mm(start, stop).double().numpy(), 0, -1)
        led = torch.from_numpy(np.moveaxis(placed.apply(points), -1, 0).astype(np.float32))
        drift = np.exp(DRIFT * np.sin((points - placed.middle_mm) @ direction / (80 * scale)))
        values[:, start:stop] = sample_points(source, grid, led, fill=0.0).numpy() * drift
    values += NOISE * rng.standard_normal(values.shape, dtype=np.float32)
    return KnownPair(Image(1000 * values, grid), *known_points(body, grid, placed, rng))


def remapped(values: np.ndarray, body: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Intensities (C, X, Y, Z) through a random curve: 0.15 to 1, in any order, at equal steps over the body's; below it 0."""
    low, high = np.percentile(values[body][:: max(1, body.sum() // 200_000)] if body.any() else values, (2, 98))
    knots = np.linspace(low, max(high, low + 1e-3 * max(1.0, abs(low))), KNOTS)
    heights = rng.permutation(np.linspace(0.15, 1, KNOTS))
    below = min(float(values.min()), knots[0] - 1e-3 * max(1.0, abs(knots[0])))
    curve = np.interp(values, [below, *knots], [0.0, *heights])
    return np.where(body, curve, 0.15 * np.clip((values - below) / max(knots[0] - below, 1e-6), 0, 1)).astype(np.float32)


def known_points(
    body: np.ndarray, grid: Grid, placed: PlacedDeformation, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Random points of the body, and where the moving image has them, those that it shows."""
    index = np.argwhere(body if body.any() else np.ones_like(body))
    fixed = grid.index_to_world(index[rng.integers(0, len(index), POINTS)] + rng.uniform(-0.5, 0.5, (POINTS, 3)))
    moving = placed.inverse(fixed)
    at = grid.world_to_index(moving)
    shown = ((at >= 0) & (at <= np.array(grid.shape) - 1)).all(axis=1)
    return fixed[shown], moving[shown]
