"""Local intensity: how bright a place is beside its surroundings, which MIND leaves out; for images of one contrast."""

import torch
import torch.nn.functional as F

from nnssl_reg.features.matched_cells import matched_cells
from nnssl_reg.features.mind import with_a_cell
from nnssl_reg.geometry.displacement import DisplacementField
from nnssl_reg.geometry.grid import Grid
from nnssl_reg.geometry.image import FeatureMap
from nnssl_reg.geometry.sampling import sample_grid

AGREES = 0.5  # patients of one contrast have more, those of different ones less
TELLS_MORE = 1.0  # than MIND: from here on it alone refines a field at every voxel
RADIUS = 8  # voxels of the surroundings to each side
WIDE = 24  # the same, for voxels of two patients' images: there larger shapes tell more, and where contrast agrees, they may
FLAT = 0.3  # of the mean variance of surroundings: flatter ones say little
SLAB = 64  # planes squared at a time


def local_intensity(image: torch.Tensor, grid: Grid, stride) -> FeatureMap:
    """(m - M) / sqrt(V + FLAT mean V) of each cell: m its mean, M and V mean and variance of the voxels around it.

    image (X, Y, Z) on grid, cells of `stride` voxels: one feature on grid.coarsened(stride), as of mind_features. Brightness,
    scale and slow changes of either, like those of a coil's field, drop out. Of a flat image it is 0.
    """
    mean, around, spread, cells = _surroundings(*with_a_cell(image, grid, stride), tuple(stride))
    return FeatureMap((mean - around).div_(spread), cells)


def voxel_intensity(image: torch.Tensor, grid: Grid, stride, radius: int = RADIUS) -> FeatureMap:
    """Local intensity of every voxel, one feature on grid; the surroundings (`radius` voxels to each side) are the cells',
    between them linear."""
    _, around, spread, cells = _surroundings(*with_a_cell(image, grid, stride), tuple(stride), radius)
    values = image[None].float() - image.float().mean()
    values -= sample_grid(around, cells, grid)
    return FeatureMap(values.div_(sample_grid(spread, cells, grid)), grid)


def _surroundings(image: torch.Tensor, grid: Grid, stride, voxels: int = RADIUS
                  ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, Grid]:  # fmt: skip
    """m, M, and sqrt(V + FLAT mean V), (1, X', Y', Z') each, and the grid of the cells."""
    image = image[None].float()
    image = image - image.mean()  # a large offset would cost digits
    mean = F.avg_pool3d(image, stride, stride)
    squares = [F.avg_pool3d(slab.square(), stride, stride) for slab in image.split(SLAB * stride[0], dim=1)]
    radius = [max(1, round(voxels / s)) for s in stride]
    around = _box_mean(mean, radius)
    variance = (_box_mean(torch.cat(squares, dim=1), radius) - around.square()).clamp_(min=0)
    spread = (variance + FLAT * variance.mean()).sqrt_().clamp_(min=torch.finfo(torch.float32).tiny)
    return mean, around, spread, grid.coarsened(stride)


def contrast_agreement(intensity: tuple[FeatureMap, FeatureMap], mind: tuple[FeatureMap, FeatureMap],
                       matches: DisplacementField) -> float:  # fmt: skip
    """How well local intensities agree at matched places, as a multiple of how well MIND does; 0: not, or opposite,
    or MIND itself found nothing that agrees.

    Of the correlation r of each, r / (1 - r), its signal to noise. MIND counts less its mean over the channels, which is alike
    wherever patches are flat. matches: fixed points to moving points, RAS mm, by MIND; roughly right is enough.
    """
    ours = _correlation(*matched_cells(*intensity, matches))
    theirs = _correlation(*(cells - cells.mean(0) for cells in matched_cells(*mind, matches)))
    return ours / (1 - ours) / (theirs / (1 - theirs)) if theirs > 0 else 0.0


def _correlation(a: torch.Tensor, b: torch.Tensor) -> float:
    """Of values about 0, kept from 0 (or below) to 0.999; 0 where there are none, or only zeros."""
    return min(0.999, max(0.0, float((a * b).sum() / (a.square().sum() * b.square().sum()).sqrt().clamp(min=1e-12))))


def _box_mean(values: torch.Tensor, radius) -> torch.Tensor:
    """Mean over boxes of 2 radius + 1 cells along each axis, edges replicated; (1, X, Y, Z)."""
    for axis, r in enumerate(radius):
        pad, size = [0] * 6, [1] * 3
        pad[4 - 2 * axis : 6 - 2 * axis], size[axis] = [r, r], 2 * r + 1
        values = F.avg_pool3d(F.pad(values[None], pad, mode="replicate")[0], size, stride=1)
    return values
