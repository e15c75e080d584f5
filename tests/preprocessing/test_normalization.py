"""Truths about normalisation: what the bounds are, and what stays the same when an image's units change."""

import numpy as np
import pytest

from nnssl_reg.planning.plans import ChannelPlan
from nnssl_reg.preprocessing.normalization import NORMALIZATIONS, bounds_for, scale

CT = ChannelPlan("CT", "ct", -100.0, 300.0, -500.0)
MR = ChannelPlan("MR", "mr", None, None, None)


def test_the_bounds_become_minus_one_and_one_and_the_rest_is_clipped():
    out = scale(np.array([-1000, -100, 100, 300, 3000], np.float32), *bounds_for(np.zeros(5), CT))
    assert out.tolist() == [-1, -1, 0, 1, 1] and out.dtype == np.float32


def test_an_mr_looks_the_same_in_any_unit():
    image = np.random.default_rng(0).gamma(2, 100, 20_000).astype(np.float32)
    one, other = (scale(v, *bounds_for(v, MR)) for v in (image, 37 * image + 500))
    assert np.abs(one - other).max() < 1e-4
    assert ((one == -1) | (one == 1)).mean() == pytest.approx(0.02, abs=0.005)


def test_a_foreground_of_one_value_is_no_division_by_zero():
    assert scale(np.array([0, 7, 9], np.float32), 7, 7).tolist() == [-1, 0, 1]


def test_an_unknown_scheme_and_bounds_that_are_none_are_refused():
    with pytest.raises(ValueError, match="'zscore'; known are ct, mr"):
        bounds_for(np.zeros(3), ChannelPlan("T1", "zscore", None, None, None))
    with pytest.raises(ValueError, match="lower < upper"):
        bounds_for(np.zeros(3), ChannelPlan("CT", "ct", None, None, None))
    assert set(NORMALIZATIONS) == {"ct", "mr"}
