"""AdamW over the student's parameters: the rate falls with depth, and only matrices decay."""

import torch
from torch import nn

from nnssl_reg.pretraining.schedules import StepSettings


def build_optimizer(student: nn.Module, depth: int, layer_decay: float) -> torch.optim.AdamW:
    """AdamW with one group for each rate and kind. Groups carry "rate_scale" and "decays" for apply_settings."""
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in student.named_parameters():
        decays = parameter.ndim >= 2 and not name.endswith(("register_tokens", "mask_token"))
        groups.setdefault((layer_decay ** (depth + 1 - layer_of(name, depth)), decays), []).append(parameter)
    return torch.optim.AdamW(
        [{"params": parameters, "rate_scale": scale, "decays": decays} for (scale, decays), parameters in groups.items()],
        lr=0.0, weight_decay=0.0, fused=True,
    )  # fmt: skip


def layer_of(name: str, depth: int) -> int:
    """0 for the patch embedding and tokens, 1 .. depth for the blocks, depth + 1 for the last norm and the heads."""
    if name.startswith("encoder.eva.blocks."):
        return int(name.split(".")[3]) + 1
    return depth + 1 if name.startswith("encoder.eva.norm") or not name.startswith("encoder.") else 0


def apply_settings(optimizer: torch.optim.Optimizer, settings: StepSettings) -> None:
    """This step's learning rate and weight decay in every group."""
    for group in optimizer.param_groups:
        group["lr"] = settings.learning_rate * group["rate_scale"]
        group["weight_decay"] = settings.weight_decay if group["decays"] else 0.0
