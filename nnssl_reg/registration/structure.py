"""What the initial alignment compares: the structure in feature cells, and how well that of two images agrees."""

import math

import numpy as np
import torch

from nnssl_reg.geometry.affine import AffineTransform
from nnssl_reg.geometry.image import FeatureMap
from nnssl_reg.registration.feature_cost import warped_features

MINIMUM_OVERLAP = 0.15  # share of one image's structure that a transform must bring to overlap to be considered
NO_OVERLAP_COST = 2.0  # as if every structure were met by its opposite


def structure(features: FeatureMap) -> FeatureMap:
    """Features less their mean over the channels of each cell.

    MIND says by its mean how flat a place is, and by the differences between its channels what is there: these vanish in air
    and, averaged over cells, in noise, so that backgrounds that overlap do not pass for patients that do.
    """
    values = features.values.float()
    return FeatureMap(values - values.mean(dim=0, keepdim=True), features.grid)


def in_cells(features: FeatureMap, cell_mm: float) -> FeatureMap:
    """Features averaged over the fewest cells along each axis that make cells of cell_mm (to 5 %)."""
    factor = [min(max(1, math.ceil(0.95 * cell_mm / s)), n) for n, s in zip(features.grid.shape, features.grid.spacing_mm)]
    if max(factor) == 1:
        return features
    values = torch.nn.functional.avg_pool3d(features.values[None], factor, stride=factor)[0]
    return FeatureMap(values, features.grid.coarsened(factor))


def alignment_cost(fixed: FeatureMap, moving: FeatureMap, transform: AffineTransform) -> float:
    """1 - r √o: 0 for equal structures, about 1 for unrelated ones, up to 2 for opposite ones.

    r: correlation of the structures where the images overlap; o: the share of the structure that lies there, of the image of
    which more does (so that a part of a patient finds its place in the whole). The root is what the uncertainty of r asks for.
    NO_OVERLAP_COST where o is below MINIMUM_OVERLAP.
    """
    warped, valid = warped_features(fixed, moving, transform)
    there, here = warped.values[:, valid], fixed.values[:, valid]
    size = abs(np.linalg.det(transform.matrix[:3, :3])) * float(
        np.prod(fixed.grid.spacing_mm) / np.prod(moving.grid.spacing_mm)
    )
    energies = [float(v.square().sum()) for v in (here, there)]
    totals = [float(f.values.square().sum()) for f in (fixed, moving)]  # of fixed cells, of moving cells
    if min(*energies, *totals) <= 0:
        return NO_OVERLAP_COST
    overlap = min(1.0, max(energies[0] / totals[0], energies[1] * size / totals[1]))
    if overlap < MINIMUM_OVERLAP:
        return NO_OVERLAP_COST
    correlation = float((here * there).sum()) / (energies[0] * energies[1]) ** 0.5
    return float(1 - correlation * overlap**0.5)
