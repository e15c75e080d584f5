"""Truths about estimates: what doubles the work doubles the prediction."""

from dataclasses import replace

import numpy as np
import pytest

from nnssl_reg.planning.estimates import disk_bytes, encoding_seconds, preprocessing_seconds, training_hours, worker_bytes
from nnssl_reg.planning.fingerprint import CaseFingerprint, Fingerprint, merge
from nnssl_reg.planning.planner import plan


def fingerprint(cases: int) -> Fingerprint:
    shape, spacing = (100, 120, 80), (2.0, 2.0, 2.0)
    case = CaseFingerprint("0", shape, spacing, shape, 1.0, 0.0, 0.0, 1000.0, 500.0, 200.0)
    return merge("D", {f"c{i}": (case, np.linspace(0, 1000, 256)) for i in range(cases)}, {"0": "MR"})


def test_twice_the_cases_cost_twice_the_time_and_disk_but_no_more_memory():
    few, many = fingerprint(3), fingerprint(6)
    configurations = list(plan(few, 8).configurations.values())
    for cost in (disk_bytes, lambda f, c: preprocessing_seconds(f, c, 2)):
        assert cost(many, configurations) == pytest.approx(2 * cost(few, configurations))
    assert worker_bytes(many, configurations) == worker_bytes(few, configurations)


def test_twice_the_steps_or_half_the_cores_take_twice_as_long():
    one = plan(fingerprint(3), 8).configurations["3d_fullres"]
    longer = replace(one, pretraining=replace(one.pretraining, steps=2 * one.pretraining.steps))
    hours = training_hours(one, gpu=False, cores=2)
    assert training_hours(longer, gpu=False, cores=2) == pytest.approx(2 * hours)
    assert training_hours(one, gpu=False, cores=1) == pytest.approx(2 * hours)
    assert training_hours(one, gpu=True, cores=2) < hours


def test_every_window_and_every_shifted_pass_counts():
    one = plan(fingerprint(3), 8).configurations["3d_fullres"]
    whole = replace(one, features=replace(one.features, window_size=(100, 120, 80), token_shifts=(1, 1, 1)))
    shifted = replace(whole, features=replace(whole.features, token_shifts=(2, 1, 2)))
    assert encoding_seconds(shifted, False, 2) == pytest.approx(4 * encoding_seconds(whole, False, 2))
    windows = replace(whole, features=replace(whole.features, window_size=(40, 40, 40), window_overlap=0.5))
    per_axis = (4, 5, 3)  # steps of 20 voxels: 0..60, 0..80, 0..40
    single = replace(windows, image=replace(windows.image, median_shape=(40, 40, 40)))
    assert encoding_seconds(windows, False, 2) == pytest.approx(np.prod(per_axis) * encoding_seconds(single, False, 2))
