"""Scores of settings: labels and points that are known to fit score best, and folds cost."""

import numpy as np
import pytest
import torch

from nnssl_reg.evaluation.metrics import dice
from nnssl_reg.evaluation.tuning_score import MEASURES, PairScore, PointTruth, judged, label_truth
from nnssl_reg.geometry.affine import AffineTransform
from nnssl_reg.geometry.displacement import DisplacementField
from nnssl_reg.geometry.image import Image

STAY = AffineTransform.identity()


@pytest.fixture(scope="module")
def grid(turned_grid):
    return turned_grid((30, 28, 24), (2.0, 2.2, 2.5), (5, -10, 20), (30, -20, 90))


def still(grid) -> DisplacementField:
    return DisplacementField(torch.zeros(3, *grid.shape), grid)


def boxes(grid, shift: int = 0) -> Image:
    array = np.zeros((1, *grid.shape), np.uint8)
    array[0, 5 + shift : 12 + shift, 5:15, 5:15], array[0, 16 + shift : 22 + shift, 8:20, 8:16] = 1, 4
    return Image(array, grid)


def test_labels_under_the_map_that_joins_them_have_dice_1_and_without_it_the_dice_of_the_arrays(grid):
    truth = label_truth(boxes(grid), boxes(grid, 3))
    known = AffineTransform.translation(3 * grid.affine[:3, 0])
    assert judged(truth, known, still(grid)).value == 1
    by_field = DisplacementField(
        still(grid).vectors_mm + torch.tensor(3 * grid.affine[:3, 0], dtype=torch.float32).view(3, 1, 1, 1), grid
    )
    assert judged(truth, STAY, by_field).value == 1
    apart = dice(boxes(grid).array[0], boxes(grid, 3).array[0], (1, 4))
    assert judged(truth, STAY, still(grid)).value == pytest.approx(np.mean(list(apart.values())))


def test_large_labels_are_thinned_at_their_places(grid, monkeypatch):
    monkeypatch.setattr("nnssl_reg.evaluation.tuning_score.JUDGED_VOXELS", 4000)
    truth = label_truth(boxes(grid), boxes(grid, 3))
    assert truth.fixed.array.size <= 4000
    assert judged(truth, AffineTransform.translation(3 * grid.affine[:3, 0]), still(grid)).value == 1


def test_wanted_labels_alone_count_and_none_in_common_is_none(grid):
    assert label_truth(boxes(grid), boxes(grid), {4, 9}).ids == (4,)
    assert label_truth(boxes(grid), boxes(grid), {9}) is None


def test_points_are_as_far_off_as_the_map_leaves_them(grid):
    fixed = grid.index_to_world(np.random.default_rng(0).uniform(3, 20, (50, 3)))
    truth = PointTruth(fixed, fixed + [3.0, 0.0, 4.0])
    assert judged(truth, STAY, still(grid)).value == pytest.approx(5)
    assert judged(truth, AffineTransform.translation([3.0, 0.0, 4.0]), still(grid)).value == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("kind", MEASURES)
def test_folds_and_roughness_cost_and_better_is_more(kind):
    measure = MEASURES[kind]
    smooth, folded, rough = PairScore(0.7, 0.2, 0.0), PairScore(0.7, 0.2, 1.0), PairScore(0.7, 0.6, 0.0)
    assert measure.objective(smooth) > max(measure.objective(folded), measure.objective(rough))
    better = PairScore(0.7 + 0.2 * measure.sign, 0.2, 0.0)
    assert measure.objective(better) > measure.objective(smooth)


def test_a_field_that_folds_is_told_as_one(grid):
    vectors = still(grid).vectors_mm
    vectors[0] = -2 * (grid.points_mm()[0] - 30)
    found = judged(PointTruth(np.zeros((1, 3)), np.zeros((1, 3))), STAY, DisplacementField(vectors, grid))
    assert found.folding_percent == 100
