"""Principal components of two images' tokens together, and joining feature maps of one image."""

import torch

from nnssl_reg.geometry.image import FeatureMap
from nnssl_reg.geometry.sampling import sample_points


def joint_pca(fixed: FeatureMap, moving: FeatureMap, components: int) -> tuple[FeatureMap, FeatureMap]:
    """Project both maps (F, ...) onto the first principal components of their cells together, (components, ...).

    Both images count equally whatever their size. A component's sign is such that its largest weight is positive.
    """
    tokens = [f.values.float().flatten(1) for f in (fixed, moving)]
    mean = (tokens[0].mean(1) + tokens[1].mean(1)) / 2
    centred = [t - mean[:, None] for t in tokens]
    covariance = sum(c.double() @ c.double().T / (2 * c.shape[1]) for c in centred)
    _, vectors = torch.linalg.eigh(covariance.cpu())  # ascending
    return projected(fixed, moving, mean, vectors[:, -min(components, vectors.shape[0]) :].flip(1))


def projected(fixed: FeatureMap, moving: FeatureMap, mean: torch.Tensor, basis: torch.Tensor) -> tuple[FeatureMap, FeatureMap]:
    """Both maps (F, ...) less a mean (F,) on the columns of a basis (F, n), turned so that their largest weight is positive."""
    largest = basis.gather(0, basis.abs().argmax(0, keepdim=True))
    return on_basis(fixed, mean, basis * largest.sign()), on_basis(moving, mean, basis * largest.sign())


def on_basis(cells: FeatureMap, mean: torch.Tensor, basis: torch.Tensor) -> FeatureMap:
    """A map (F, ...) less a mean (F,) on the columns of a basis (F, n), as (n, ...) on its device."""
    basis, mean = (values.float().to(cells.values.device) for values in (basis, mean))
    values = basis.T @ (cells.values.float().flatten(1) - mean[:, None])
    return FeatureMap(values.reshape(-1, *cells.grid.shape), cells.grid)


def joined(first: tuple[FeatureMap, FeatureMap], second: tuple[FeatureMap, FeatureMap], scales, share: float):
    """(fixed, moving) with the channels of both pairs of maps, on the grids of the second.

    scales: root mean squared distance of unrelated cells in each pair; share: of the first in the joined squared distance.
    """
    weights = (share**0.5 / scales[0], (1 - share) ** 0.5 / scales[1])
    out = []
    for a, b in zip(first, second):
        on_grid = a.values if a.grid == b.grid else sample_points(a.values, a.grid, b.grid.points_mm(device=b.values.device))
        out.append(FeatureMap(torch.cat([on_grid * weights[0], b.values * weights[1]]), b.grid))
    return tuple(out)
