"""What tells the places of two images apart, of all that their tokens say: a linear discriminant analysis of matched places."""

import torch

from nnssl_reg.features.matched_cells import matched_cells
from nnssl_reg.features.pca import joint_pca, projected
from nnssl_reg.geometry.displacement import DisplacementField
from nnssl_reg.geometry.image import FeatureMap

RIDGE = 0.01  # of the mean variance of matched cells, so that no direction passes for certain
RIDGE_FEW = 0.1  # the same, times features per matched cell


def joint_discriminant(fixed: FeatureMap, moving: FeatureMap, matches: DisplacementField,
                       components: int) -> tuple[FeatureMap, FeatureMap]:  # fmt: skip
    """Project both maps (F, ...) onto what differs between places and agrees between patients, (components, ...).

    matches: fixed points to moving points, RAS mm; roughly right is enough. Fisher's linear discriminant, whose classes are the
    places, of which each image shows one sample: with W the covariance within places, T that of all cells, the eigenvectors of
    T w = λ W w with the largest λ, scaled so that matched cells have a variance of at most 1 along each. A component's sign is
    such that its largest weight is positive. Where fewer cells are matched than there are features, joint_pca.
    """
    a, b = matched_cells(fixed, moving, matches)
    features, count = a.shape
    if count < features:
        return joint_pca(fixed, moving, components)
    middle, apart = (a + b) / 2, a - b
    mean = middle.mean(1)
    middle -= mean[:, None]
    within = apart @ apart.T / (2 * count)
    total = middle @ middle.T / count + within / 2
    ridge = (RIDGE + RIDGE_FEW * features / count) * within.trace() + 1e-6 * total.trace()
    if ridge == 0:  # both images are flat
        return joint_pca(fixed, moving, components)
    within += ridge / features * torch.eye(features, dtype=within.dtype)
    whiten = torch.linalg.inv(torch.linalg.cholesky(within))
    _, vectors = torch.linalg.eigh(whiten @ total @ whiten.T)  # ascending
    basis = whiten.T @ vectors[:, -min(components, features) :].flip(1)  # (F, components)
    return projected(fixed, moving, mean.float(), basis)
