"""Numbers that tell whether the features are alive: pure functions of tokens and probabilities."""

import torch
import torch.nn.functional as F


@torch.no_grad()
def entropy(probabilities: torch.Tensor) -> float:
    """Mean over rows of -sum p ln p, (M, K): between 0 (one prototype each) and ln K (undecided)."""
    return float(-(probabilities * torch.log(probabilities.clamp(min=1e-12))).sum(dim=-1).mean())


@torch.no_grad()
def effective_rank(tokens: torch.Tensor) -> float:
    """exp(entropy of the normalised singular values) of tokens (M, D) less their mean (Roy & Vetterli 2007).

    k equal singular values give k; collapsed features give 1 or, if all are equal, 0.
    """
    values = torch.linalg.svdvals(tokens.double() - tokens.double().mean(dim=0))
    if values.sum() <= 1e-12:
        return 0.0
    shares = values / values.sum()
    return float(torch.exp(-(shares * torch.log(shares.clamp(min=1e-12))).sum()))


@torch.no_grad()
def spread_within(tokens: torch.Tensor) -> float:
    """Mean squared distance of unit tokens (B, N, D) from their image's mean token: 0 all alike, near 1 all different."""
    unit = F.normalize(tokens.float(), dim=-1)
    return float((unit - unit.mean(dim=1, keepdim=True)).square().sum(dim=-1).mean())


@torch.no_grad()
def spread_between(tokens: torch.Tensor) -> float:
    """Mean squared distance of unit tokens (B, D), one for each image, from their mean: 0 where all images look alike."""
    unit = F.normalize(tokens.float(), dim=-1)
    return float((unit - unit.mean(dim=0)).square().sum(dim=-1).mean())
