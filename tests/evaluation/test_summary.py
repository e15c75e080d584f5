"""Judging pairs with a known motion, and telling the results."""

import csv
import json
import math

import numpy as np
import pytest
import torch

from nnssl_reg.evaluation import summary
from nnssl_reg.evaluation.summary import PairResult, Scores, judge
from nnssl_reg.geometry.displacement import DisplacementField
from nnssl_reg.geometry.grid import Grid
from nnssl_reg.geometry.image import Image


def field_of(grid: Grid, shift_mm) -> DisplacementField:
    vectors = torch.tensor(shift_mm, dtype=torch.float32).view(3, 1, 1, 1).expand(3, *grid.shape).clone()
    return DisplacementField(vectors, grid)


def boxes(grid: Grid, shift_vox: int = 0) -> Image:
    """Two boxes, 3 and 9, moved along the first axis."""
    array = np.zeros((1, *grid.shape), dtype=np.uint8)
    array[0, 4 + shift_vox : 8 + shift_vox, 2:6, 2:6] = 3
    array[0, 4 + shift_vox : 8 + shift_vox, 7:10, 2:9] = 9
    return Image(array, grid)


GRID = Grid((16, 12, 12), np.diag([2.0, 1.0, 3.0, 1.0]))


def test_the_true_field_scores_one_and_the_initial_scores_tell_the_shift():
    scores = judge(field_of(GRID, (4, 0, 0)), boxes(GRID), boxes(GRID, 2))
    assert scores.dice == 1 and scores.hd95_mm == 0 and scores.surface_mm == 0
    assert scores.dice_initial == 0.5 and scores.hd95_mm_initial == 4
    assert scores.label_dice == {"3": 1.0, "9": 1.0} and scores.label_dice_initial == {"3": 0.5, "9": 0.5}
    assert scores.sd_log_jacobian == 0 and scores.folding_percent == 0 and scores.lost_labels == ()


def test_scores_do_not_depend_on_how_the_moving_labels_are_stored():
    turned = boxes(GRID, 2)
    flipped = Image(np.ascontiguousarray(turned.array[:, ::-1].transpose(0, 3, 1, 2)), Grid((12, 16, 12), turned_affine()))
    assert judge(field_of(GRID, (4, 0, 0)), boxes(GRID), flipped) == judge(field_of(GRID, (4, 0, 0)), boxes(GRID), turned)


def turned_affine() -> np.ndarray:
    """The affine of GRID for an array with its axes in the order z, x (reversed), y."""
    affine = np.zeros((4, 4))
    affine[2, 0], affine[0, 1], affine[1, 2], affine[3, 3] = 3, -2, 1, 1
    affine[0, 3] = 30
    return affine


def test_labels_on_a_finer_grid_than_the_field_are_judged_on_their_own_grid():
    fine = Grid((32, 12, 12), np.diag([1.0, 1.0, 3.0, 1.0]))
    scores = judge(field_of(GRID, (4, 0, 0)), boxes(fine), boxes(fine, 4))
    assert scores.dice == 1 and scores.dice_initial == 0


def test_a_label_that_only_one_image_has_does_not_count():
    moving = boxes(GRID, 2)
    moving.array[moving.array == 9] = 5
    scores = judge(field_of(GRID, (4, 0, 0)), boxes(GRID), moving)
    assert scores.label_dice == {"3": 1.0} and scores.dice == 1


def test_a_label_lost_on_the_way_counts_as_zero_and_is_named():
    scores = judge(field_of(GRID, (400, 0, 0)), boxes(GRID), boxes(GRID))
    assert scores.dice == 0 and scores.lost_labels == (3, 9) and math.isnan(scores.hd95_mm)


def test_without_labels_the_field_is_still_judged():
    vectors = torch.zeros(3, *GRID.shape)
    vectors[0, 8:] = -40  # folds between 7 and 8
    scores = judge(DisplacementField(vectors, GRID))
    assert scores.folding_percent > 0 and scores.sd_log_jacobian > 0 and math.isnan(scores.dice)


RESULTS = [
    PairResult("a", "fixed, odd.nii", "moving", Scores(0.2, 0.8, 9, 3, 4, 1, 0.3, 0.1, {"1": 0.2}, {"1": 0.8}), 10),
    PairResult("b", "f", "m", Scores(0.4, 0.6, 7, 5, 3, 2, 0.1, 0.0, {"1": 0.4, "10": 0.4}, {"1": 0.5, "10": 0.7}, (10,)), 20),
    PairResult("c", "f", "m", error="the image is constant (0)"),
    PairResult("d", "f", "m", Scores(sd_log_jacobian=0.2, folding_percent=0.5), 60),
]


def test_metrics_csv_has_a_row_per_pair_a_column_per_label_and_empty_cells_for_the_unknown():
    rows = list(csv.DictReader(summary.metrics_csv(RESULTS).splitlines()))
    assert [r["id"] for r in rows] == ["a", "b", "c", "d"] and rows[0]["fixed"] == "fixed, odd.nii"
    assert rows[0]["dice_1"] == "0.8" and rows[0]["dice_10"] == "" and rows[1]["dice_10"] == "0.7"
    assert rows[2]["error"] == "the image is constant (0)" and rows[2]["dice"] == "" and rows[1]["lost_labels"] == "10"
    assert list(rows[0])[:7] == ["id", "fixed", "moving", "dice_initial", "dice", "dice_1", "dice_10"]


def test_the_summary_averages_what_is_known_and_counts_what_failed():
    told = summary.summarise(RESULTS)
    assert (told["pairs"], told["registered"], told["with_labels"]) == (4, 3, 2)
    assert told["failed"] == {"c": "the image is constant (0)"}
    assert told["mean"]["dice"] == pytest.approx(0.7) and told["mean"]["sd_log_jacobian"] == pytest.approx(0.2)
    assert told["mean"]["seconds"] == 30 and told["median"]["seconds"] == 20
    assert told["labels"]["1"]["dice"] == pytest.approx(0.65) and told["labels"]["10"]["lost_in"] == ["b"]
    assert summary.summarise([])["mean"]["dice"] is None
    json.dumps(told, allow_nan=False)


def test_the_table_tells_every_pair_the_mean_and_the_failures():
    lines = summary.results_table(RESULTS).splitlines()
    assert "0.200 -> 0.800" in lines[1] and lines[4].startswith("mean") and "0.300 -> 0.700" in lines[4]
    assert "failed: c: the image is constant (0)" in lines and "lost on the way: label 10 in b" in lines
    assert len({len(line) for line in lines[:6]}) == 1  # columns line up
    assert summary.results_table([RESULTS[2]]) == "failed: c: the image is constant (0)"


def test_a_long_table_is_cut_and_says_so():
    text = summary.results_table([RESULTS[0]] * 100)
    assert "... 40 more in metrics.csv" in text and len(text.splitlines()) == 64
