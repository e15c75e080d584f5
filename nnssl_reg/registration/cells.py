"""Feature maps as cells that can be compared: channels last, centred, scaled, in the smallest type that keeps the result."""

from dataclasses import dataclass

import torch

from nnssl_reg.geometry.image import FeatureMap


@dataclass(frozen=True, eq=False)
class Cells:
    """Features of one image: values (X, Y, Z, C) times `unit`; mask: where they count, (X, Y, Z) bool (None: everywhere)."""

    values: torch.Tensor
    unit: float = 1.0
    mask: torch.Tensor | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        return tuple(self.values.shape[:3])


def comparable_cells(fixed: FeatureMap, moving: FeatureMap, masks, kernels) -> tuple[Cells, Cells]:
    """Both maps about 0 and such that unrelated cells differ by 1; 0 outside a mask. Both have the same unit."""
    maps = [f.values.float() for f in (fixed, moving)]
    counted = [v.flatten(1) if mask is None else v[:, mask] for v, mask in zip(maps, masks)]
    middle = (counted[0].mean(1) + counted[1].mean(1)) / 2  # a large offset would cost digits
    scale = feature_scale(*counted)
    largest = max(float((bound - middle).abs().max()) for values in counted for bound in values.aminmax(dim=1)) / scale
    unit = kernels.smallest_unit(largest)
    packed = [kernels.packed(values, middle, scale * unit, mask) for values, mask in zip(maps, masks)]
    return tuple(Cells(values, unit, mask) for values, mask in zip(packed, masks))


def feature_scale(fixed: torch.Tensor, moving: torch.Tensor) -> float:
    """Root mean squared distance of a fixed to an unrelated moving cell, (F, ...) each, from means and variances."""
    fixed, moving = fixed.flatten(1), moving.flatten(1)
    between = (fixed.mean(1) - moving.mean(1)).square().sum()
    squared = between + fixed.var(1, correction=0).sum() + moving.var(1, correction=0).sum()
    return max(float(squared) ** 0.5, 1e-12)
