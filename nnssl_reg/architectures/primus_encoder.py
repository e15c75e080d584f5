"""PRIMUS as an encoder: class and register tokens, masking, rotary positions for any token grid."""

from dataclasses import dataclass

import torch
from einops import rearrange
from torch import nn

GRIDS_REMEMBERED = 16  # rotary embeddings kept: a few crop and window sizes, not every image's


@dataclass(frozen=True)
class Tokens:
    """What the encoder says of a batch.

    class_token: (B, D); patch_tokens: (B, N, D), the grid's last axis running fastest; grid_shape: tokens per axis.
    """

    class_token: torch.Tensor
    patch_tokens: torch.Tensor
    grid_shape: tuple[int, int, int]

    def patch_grid(self) -> torch.Tensor:
        """The patch tokens as a map, (B, D, X', Y', Z')."""
        x, y, z = self.grid_shape
        return rearrange(self.patch_tokens, "b (x y z) d -> b d x y z", x=x, y=y, z=z)


class PrimusEncoder(nn.Module):
    """Primus (arXiv 2503.01835) without its decoder and without absolute positions.

    Parameters carry Primus' names: down_projection, eva, register_tokens (the first is the class token), mask_token.
    Rotary angles count tokens, so a distance in tokens means the same rotation whatever the size of the input.
    Raises ValueError where width, heads and patch do not fit each other.
    """

    def __init__(self, embed_dim: int, depth: int, num_heads: int, patch_size: tuple[int, int, int],
                 register_tokens: int = 4, drop_path_rate: float = 0.0):  # fmt: skip
        # here, because these libraries take seconds to load, and registration with MIND needs none of them
        from dynamic_network_architectures.building_blocks.eva import Eva
        from dynamic_network_architectures.building_blocks.patch_encode_decode import PatchEmbed
        from dynamic_network_architectures.initialization.weight_init import InitWeights_He
        from timm.layers import RotaryEmbeddingCat

        super().__init__()
        head_dim = embed_dim // num_heads
        if embed_dim % num_heads or head_dim % 6:
            raise ValueError(f"Rotary positions along three axes need a width per head divisible by 6, got embed_dim "
                             f"{embed_dim} over {num_heads} heads; 24, 48 or 72 per head suit GPUs as well.")  # fmt: skip
        self.embed_dim = embed_dim
        self.patch_size = tuple(int(p) for p in patch_size)
        self.num_prefix_tokens = 1 + register_tokens
        self.down_projection = PatchEmbed(self.patch_size, 1, embed_dim)
        self.down_projection.apply(InitWeights_He(1e-2))
        self.eva = Eva(embed_dim=embed_dim, depth=depth, num_heads=num_heads, num_reg_tokens=self.num_prefix_tokens,
                       use_abs_pos_emb=False, use_rot_pos_emb=False, ref_feat_shape=(1, 1, 1), drop_path_rate=drop_path_rate,
                       init_values=0.1, scale_attn_inner=True)  # fmt: skip
        # Eva's own rotary embedding serves one grid only and is stretched to it: this one is asked with each grid's shape
        self.rotary = RotaryEmbeddingCat(2 * head_dim // 3, in_pixels=False, feat_shape=None, ref_feat_shape=None)
        self.register_tokens = nn.Parameter(torch.zeros(1, self.num_prefix_tokens, embed_dim))
        self.mask_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        nn.init.normal_(self.register_tokens, std=0.02)
        nn.init.normal_(self.mask_token, std=0.02)
        self._rotary_of_grid: dict[tuple, torch.Tensor] = {}

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None, rotary: torch.Tensor | None = None) -> Tokens:
        """x: (B, 1, X, Y, Z), axes multiples of the patch; mask: (B, X', Y', Z') bool, true where the mask token stands in.

        rotary: the token grid's rotary embedding, where the caller has it.
        """
        if x.ndim != 5 or any(n % p for n, p in zip(x.shape[2:], self.patch_size)):
            raise ValueError(f"The encoder needs (B, 1, X, Y, Z) with axes divisible by the patch {self.patch_size}, "
                             f"got {tuple(x.shape)}; pad the image.")  # fmt: skip
        embedded = self.down_projection(x)  # (B, D, X', Y', Z')
        grid_shape = tuple(embedded.shape[2:])
        tokens = rearrange(embedded, "b d x y z -> b (x y z) d")
        if mask is not None:
            tokens = torch.where(mask.flatten(1)[:, :, None], self.mask_token.to(tokens.dtype), tokens)
        prefix = self.register_tokens.to(tokens.dtype).expand(x.shape[0], -1, -1)
        tokens = torch.cat((prefix, tokens), dim=1)  # (B, 1 + R + N, D)
        rotary = self.rotary_embedding(grid_shape) if rotary is None else rotary
        for block in self.eva.blocks:
            tokens = block(tokens, rope=rotary)
        tokens = self.eva.norm(tokens)
        return Tokens(tokens[:, 0], tokens[:, self.num_prefix_tokens :], grid_shape)

    def rotary_embedding(self, grid_shape: tuple[int, int, int]) -> torch.Tensor:
        """Sines and cosines of a token grid, (N, 2 * width per head); kept for the next input of that shape."""
        key = (grid_shape, self.rotary.bands.device, self.rotary.bands.dtype)
        if key not in self._rotary_of_grid:
            if len(self._rotary_of_grid) >= GRIDS_REMEMBERED:
                self._rotary_of_grid.clear()
            with torch.inference_mode(False):  # an inference tensor remembered here would break a later training step
                self._rotary_of_grid[key] = self.rotary.get_embed(list(grid_shape))
        return self._rotary_of_grid[key]


def build_encoder(embed_dim: int, depth: int, num_heads: int, patch_size: tuple[int, int, int], register_tokens: int = 4,
                  drop_path_rate: float = 0.0, generator: torch.Generator | None = None) -> PrimusEncoder:  # fmt: skip
    """A new encoder with random weights. generator: a CPU generator, so that the same seed gives the same weights."""
    seed = torch.initial_seed() if generator is None else int(torch.randint(2**62, (1,), generator=generator))
    with torch.random.fork_rng(devices=[]):  # the parts initialise themselves from the global state: lend them one
        torch.manual_seed(seed)
        return PrimusEncoder(embed_dim, depth, num_heads, patch_size, register_tokens, drop_path_rate)
