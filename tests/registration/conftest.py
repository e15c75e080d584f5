"""What the tests of registration share: feature maps made of several smooth textures of the world."""

import pytest
import torch

from nnssl_reg.geometry.grid import Grid
from nnssl_reg.geometry.image import FeatureMap


@pytest.fixture
def textured_features(texture):
    """textured_features(grid, moved, shortest_mm): six textures of the world, seen at moved(points)."""

    def make(grid: Grid, moved=None, shortest_mm: float = 12.0) -> FeatureMap:
        points = grid.points_mm().double()
        points = points if moved is None else moved(points)
        return FeatureMap(torch.stack([texture(points, shortest_mm, seed) for seed in range(6)]), grid)

    return make


@pytest.fixture
def settings() -> dict:
    """Arguments of convex_adam for cells of some 2 mm, all but the initial transform."""
    return {"coarse_spacing_mm": 6.0, "search_radius_mm": 12.0, "rounds": 2, "iterations": 60, "learning_rate": 1.0,
            "smoothness": 0.3, "smoothing_passes": 3}  # fmt: skip
