"""The head of DINO and iBOT: tokens to similarities with prototypes."""

import torch
import torch.nn.functional as F
from torch import nn


class ProjectionHead(nn.Module):
    """Three linear layers with GELU, L2 normalisation, then cosines with K prototypes (Caron et al. 2021)."""

    def __init__(self, input_dim: int, hidden_dim: int, bottleneck_dim: int, prototypes: int,
                 generator: torch.Generator | None = None):  # fmt: skip
        super().__init__()
        widths = (input_dim, hidden_dim, hidden_dim, bottleneck_dim)
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip(widths, widths[1:]))
        self.prototypes = nn.Parameter(torch.empty(prototypes, bottleneck_dim))
        for layer in self.layers:
            nn.init.trunc_normal_(layer.weight, std=0.02, generator=generator)
            nn.init.zeros_(layer.bias)
        nn.init.normal_(self.prototypes, generator=generator)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Tokens (..., D) -> cosines with the prototypes (..., K) in -1..1."""
        x = F.gelu(self.layers[0](tokens))
        x = F.gelu(self.layers[1](x))
        x = F.normalize(self.layers[2](x), dim=-1, eps=1e-6)  # the default 1e-12 underflows in half precision
        return F.linear(x, F.normalize(self.prototypes, dim=-1, eps=1e-6))
