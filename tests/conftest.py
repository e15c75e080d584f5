"""What tests of several rooms share: grids turned any way, and a world full of texture to see on them."""

import numpy as np
import pytest
import torch

from nnssl_reg.evaluation.phantoms import rotation
from nnssl_reg.geometry.grid import Grid
from nnssl_reg.geometry.image import Image


def _turned_grid(shape, spacing_mm, degrees=(0.0, 0.0, 0.0), center_mm=(0.0, 0.0, 0.0)) -> Grid:
    affine = np.eye(4)
    affine[:3, :3] = rotation(np.radians(degrees)) @ np.diag(np.broadcast_to(spacing_mm, 3))
    affine[:3, 3] = np.asarray(center_mm) - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return Grid(tuple(shape), affine)


def _texture(points_mm: torch.Tensor, shortest_mm: float = 12.0, seed: int = 0) -> torch.Tensor:
    """A smooth random function of world points (3, ...): 30 waves of all directions, of shortest_mm to 4 times as long."""
    rng = np.random.default_rng(seed)
    directions = rng.standard_normal((30, 3))
    waves = directions / np.linalg.norm(directions, axis=1, keepdims=True) / rng.uniform(shortest_mm, 4 * shortest_mm, (30, 1))
    points = points_mm.double()
    total = torch.zeros(points.shape[1:], dtype=torch.float64)
    for wave, phase in zip(waves, rng.uniform(0, 2 * np.pi, 30)):
        total += torch.cos(2 * np.pi * torch.einsum("i,i...->...", torch.as_tensor(wave), points) + phase)
    return (100 + 30 * total).float()


def _textured_image(grid: Grid, moved=None, **settings) -> Image:
    points = grid.points_mm().double()
    return Image(_texture(points if moved is None else moved(points), **settings).numpy()[None], grid)


def _body_image(grid: Grid, moved=None, center_mm=(0.0, 0.0, 0.0), radii_mm=(42.0, 36.0, 40.0), shortest_mm=12.0) -> Image:
    points = grid.points_mm().double()
    points = (points if moved is None else moved(points)) - torch.tensor(center_mm, dtype=torch.float64).view(3, 1, 1, 1)
    depth = 1 - (points / torch.tensor(radii_mm, dtype=torch.float64).view(3, 1, 1, 1)).norm(dim=0)
    values = torch.sigmoid(12 * depth) * (200 + _texture(points, shortest_mm))
    noise = np.random.default_rng(0).standard_normal(grid.shape)
    return Image((values.numpy() + noise).astype(np.float32)[None], grid)


@pytest.fixture(scope="session")
def turned_grid():
    """turned_grid(shape, spacing_mm, degrees, center_mm) -> Grid turned about x, then y, then z around its centre."""
    return _turned_grid


@pytest.fixture(scope="session")
def texture():
    """texture(points_mm (3, ...), shortest_mm, seed) -> values of a smooth random function of the world."""
    return _texture


@pytest.fixture(scope="session")
def textured_image():
    """textured_image(grid, moved) -> Image of the texture at moved(points), so at the points themselves without `moved`."""
    return _textured_image


@pytest.fixture(scope="session")
def body_image():
    """body_image(grid, moved, center_mm, radii_mm): a textured ellipsoid in air with a little noise, at moved(points)."""
    return _body_image
