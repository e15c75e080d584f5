"""The losses, tensors in, one number out, as in DINO, iBOT, KoLeo and SwAV."""

import torch
import torch.nn.functional as F

from nnssl_reg.pretraining.processes import ALONE, Processes


def cross_entropy(targets: torch.Tensor, logits: torch.Tensor, temperature: float, weights: torch.Tensor) -> torch.Tensor:
    """Sum over tokens of weight * H(target, softmax(logits / temperature)); a scalar.

    targets: (M, K) the teacher's probabilities; logits: (M, K) the student's; weights: (M,), adding up to 1 for a mean.
    With equal weights over class tokens this is DINO's loss (Caron et al. 2021, one pair of views), with masked tokens
    weighted by 1 / (masked tokens of their image * images) it is iBOT's (Zhou et al. 2022).
    """
    log_probabilities = F.log_softmax(logits.float() / temperature, dim=-1)  # (M, K)
    return -(weights * (targets * log_probabilities).sum(dim=-1)).sum()


def koleo(tokens: torch.Tensor) -> torch.Tensor:
    """-mean log(n * distance to the nearest other), tokens (n, D) on the unit sphere (Sablayrolles et al. 2019); 0 for n < 2.

    Spreads the tokens: large where two of them are close.
    """
    n = tokens.shape[0]
    if n < 2:
        return tokens.new_zeros(())
    unit = F.normalize(tokens.float(), dim=-1, eps=1e-8)
    with torch.no_grad():
        nearest = (unit @ unit.T).fill_diagonal_(-2.0).argmax(dim=1)
    distance = torch.linalg.vector_norm(unit - unit[nearest] + 1e-8, dim=-1)  # 1e-8: the root of 0 has no gradient
    return -torch.log(n * distance + 1e-8).mean()


def gram(tokens: torch.Tensor, anchors: torch.Tensor) -> torch.Tensor:
    """Mean squared difference of both sets' cosines between their own tokens, (B, n, D) each (DINOv3, Simeoni et al. 2025).

    0 where every two tokens are as similar as their anchors are, wherever they point.
    """
    ours, theirs = (F.normalize(t.float(), dim=-1, eps=1e-8) for t in (tokens, anchors))
    return (ours @ ours.transpose(1, 2) - theirs @ theirs.transpose(1, 2)).square().mean()


@torch.no_grad()
def sinkhorn(logits: torch.Tensor, temperature: float, iterations: int = 3, processes: Processes = ALONE) -> torch.Tensor:
    """Teacher probabilities (M, K) from cosines (M, K) by Sinkhorn-Knopp: rows sum to 1, all prototypes get about M / K.

    SwAV (Caron et al. 2020), as DINOv2 uses it in place of centring. processes: M counts the rows of all of them.
    """
    scaled = logits.float() / temperature
    scores = torch.exp(scaled - processes.largest(scaled.max()))
    for _ in range(iterations):
        used = processes.total(scores.sum(dim=0, keepdim=True))
        scores = scores / used.clamp(min=1e-30)  # prototypes, the unused ones stay 0
        scores = scores / scores.sum(dim=1, keepdim=True).clamp(min=1e-30)  # tokens
    return scores


@torch.no_grad()
def centred(logits: torch.Tensor, centre: torch.Tensor, temperature: float) -> torch.Tensor:
    """Teacher probabilities (M, K) = softmax((logits - centre) / temperature), centre (K,): DINO's."""
    return F.softmax((logits.float() - centre) / temperature, dim=-1)


@torch.no_grad()
def moved_centre(centre: torch.Tensor, logits: torch.Tensor, momentum: float = 0.9,
                 processes: Processes = ALONE) -> torch.Tensor:  # fmt: skip
    """The running mean of teacher logits after one more batch, (K,); of the rows of all processes."""
    if processes.size == 1:
        mean = logits.float().mean(dim=0)
    else:
        count = torch.full((1,), len(logits), dtype=torch.float32, device=logits.device)
        *sums, count = processes.total(torch.cat((logits.float().sum(dim=0), count))).split(centre.numel())
        mean = sums[0] / count
    return centre * momentum + mean * (1 - momentum)
