"""Monitors against truths known beforehand."""

import math

import pytest
import torch

from nnssl_reg.pretraining.monitors import effective_rank, entropy, health, spread_between, spread_within


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


HEALTHY = {"step": 1000, "effective_rank": 60.0, "spread_within": 0.8, "spread_between": 0.6, "prototypes_used": 1000.0,
           "teacher_entropy": 4.0, "log_prototypes": math.log(1024), "centre_norm": 0.05, "gradient_norm": 2.0}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "yellow", "red"),
    [
        ("effective_rank", 3.0, 1.0),
        ("spread_within", 0.02, 0.0),
        ("spread_between", 0.01, 0.0),
        ("prototypes_used", 2.0, 1.0),
        ("teacher_entropy", 0.99 * math.log(1024), math.log(1024)),
        ("centre_norm", 0.7, 1.0),
    ],
)
def test_the_light_is_green_then_yellow_then_red_and_names_the_monitor(name, yellow, red):
    assert str(health(HEALTHY, 3.0, 100)) == "green"
    for light, value in (("yellow", yellow), ("red", red)):
        found = health({**HEALTHY, name: value}, 3.0, 100)
        assert found.light == light and len(found.reasons) == 1
        assert ("entropy_share" if name == "teacher_entropy" else name) in str(found)


def test_gradients_that_are_too_long_or_gone_are_yellow_only():
    assert health({**HEALTHY, "gradient_norm": 1e4}, 3.0, 100).light == "yellow"
    assert health({**HEALTHY, "gradient_norm": 0.0}, 3.0, 100).light == "yellow"


def test_in_the_warm_up_nothing_is_red_but_a_long_warm_up_does_not_hide_a_collapse():
    collapsed = {**HEALTHY, "spread_within": 0.0}
    assert health({**collapsed, "step": 50}, 3.0, 100).light == "yellow"
    assert health({**collapsed, "step": 150}, 3.0, 100).light == "red"
    assert health({**collapsed, "step": 600}, 3.0, 15_000).light == "red"


def test_what_is_not_known_is_not_judged():
    assert health({**HEALTHY, "spread_between": None}, 3.0, 100).light == "green"  # one image alone has no spread
