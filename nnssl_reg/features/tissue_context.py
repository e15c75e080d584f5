"""Tissue context: which intensities lie around a place, near and far, whatever their meaning in that image."""

import torch
import torch.nn.functional as F

from nnssl_reg.features.mind import with_a_cell
from nnssl_reg.geometry.grid import Grid
from nnssl_reg.geometry.image import FeatureMap
from nnssl_reg.geometry.sampling import smooth_gaussian
from nnssl_reg.planning.foreground import foreground_mask

HOUNSFIELD_EDGES = (-130.0, -30.0, 60.0, 130.0, 200.0)  # air, fat, water and muscle, organs, what takes up contrast agent, bone
QUANTILES = (0.02, 1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6)  # of the body's intensities where they have no unit
WIDTHS = (1.25, 2.5, 5.0)  # standard deviations of the surroundings, in the longest edge of a cell
MOST_SAMPLES = 100_000  # of the body, for its quantiles


def tissue_context(image: torch.Tensor, grid: Grid, stride, ct: bool) -> FeatureMap:
    """Local histograms: the shares of a few ranges of intensity in Gaussian surroundings of each cell, of several widths.

    image (X, Y, Z) on grid, cells of `stride` voxels: len(WIDTHS) * ranges features on grid.coarsened(stride), as of
    mind_features. The ranges: tissues of CT by their Hounsfield units, else between quantiles of the body's intensities. What a
    range means differs between modalities, and is for joint_canonical to find out.
    """
    (image, grid), stride = with_a_cell(image, grid, stride), tuple(stride)
    edges = [float("-inf"), *(HOUNSFIELD_EDGES if ct else _body_quantiles(image)), float("inf")]
    cells = grid.coarsened(stride)
    shares = torch.cat(
        [F.avg_pool3d(((image >= low) & (image < high))[None].float(), stride) for low, high in zip(edges, edges[1:])]
    )
    out, done = [], 0.0
    for width in WIDTHS:  # one after the other: the variances of Gaussians add up
        mm = (width**2 - done**2) ** 0.5 * max(cells.spacing_mm)
        shares, done = smooth_gaussian(shares, [mm / s for s in cells.spacing_mm]), width
        out.append(shares)
    return FeatureMap(torch.cat(out), cells)


def _body_quantiles(image: torch.Tensor) -> list[float]:
    body = torch.from_numpy(foreground_mask(image.cpu().numpy(), "")).to(image.device)
    values = image[body] if body.any() else image.flatten()
    values = values[:: max(1, len(values) // MOST_SAMPLES)].float()
    return torch.quantile(values, torch.tensor(QUANTILES, device=values.device)).tolist()
