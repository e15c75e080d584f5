"""Confidence: each doubt lowers it and is named, and what is not known is not held against a pair."""

import math
from dataclasses import replace

import pytest

from nnssl_reg.evaluation.confidence import HALF_COST, HALF_INCONSISTENCY, Evidence, confidence_of

PERFECT = Evidence(inconsistency_mm=0.0, body_mm=250.0, feature_cost_initial=0.4, feature_cost=0.0, folding_percent=0.0,
                   overlap_percent=100.0)  # fmt: skip
DOUBTS = [("inconsistency_mm", 20.0, "the two directions differ by 20.0 mm"), ("feature_cost", 0.39, "differ by 39 %"),
          ("folding_percent", 2.5, "2.5 % of the voxels fold"),
          ("overlap_percent", 50.0, "covers 50 % of the body")]  # fmt: skip


def test_a_perfect_pair_has_full_confidence():
    found = confidence_of(PERFECT)
    assert found.value == 1 and found.flag == "high"


@pytest.mark.parametrize(("name", "value", "words"), DOUBTS)
def test_every_doubt_lowers_the_confidence_and_is_named(name, value, words):
    found = confidence_of(replace(PERFECT, **{name: value}))
    assert found.value < 0.75 and words in found.reason
    assert not any(other in found.reason for _, _, other in DOUBTS if other != words)


@pytest.mark.parametrize("name", [name for name, _, _ in DOUBTS])
def test_the_confidence_falls_steadily_with_every_measure(name):
    steps = [100.0, 60.0, 20.0, 0.0] if name == "overlap_percent" else [0.0, 0.1, 1.0, 10.0, 100.0]
    values = [confidence_of(replace(PERFECT, **{name: step})).value for step in steps]
    assert values == sorted(values, reverse=True) and len(set(values)) == len(values)


def test_at_its_half_value_a_measure_halves_the_confidence():
    assert confidence_of(replace(PERFECT, inconsistency_mm=HALF_INCONSISTENCY * PERFECT.body_mm)).value == pytest.approx(0.5)
    assert confidence_of(replace(PERFECT, feature_cost=HALF_COST)).value == pytest.approx(0.5)


def test_doubts_add_up_and_the_gravest_is_named_first():
    both = confidence_of(replace(PERFECT, inconsistency_mm=10.0, overlap_percent=20.0))
    alone = [confidence_of(replace(PERFECT, **{name: value})).value for name, value in (("inconsistency_mm", 10.0),
             ("overlap_percent", 20.0))]  # fmt: skip
    assert both.value == pytest.approx(alone[0] * alone[1]) and both.flag == "low"
    assert both.reason.index("covers 20 %") < both.reason.index("10.0 mm")


def test_the_same_share_of_a_smaller_body_counts_the_same():
    large = confidence_of(replace(PERFECT, inconsistency_mm=5.0))
    assert confidence_of(replace(PERFECT, inconsistency_mm=0.5, body_mm=25.0)).value == pytest.approx(large.value)


def test_without_the_other_direction_confidence_is_medium_at_best():
    found = confidence_of(replace(PERFECT, inconsistency_mm=math.nan))
    assert found.flag == "medium" and "other direction was not registered" in found.reason and found.value == 1


def test_a_deformation_that_makes_the_features_worse_is_told():
    assert "did not bring the features closer" in confidence_of(replace(PERFECT, feature_cost=0.5)).reason
