"""An image through the encoder: one forward pass, or overlapping windows, or passes at sub-token shifts for a finer grid."""

from itertools import product

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from nnssl_reg.geometry.grid import Grid
from nnssl_reg.geometry.image import FeatureMap, Image


@torch.inference_mode()
def encode(image: Image, encoder: nn.Module, *, window_size, window_overlap: float, token_shifts, device) -> FeatureMap:
    """Patch tokens of a preprocessed image (1, X, Y, Z) as a feature map (D, X', Y', Z').

    The image is padded with its minimum to whole tokens; where it is larger than window_size voxels, overlapping windows are
    encoded and blended. token_shifts (n per axis): n passes, each shifted by 1/n of a token, interleave to cells of patch / n.
    """
    device = torch.device(device)
    patch, values = encoder.patch_size, torch.from_numpy(np.array(image.array[0]))
    tokens = [-(-n // p) for n, p in zip(values.shape, patch)]
    shifts = [max(1, s) for s in token_shifts]
    out = None
    for shift in product(*(range(n) for n in shifts)):
        start = [round(s * p / n) for s, p, n in zip(shift, patch, shifts)]
        padded = _padded(values, start, [t * p for t, p in zip(tokens, patch)])
        encoded = _windows(padded, encoder, window_size, window_overlap, device)  # (D, *tokens)
        if out is None:
            out = torch.empty(encoded.shape[0], *(t * n for t, n in zip(tokens, shifts)), device=device)
        out[(slice(None), *(slice(s, None, n) for s, n in zip(shift, shifts)))] = encoded
    return FeatureMap(out.clone(), _token_grid(image.grid, tokens, patch, shifts))


def _padded(values: torch.Tensor, start, shape) -> torch.Tensor:
    """values[start:], padded at the end with the minimum to `shape`."""
    kept = values[tuple(slice(s, None) for s in start)]
    pad = [p for n, m in zip(kept.shape[::-1], shape[::-1]) for p in (0, m - n)]
    return F.pad(kept, pad, value=float(values.min()))


def _token_grid(grid: Grid, tokens, patch, shifts) -> Grid:
    """Centres of the interleaved tokens: the first token's centre, then steps of patch / shifts voxels."""
    step = np.diag([*(p / n for p, n in zip(patch, shifts)), 1.0])
    step[:3, 3] = (np.array(patch) - 1) / 2
    return Grid(tuple(t * n for t, n in zip(tokens, shifts)), grid.affine @ step)


def _windows(values: torch.Tensor, encoder: nn.Module, window_size, overlap: float, device: torch.device) -> torch.Tensor:
    """Tokens (D, X', Y', Z') of an image of whole tokens, blended over overlapping windows if it is larger than one."""
    patch = encoder.patch_size
    tokens = [n // p for n, p in zip(values.shape, patch)]
    window = [min(t, max(1, w // p)) for t, w, p in zip(tokens, window_size, patch)]
    if window == tokens:
        return _forward(values, encoder, device)
    taper = [1 - (torch.arange(w, device=device) - (w - 1) / 2).abs() / (w / 2 + 0.5) for w in window]
    weight = taper[0].view(-1, 1, 1) * taper[1].view(-1, 1) * taper[2]
    total, norm = None, torch.zeros(tokens, device=device)
    for corner in product(*(window_starts(t, w, overlap) for t, w in zip(tokens, window))):
        voxels = tuple(slice(c * p, (c + w) * p) for c, w, p in zip(corner, window, patch))
        encoded = _forward(values[voxels], encoder, device)
        if total is None:
            total = torch.zeros(encoded.shape[0], *tokens, device=device)
        cells = tuple(slice(c, c + w) for c, w in zip(corner, window))
        total[(slice(None), *cells)] += encoded * weight
        norm[cells] += weight
    return total / norm


def window_starts(length: int, window: int, overlap: float) -> list[int]:
    """First tokens of the fewest windows that cover `length` tokens and overlap by at least that share, evenly spread."""
    if length <= window:
        return [0]
    count = -(-(length - window) // max(1, int(window * (1 - overlap)))) + 1
    return sorted({round(i * (length - window) / (count - 1)) for i in range(count)})


def _forward(values: torch.Tensor, encoder: nn.Module, device: torch.device) -> torch.Tensor:
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda"):
        return encoder(values[None, None].to(device)).patch_grid()[0].float()
