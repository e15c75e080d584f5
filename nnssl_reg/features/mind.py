"""MIND-SSC: hand-made features that look alike in every modality (Heinrich et al., MICCAI 2013)."""

import numpy as np
import torch
import torch.nn.functional as F

from nnssl_reg.features.mind_cpu import mind_cells
from nnssl_reg.geometry.affine import AffineTransform
from nnssl_reg.geometry.grid import Grid
from nnssl_reg.geometry.image import FeatureMap
from nnssl_reg.geometry.triton_devices import runs_triton

_NEIGHBOURS = [(-1, 0, 0), (1, 0, 0), (0, -1, 0), (0, 1, 0), (0, 0, -1), (0, 0, 1)]
# the twelve pairs of neighbours that are not opposite each other
PAIRS = [(a, b) for i, a in enumerate(_NEIGHBOURS) for b in _NEIGHBOURS[i + 1 :] if any(p + q for p, q in zip(a, b))]


def mind_ssc(image: torch.Tensor, radius: int = 1, dilation: int = 2, noise: float = 0.0) -> torch.Tensor:
    """Self-similarity context of an image (X, Y, Z) -> (12, X, Y, Z) in 0..1, edges replicated.

    Channel k is exp(-(D_k - min D) / V): D_k the mean squared difference, over a box of 2 radius + 1 voxels, of the two
    neighbours of pair k at distance `dilation`; V the mean of D - min D over pairs, kept within 0.001..1000 of its mean, plus
    `noise` times that mean: where the image is flat by comparison, all channels then tend to 1 instead of to random patterns.
    """
    distances = _pair_distances(image, radius, dilation)
    distances -= distances.min(dim=0).values
    variance = distances.mean(dim=0)
    mean = float(variance.mean())
    variance.clamp_(min=max(mean * 1e-3, torch.finfo(image.dtype).tiny), max=max(mean * 1e3, 1e-30))
    return distances.div_(variance.add_(noise * mean)).neg_().exp_()


def with_a_cell(image: torch.Tensor, grid: Grid, stride) -> tuple[torch.Tensor, Grid]:
    """An image (X, Y, Z) and its grid; axes shorter than their stride are padded by edge values to one cell."""
    pad = [max(0, s - n) for s, n in zip(stride, image.shape)]
    if any(pad):
        image = F.pad(image[None, None], (0, pad[2], 0, pad[1], 0, pad[0]), mode="replicate")[0, 0]
        grid = grid.cropped([[0, n] for n in image.shape])
    return image, grid


def mind_features(image: torch.Tensor, grid: Grid, scales, noise: float, stride) -> FeatureMap:
    """MIND-SSC of an image (X, Y, Z) on grid, averaged over cells of `stride` voxels: features on grid.coarsened(stride).

    scales: (radius, dilation) of each 12 channels. Every image has at least one cell, see with_a_cell.
    """
    (image, grid), stride = with_a_cell(image, grid, stride), tuple(stride)
    if image.device.type == "cpu":
        values = image.float().contiguous().numpy()
        pooled = [torch.from_numpy(mind_cells(values, PAIRS, *scale, noise, stride)) for scale in scales]
    elif runs_triton(image.device):
        from nnssl_reg.features import mind_triton

        pooled = [mind_triton.mind_cells(image.float(), *scale, noise, stride) for scale in scales]
    else:
        pooled = [F.avg_pool3d(mind_ssc(image, *scale, noise)[None], stride, stride=stride)[0] for scale in scales]
    return FeatureMap(torch.cat(pooled), grid.coarsened(stride))


def turned_mind(features: FeatureMap, rotation: AffineTransform) -> FeatureMap:
    """MIND of one scale (12, X, Y, Z) as that of its image moved by a right-angled rotation of the world.

    The grid's axes lie along the world's, nearly; those of the result do, too. Nothing is computed again: cells change places,
    and channels change with the directions that they compare.
    """
    linear = np.rint(rotation.matrix[:3, :3]).astype(int)
    axes, signs = np.abs(linear).argmax(axis=1), linear.sum(axis=1)  # of each new axis: the old one, and whether it is reversed
    before = [frozenset(tuple(int(v) for v in linear.T @ offset) for offset in pair) for pair in PAIRS]
    channels = [list(map(frozenset, PAIRS)).index(pair) for pair in before]
    values = features.values[channels].permute(0, *(int(a) + 1 for a in axes))
    values = values.flip([i + 1 for i in range(3) if signs[i] < 0])
    to_old = np.eye(4)
    to_old[:3, :3] = linear.T
    to_old[:3, 3] = [n - 1 if signs[list(axes).index(a)] < 0 else 0 for a, n in enumerate(features.grid.shape)]
    return FeatureMap(values.contiguous(), Grid(tuple(values.shape[1:]), rotation.matrix @ features.grid.affine @ to_old))


def _pair_distances(image: torch.Tensor, radius: int, dilation: int) -> torch.Tensor:
    """Mean squared difference of each neighbour pair over a box around each voxel, (12, X, Y, Z)."""
    margin = radius + dilation
    padded = F.pad(image[None, None], [margin] * 6, mode="replicate")[0, 0]
    shape = [n + 2 * radius for n in image.shape]
    distances = torch.empty(len(PAIRS), *image.shape, dtype=image.dtype, device=image.device)
    for k, pair in enumerate(PAIRS):
        shifted = []
        for offset in pair:
            starts = [dilation * (1 + step) for step in offset]
            shifted.append(padded[tuple(slice(s, s + n) for s, n in zip(starts, shape))])
        distances[k] = _box_mean((shifted[0] - shifted[1]).square_(), radius)
    return distances


def _box_mean(values: torch.Tensor, radius: int) -> torch.Tensor:
    """Mean over boxes of 2 radius + 1 voxels, (X, Y, Z) -> smaller by 2 radius per axis."""
    width = 2 * radius + 1
    for axis in range(3):
        n = values.shape[axis] - 2 * radius
        total = values.narrow(axis, 0, n).clone()
        for start in range(1, width):
            total += values.narrow(axis, start, n)
        values = total
    return values / width**3
