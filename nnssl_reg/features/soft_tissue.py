"""Hounsfield units with soft tissue in full contrast: bone and air would outweigh it in anything relative to the image."""

import torch

SOFT_TISSUE = (-150.0, 300.0)  # HU: fat to vessels with contrast agent
BEYOND = 0.1  # of the contrast outside: lungs keep their vessels, bones their marrow


def soft_tissue_contrast(hounsfield: torch.Tensor) -> torch.Tensor:
    """The same within SOFT_TISSUE; what is beyond it lies BEYOND times as far beyond it."""
    inside = hounsfield.clamp(*SOFT_TISSUE)
    return torch.lerp(inside, hounsfield, BEYOND)
