"""What two images of different meaning say alike of matched places: canonical correlation analysis (Hotelling 1936)."""

import torch

from nnssl_reg.features.matched_cells import matched_cells
from nnssl_reg.features.pca import on_basis
from nnssl_reg.geometry.displacement import DisplacementField
from nnssl_reg.geometry.image import FeatureMap

RIDGE = 0.01  # of the mean variance, so that no direction passes for certain
CERTAIN = 0.999  # largest correlation that is believed


def joint_canonical(fixed: FeatureMap, moving: FeatureMap, matches: DisplacementField,
                    components: int) -> tuple[FeatureMap, FeatureMap]:  # fmt: skip
    """Project maps (F, ...), (G, ...) onto canonical variates, (components, ...) each, which correlate at matched places.

    matches: fixed points to moving points, RAS mm; roughly right is enough. Features may mean different things in both images:
    each has a basis of its own. A variate of correlation r, less what chance gives (Wherry 1931), has the variance r / (1 - r),
    its signal to noise, in matched cells: what does not correlate has no weight. Its sign is such that the largest weight of
    the fixed basis is positive. With no more matched cells than features all are 0.
    """
    pair = matched_cells(fixed, moving, matches)
    count = pair[0].shape[1]
    means = [cells.mean(1) if count else cells.new_zeros(len(cells)) for cells in pair]
    a, b = (cells - mean[:, None] for cells, mean in zip(pair, means))
    whiten = [_whitening(cells) for cells in (a, b)]
    left, correlation, right = torch.linalg.svd(whiten[0] @ (a @ b.T / max(1, count)) @ whiten[1])
    kept = min(components, len(correlation))
    correlation = _beyond_chance(correlation[:kept], count, len(a) + len(b))
    weight = (correlation / (1 - correlation)).sqrt()
    bases = [whiten[0] @ left[:, :kept] * weight, whiten[1] @ right.T[:, :kept] * weight]
    largest = bases[0].gather(0, bases[0].abs().argmax(0, keepdim=True))
    return tuple(on_basis(cells, mean, basis * largest.sign())
                 for cells, mean, basis in zip((fixed, moving), means, bases))  # fmt: skip


def _beyond_chance(correlation: torch.Tensor, count: int, features: int) -> torch.Tensor:
    """Correlations found in `count` samples with that many weights free, as new samples would have them: 0 to CERTAIN."""
    if count <= features + 1:
        return torch.zeros_like(correlation)
    squared = 1 - (1 - correlation.square()) * (count - 1) / (count - features - 1)
    return squared.clamp(min=0).sqrt().clamp(max=CERTAIN)


def _whitening(cells: torch.Tensor) -> torch.Tensor:
    """The inverse root of the covariance of centred cells (F, n), with a ridge; zeros where they do not vary."""
    features, count = cells.shape
    covariance = cells @ cells.T / max(1, count)
    variance = covariance.trace() / features
    if variance == 0:
        return torch.zeros_like(covariance)
    values, vectors = torch.linalg.eigh(covariance + RIDGE * variance * torch.eye(features, dtype=cells.dtype))
    return vectors * values.rsqrt() @ vectors.T
