"""Numbers that tell whether the features are alive, and the traffic light they make."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F

LIGHTS = ("green", "yellow", "red")
TRUSTED_FROM = 500  # steps at most: in a warm-up, a fresh network's tokens may be alike without harm


@dataclass(frozen=True)
class Limit:
    """Bounds of a monitor, and what it means to be beyond them. low: yellow and red below, high: yellow and red above."""

    name: str
    meaning: str
    low: tuple[float, float] = (-math.inf, -math.inf)
    high: tuple[float, float] = (math.inf, math.inf)


# Healthy runs stayed far from the yellow bounds (rank 40 to 80, spreads 0.2 to 0.9, entropy below 0.9 ln K); red is collapse.
LIMITS = (
    Limit("effective_rank", "patch tokens lie along few directions", low=(4.0, 2.0)),
    Limit("spread_within", "all tokens of an image are alike", low=(0.05, 0.01)),
    Limit("spread_between", "all images have the same class token", low=(0.03, 1e-4)),
    Limit("prototypes_used", "all tokens choose the same prototypes", low=(4.0, 1.5)),
    Limit("entropy_share", "the teacher is undecided, its entropy is that of guessing", high=(0.98, 0.999)),
    Limit("centre_norm", "all class tokens lean towards the same prototypes", high=(0.5, 0.95)),
    Limit("clipped", "gradients are far longer than gradient_clip", high=(20.0, math.inf)),
    Limit("gradient_norm", "there is nothing left to learn from", low=(1e-4, 0.0)),
)


@dataclass(frozen=True)
class Health:
    """light: green, yellow (look at it) or red (collapsed); reasons: what is beyond its bounds."""

    light: str
    reasons: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.light + (f" ({'; '.join(self.reasons)})" if self.reasons else "")


def health(row: Mapping[str, float], gradient_clip: float, warmup_steps: int) -> Health:
    """The traffic light of a row of the log; what the row does not know is not judged. In the warm-up, red is yellow."""
    values = dict(row)
    values["entropy_share"] = row["teacher_entropy"] / max(row["log_prototypes"], 1e-12)
    values["clipped"] = row["gradient_norm"] / gradient_clip
    worst, reasons = 0, []
    for limit in LIMITS:
        value = values.get(limit.name)
        if value is None or not math.isfinite(value):
            continue
        level = max(sum(value < bound for bound in limit.low), sum(value > bound for bound in limit.high))
        if level:
            worst = max(worst, level)
            reasons.append(f"{limit.meaning}: {limit.name} {value:.2g}")
    if row["step"] <= min(warmup_steps, TRUSTED_FROM):
        worst = min(worst, 1)
    return Health(LIGHTS[worst], tuple(reasons))


@torch.no_grad()
def entropy(probabilities: torch.Tensor) -> float:
    """Mean over rows of -sum p ln p, (M, K): between 0 (one prototype each) and ln K (undecided)."""
    return float(-(probabilities * torch.log(probabilities.clamp(min=1e-12))).sum(dim=-1).mean())


@torch.no_grad()
def effective_rank(tokens: torch.Tensor) -> float:
    """exp(entropy of the normalised singular values) of tokens (M, D) less their mean (Roy & Vetterli 2007).

    k equal singular values give k; collapsed features give 1 or, if all are equal, 0.
    """
    centred = tokens.double() - tokens.double().mean(dim=0)
    gram = centred.T @ centred if len(centred) > centred.shape[1] else centred @ centred.T  # the smaller one
    values = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt()
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
