"""How good settings are on a pair whose truth is known: Dice or an error in mm, less a penalty for folds and roughness."""

from dataclasses import dataclass

import numpy as np

from nnssl_reg.evaluation.metrics import dice, folding_percent, label_ids, mean_of, sd_log_jacobian
from nnssl_reg.geometry.affine import AffineTransform
from nnssl_reg.geometry.displacement import DisplacementField
from nnssl_reg.geometry.grid import Grid
from nnssl_reg.geometry.image import Image

JUDGED_VOXELS = 2**20  # of larger label images every second or third voxel along each axis is compared


@dataclass(frozen=True)
class Measure:
    """What is measured on a pair. sign: 1 if more is better; gain: least change that counts; folding, roughness: what a percent
    of folded cells and an SDlogJ of 1 cost, in its unit."""

    name: str
    sign: int
    gain: float
    folding: float
    roughness: float

    def objective(self, score: "PairScore") -> float:
        """One number, more is better."""
        return self.sign * score.value - self.folding * score.folding_percent - self.roughness * score.sd_log_jacobian

    def text(self, value: float) -> str:
        return f"{self.name} {self.number(value)}"

    def number(self, value: float) -> str:
        return f"{value:.3f}" if self.sign > 0 else f"{value:.2f} mm"


MEASURES = {
    "dice": Measure("Dice", 1, 0.001, 0.01, 0.02),
    "tre": Measure("landmark error", -1, 0.01, 0.2, 0.5),
    "synthetic": Measure("field error", -1, 0.01, 0.2, 0.5),
}


@dataclass(frozen=True)
class PairScore:
    """value: the measure; the others of the deformation, on its cells."""

    value: float
    sd_log_jacobian: float
    folding_percent: float


@dataclass(frozen=True, eq=False)
class LabelTruth:
    """Labels of both images, compared at the voxels of `fixed`; ids: which."""

    fixed: Image
    moving: Image
    ids: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class PointTruth:
    """Points of the fixed image and where they are in the moving one, (N, 3) RAS mm each."""

    fixed_mm: np.ndarray
    moving_mm: np.ndarray


def label_truth(fixed: Image, moving: Image, wanted: set[int] | None = None) -> LabelTruth | None:
    """The labels that both images have (and that are wanted); None if there is none."""
    ids = set(label_ids(fixed.array)) & set(label_ids(moving.array))
    ids = ids if wanted is None else ids & wanted
    return LabelTruth(_thinned(fixed), moving, tuple(sorted(ids))) if ids else None


def judged(truth: LabelTruth | PointTruth, initial: AffineTransform, deformation: DisplacementField) -> PairScore:
    """The scores of the map p -> initial(p + deformation(p)): mean Dice of the labels, or mean distance of the points, mm."""
    if isinstance(truth, LabelTruth):
        warped = initial.after(deformation, truth.fixed.grid).warp(truth.moving)
        value = mean_of(dice(truth.fixed.array[0], warped.array[0], truth.ids).values())
    else:
        led = initial.apply(deformation.apply_to_points(truth.fixed_mm))
        value = float(np.linalg.norm(led - truth.moving_mm, axis=1).mean())
    jacobian = deformation.jacobian_determinant().cpu().numpy()
    return PairScore(value, sd_log_jacobian(jacobian), folding_percent(jacobian))


def _thinned(label: Image) -> Image:
    """Every n-th voxel along each axis, such that at most JUDGED_VOXELS remain."""
    step = int(np.ceil((label.array.size / JUDGED_VOXELS) ** (1 / 3) - 1e-9))
    array = np.ascontiguousarray(label.array[:, ::step, ::step, ::step])
    return Image(array, Grid(array.shape[1:], label.grid.affine @ np.diag([step, step, step, 1.0])))
