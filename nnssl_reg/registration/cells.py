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

    def cropped(self, box, kernels) -> "Cells":
        """The cells of box = [[start, stop], ...], half open, inside the image."""
        inside = tuple(slice(int(start), int(stop)) for start, stop in box)
        mask = None if self.mask is None else self.mask[inside].contiguous()
        return Cells(kernels.part(self.values, inside), self.unit, mask)


def comparable_cells(fixed: FeatureMap, moving: FeatureMap, masks, kernels) -> tuple[Cells, Cells]:
    """Both maps about 0 and such that unrelated cells differ by 1; 0 outside a mask. Both have the same unit."""
    maps = [f.values.float() for f in (fixed, moving)]
    counted = [v.flatten(1) if mask is None else v[:, mask] for v, mask in zip(maps, masks)]
    middle, scale, largest = _spread(*counted)
    unit = kernels.smallest_unit(largest / scale)
    packed = [kernels.packed(values, middle, scale * unit, mask) for values, mask in zip(maps, masks)]
    return tuple(Cells(values, unit, mask) for values, mask in zip(packed, masks))


def feature_scale(fixed: torch.Tensor, moving: torch.Tensor) -> float:
    """Root mean squared distance of a fixed to an unrelated moving cell, (F, ...) each."""
    return _spread(fixed.flatten(1), moving.flatten(1))[1]


def _spread(fixed: torch.Tensor, moving: torch.Tensor) -> tuple[torch.Tensor, float, float]:
    """Of cells (F, N) and (F, M): the middle (F,) of their means, feature_scale, and the largest difference from the middle.

    One feature at a time, and from the middle: a large offset would cost digits.
    """
    means = [cells.float().mean(1) for cells in (fixed, moving)]
    middle = (means[0] + means[1]) / 2
    squared, largest = (means[0] - means[1]).square().sum() / 2, torch.zeros((), device=fixed.device)
    for cells in (fixed, moving):
        for values, centre in zip(cells, middle):
            away = values - centre
            squared = squared + torch.linalg.vector_norm(away).square() / len(away)
            low, high = away.aminmax()  # the maximum norm takes 20 times as long
            largest = torch.maximum(largest, torch.maximum(high, -low))
    return middle, max(float(squared) ** 0.5, 1e-12), float(largest)
