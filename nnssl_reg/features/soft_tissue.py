"""Hounsfield units with soft tissue in full contrast: bone and air would outweigh it in anything relative to the image."""

import torch

SOFT_TISSUE = (-150.0, 300.0)  # HU: fat to vessels with contrast agent
BEYOND = 0.1  # of the contrast outside: bones keep their marrow
LUNG = (-1024.0, -450.0)  # HU: air to the denser lung of breath let out
LUNG_CONTRAST = 0.5  # of the contrast there, once lungs are shown
APART = 2  # voxels between which contrast is measured


def soft_tissue_contrast(hounsfield: torch.Tensor) -> torch.Tensor:
    """The same within SOFT_TISSUE; what is beyond it lies BEYOND times as far beyond it."""
    inside = hounsfield.clamp(*SOFT_TISSUE)
    return torch.lerp(inside, hounsfield, BEYOND)


def with_lungs(image: torch.Tensor) -> tuple[torch.Tensor, float]:
    """An image (X, Y, Z) of soft_tissue_contrast in which LUNG, too, has contrast, LUNG_CONTRAST of its own.

    And the share of the mean squared contrast that the image had before: what is measured by the mean over an image would
    else be measured by the surfaces of lungs and skin.
    """
    low, high = (SOFT_TISSUE[0] + BEYOND * (h - SOFT_TISSUE[0]) for h in LUNG)
    shown = torch.add(image, image.clamp(low, high).sub_(high), alpha=LUNG_CONTRAST / BEYOND - 1)
    before, after = _squared_contrast(image), _squared_contrast(shown)
    return shown, before / after if after > 0 else 1.0


def _squared_contrast(image: torch.Tensor) -> float:
    """The mean squared difference of voxels that lie APART along an axis."""
    return sum(float(torch.sub(image.narrow(axis, APART, n - APART), image.narrow(axis, 0, n - APART)).square_().mean())
               for axis, n in enumerate(image.shape) if n > APART)  # fmt: skip
