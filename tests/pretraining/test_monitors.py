"""Monitors against truths known beforehand."""

import math

import pytest
import torch

from nnssl_reg.pretraining.monitors import effective_rank, entropy, spread_between, spread_within


def directions(k: int, dim: int = 16) -> torch.Tensor:
    """2k tokens whose mean is 0 and which have k equal singular values."""
    axes = torch.linalg.qr(torch.randn(dim, dim, generator=torch.Generator().manual_seed(0)))[0][:k]
    return torch.cat((axes, -axes))


@pytest.mark.parametrize("k", [1, 3, 10])
def test_the_effective_rank_of_k_equal_singular_values_is_k(k):
    assert effective_rank(directions(k)) == pytest.approx(k, rel=1e-5)
    assert effective_rank(directions(k) * 7 + 3) == pytest.approx(k, rel=1e-4)  # neither scale nor a common offset counts


def test_the_effective_rank_of_equal_tokens_is_zero():
    assert effective_rank(torch.ones(9, 4)) == 0.0


def test_entropy_is_zero_for_certainty_and_ln_k_for_indecision():
    assert entropy(torch.eye(5)) == pytest.approx(0, abs=1e-6)
    assert entropy(torch.full((3, 8), 1 / 8)) == pytest.approx(math.log(8))


def test_spread_is_zero_for_equal_tokens_and_one_for_opposite_ones():
    assert spread_within(torch.ones(2, 6, 4)) == pytest.approx(0, abs=1e-6)
    assert spread_within(directions(3)[None]) == pytest.approx(1)
    assert spread_between(directions(4)) == pytest.approx(1)
    assert spread_between(torch.ones(5, 3) * torch.arange(1, 6)[:, None]) == pytest.approx(0, abs=1e-6)  # length does not count


def test_spread_within_looks_at_each_image_apart():
    images = torch.stack((torch.eye(4)[:1].expand(5, 4), torch.eye(4)[1:2].expand(5, 4)))
    assert spread_within(images) == pytest.approx(0, abs=1e-6)
