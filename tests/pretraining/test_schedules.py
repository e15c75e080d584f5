"""Schedules: end points, and what lies between."""

from dataclasses import replace

import pytest

from nnssl_reg.pretraining.schedules import cosine, linear, settings_at, warmed_cosine


def test_cosine_and_linear_start_and_end_where_they_should():
    for curve in (cosine, linear):
        assert curve(0.04, 0.4, 0, 100) == pytest.approx(0.04)
        assert curve(0.04, 0.4, 50, 100) == pytest.approx(0.22)
        assert curve(0.04, 0.4, 100, 100) == curve(0.04, 0.4, 500, 100) == 0.4
    assert cosine(0.0, 1.0, 10, 100) < linear(0.0, 1.0, 10, 100)  # flat at its ends


def test_the_rate_rises_along_a_line_without_a_step_of_zero_then_falls():
    rates = [warmed_cosine(1.0, 0.1, step, 10, 100) for step in range(101)]
    assert rates[0] == pytest.approx(0.1) and rates[4] == pytest.approx(0.5) and rates[9] == pytest.approx(1.0)
    assert rates[10] == pytest.approx(1.0) and rates[100] == 0.1
    assert all(a > b for a, b in zip(rates[10:], rates[11:]))


def test_settings_of_the_first_and_the_last_step(plan):
    plan = replace(plan, steps=1000, warmup_steps=100, teacher_temperature_steps=400)
    first, last = settings_at(0, plan), settings_at(999, plan)
    assert (
        first.teacher_momentum == pytest.approx(plan.teacher_momentum) and first.teacher_temperature == plan.teacher_temperature
    )
    assert first.weight_decay == pytest.approx(plan.weight_decay) and first.learning_rate == pytest.approx(
        plan.learning_rate / 100
    )
    assert last.teacher_temperature == plan.final_teacher_temperature
    assert last.teacher_momentum == pytest.approx(plan.final_teacher_momentum, abs=1e-6)
    assert last.weight_decay == pytest.approx(plan.final_weight_decay, abs=1e-5)
    assert last.learning_rate == pytest.approx(plan.final_learning_rate, rel=0.01)


def test_the_temperature_reaches_its_end_after_its_own_number_of_steps(plan):
    plan = replace(plan, steps=1000, teacher_temperature_steps=400)
    assert settings_at(200, plan).teacher_temperature == pytest.approx(0.055)
    assert settings_at(400, plan).teacher_temperature == plan.final_teacher_temperature
