"""Encoding: tokens lie where their grid says, whatever the padding, the shifts, the windows, and the image's size."""

import numpy as np
import pytest
import torch
from torch import nn

from nnssl_reg.architectures.primus_encoder import Tokens, build_encoder
from nnssl_reg.features.encode import encode, window_starts
from nnssl_reg.geometry.image import Image


class TokenStatistics(nn.Module):
    """An encoder that sees one token at a time: mean and standard deviation of its voxels."""

    def __init__(self, patch_size):
        super().__init__()
        self.patch_size = patch_size

    def forward(self, x):
        a, b, c = self.patch_size
        blocks = x.unfold(2, a, a).unfold(3, b, b).unfold(4, c, c).flatten(5)  # (B, 1, X', Y', Z', voxels)
        tokens = torch.cat([blocks.mean(-1), blocks.std(-1)], dim=1)
        return Tokens(torch.zeros(len(x), 2), tokens.flatten(2).transpose(1, 2), tuple(tokens.shape[2:]))


def run(image, encoder, window_size=(64, 64, 64), overlap=0.25, shifts=(1, 1, 1)):
    return encode(image, encoder, window_size=window_size, window_overlap=overlap, token_shifts=shifts, device="cpu")


def noise_image(grid) -> Image:
    return Image(np.random.default_rng(0).standard_normal((1, *grid.shape)).astype(np.float32), grid)


@pytest.mark.parametrize("patch", [(4, 4, 4), (4, 4, 2), (2, 4, 1)])
@pytest.mark.parametrize("shifts", [(1, 1, 1), (2, 2, 1), (2, 4, 1)])
def test_the_tokens_of_a_ramp_are_the_ramp_at_the_grid_of_the_feature_map(turned_grid, patch, shifts):
    grid = turned_grid((21, 18, 16), (1.0, 1.2, 2.0), (5, -8, 20), (30, 400, -60))
    x, y, z = grid.points_mm()
    features = run(Image((2 * x - y + 3 * z).numpy()[None], grid), TokenStatistics(patch), shifts=shifts)
    x, y, z = features.grid.points_mm()
    index = grid.world_to_index(np.moveaxis(features.grid.points_mm().numpy(), 0, -1))
    whole = ((index + np.array(patch) / 2) < np.array(grid.shape) + 1e-3).all(axis=-1)  # tokens without padding
    assert whole.mean() > 0.5
    assert np.allclose(features.values[0].numpy()[whole], (2 * x - y + 3 * z).numpy()[whole], atol=2e-3)


@pytest.mark.parametrize("shifts", [(1, 1, 1), (2, 2, 2)])
@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5])
def test_windows_give_what_one_pass_gives_where_tokens_see_only_themselves(turned_grid, shifts, overlap):
    image, encoder = noise_image(turned_grid((30, 17, 22), 1.0)), TokenStatistics((4, 4, 2))
    whole = run(image, encoder, shifts=shifts)
    windows = run(image, encoder, window_size=(12, 8, 10), overlap=overlap, shifts=shifts)
    assert windows.grid == whole.grid and torch.allclose(windows.values, whole.values, atol=1e-5)


@pytest.mark.parametrize("length", [5, 16, 17, 40])
@pytest.mark.parametrize("window", [4, 7, 16])
@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5])
def test_windows_cover_every_token_and_overlap_enough(length, window, overlap):
    starts = window_starts(length, window, overlap)
    window = min(window, length)
    assert starts[0] == 0 and starts[-1] == length - window
    steps = np.diff(starts)
    assert len(steps) == 0 or steps.max() <= max(1, int(window * (1 - overlap)))


@pytest.mark.parametrize("shape", [(3, 3, 3), (2, 9, 3), (2, 2, 2)])
@pytest.mark.parametrize("shifts", [(1, 1, 1), (2, 2, 2)])
def test_an_image_smaller_than_a_token_has_one(turned_grid, shape, shifts):
    features = run(noise_image(turned_grid(shape, 1.0)), TokenStatistics((4, 4, 4)), shifts=shifts)
    assert features.grid.shape == tuple(-(-n // 4) * s for n, s in zip(shape, shifts))
    assert torch.isfinite(features.values[0]).all()


def test_a_real_encoder_sees_the_same_tokens_in_one_pass_as_alone(turned_grid):
    torch.manual_seed(0)
    encoder = build_encoder(embed_dim=24, depth=1, num_heads=2, patch_size=(4, 4, 4), register_tokens=1, drop_path_rate=0.0)
    image = noise_image(turned_grid((12, 8, 16), 1.0))
    features = run(image, encoder.eval())
    with torch.inference_mode():
        truth = encoder(torch.from_numpy(image.array)[None]).patch_grid()[0]
    assert features.values.shape == (24, 3, 2, 4) and torch.allclose(features.values, truth, atol=1e-5)
    assert not features.values.requires_grad
