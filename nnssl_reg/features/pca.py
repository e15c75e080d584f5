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
    basis = vectors[:, -min(components, vectors.shape[0]) :].flip(1)  # (F, components)
    largest = basis.gather(0, basis.abs().argmax(0, keepdim=True))
    basis = (basis * largest.sign()).float().to(mean.device)
    projected = [(basis.T @ c).reshape(-1, *f.grid.shape) for c, f in zip(centred, (fixed, moving))]
    return FeatureMap(projected[0], fixed.grid), FeatureMap(projected[1], moving.grid)


def joined(first: tuple[FeatureMap, FeatureMap], second: tuple[FeatureMap, FeatureMap], scales, share: float):
    """(fixed, moving) with the channels of both pairs of maps, on the grids of the second.

    scales: root mean squared distance of unrelated cells in each pair; share: of the first in the joined squared distance.
    """
    weights = (share**0.5 / scales[0], (1 - share) ** 0.5 / scales[1])
    out = []
    for a, b in zip(first, second):
        on_grid = sample_points(a.values, a.grid, b.grid.points_mm(device=b.values.device))
        out.append(FeatureMap(torch.cat([on_grid * weights[0], b.values * weights[1]]), b.grid))
    return tuple(out)
