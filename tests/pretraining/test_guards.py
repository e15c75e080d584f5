"""Guards: a run that breaks down goes back, gentler each time, remembers it, and stops at last; the probe chooses the best."""

import math
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from nnssl_reg.pretraining import trainer
from nnssl_reg.pretraining.checkpoint import checkpoint_path, newest_checkpoint, read_info
from nnssl_reg.pretraining.guards import best_probe
from nnssl_reg.pretraining.monitors import Health
from nnssl_reg.pretraining.probe import ProbeResult
from nnssl_reg.pretraining.recovery import gentler
from nnssl_reg.pretraining.trainer import Observer, train
from nnssl_reg.pretraining.training_log import TrainingLog
from nnssl_reg.pretraining.training_state import save, start


@pytest.fixture
def short_run(run, change, monkeypatch):
    """Sixteen steps, a row of the log and a checkpoint every four."""
    monkeypatch.setattr(trainer, "LOG_STEPS", 4)
    return change(run, steps=16, steps_per_epoch=4)


def go(run, folder, state=None, observer=None, probe=None):
    """Train in a folder; the state, the log, and what was said."""
    folder.mkdir(exist_ok=True)
    said = []
    log = TrainingLog(folder, said.append)
    state = start(run) if state is None else state
    train(run, state, folder, log, observer or Observer(), probe)
    return state, log, said


def with_nan(state) -> None:
    next(state.pair.student.encoder.parameters()).data.fill_(math.nan)


def collapsed(state) -> None:
    """All tokens become equal."""
    for network in (state.pair.student, state.pair.teacher):
        network.encoder.eva.norm.weight.data.zero_()


def breaking(state, harm, at: int, times: int = 99, **others) -> Observer:
    """An observer that harms the state after step `at`, as often as that step is reached, up to `times`."""
    left = [times]

    def on_step(step, loss):
        if step == at and left[0]:
            left[0] -= 1
            harm(state)

    return Observer(on_step=on_step, **others)


@pytest.mark.parametrize(("harm", "at", "found_at", "reason"), [(with_nan, 9, 10, "masked_loss nan"),
                                                               (collapsed, 11, 12, "effective_rank 0")])  # fmt: skip
def test_a_run_that_breaks_down_goes_back_to_the_last_good_checkpoint_with_a_gentler_setting(
    short_run, tmp_path, harm, at, found_at, reason
):
    state = start(short_run)
    _, log, said = go(short_run, tmp_path, state, breaking(state, harm, at, times=1))
    assert state.step == 16
    (recovery,) = state.recoveries
    assert (recovery.step, recovery.back_to) == (found_at, 8) and reason in recovery.reason
    (line,) = [line for line in said if "red" in line]
    assert line.startswith(f"step {found_at}: red (") and "Going back to step 8 (checkpoint_latest)" in line
    assert "recovery 1 of 3" in line
    assert [row["step"] for row in log.rows] == [4, 8, 12, 16]
    rates = [row["learning_rate"] for row in log.rows]
    untouched = [row["learning_rate"] for row in go(short_run, tmp_path / "straight")[1].rows]
    assert rates[:2] == untouched[:2] and rates[2:] == pytest.approx([rate / 2 for rate in untouched[2:]])
    assert all(p.isfinite().all() for p in state.pair.parameters()) and log.rows[-1]["effective_rank"] > 2


@pytest.mark.parametrize(("harm", "at"), [(with_nan, 9), (collapsed, 11)])
def test_after_the_third_return_it_stops_with_advice_and_a_resumed_run_has_not_forgotten(short_run, tmp_path, harm, at):
    state = start(short_run)
    message = r"broke down in step \d+: .*3 times.*the last good checkpoint is .*batch_size"
    with pytest.raises(ValueError, match=message):
        go(short_run, tmp_path, state, breaking(state, harm, at))
    path, info = newest_checkpoint(tmp_path)
    assert [recovery.back_to for recovery in info.recoveries] == [8, 4, 4]  # what did not help is not tried again first
    assert info.pretraining == short_run.configuration.pretraining  # what was planned is not forgotten
    resumed = start(short_run, path, info.step)
    assert resumed.plan == gentler(short_run.configuration.pretraining, 3)
    with pytest.raises(ValueError, match=message):
        go(short_run, tmp_path, resumed, breaking(resumed, harm, at))


def test_a_rate_that_is_far_too_high_ends_in_recoveries_or_advice_and_never_in_broken_weights(short_run, change, tmp_path):
    run = change(short_run, learning_rate=1e18, final_learning_rate=1e18, warmup_steps=1)
    with pytest.raises(ValueError, match="3 times"):
        go(run, tmp_path)
    for path in tmp_path.glob("checkpoint_*.safetensors"):
        assert all(value.isfinite().all() for value in load_file(path).values())


def test_without_any_checkpoint_it_begins_anew(short_run, tmp_path):
    state = start(short_run)
    _, _, said = go(short_run, tmp_path, state, breaking(state, with_nan, 2, times=1))
    assert state.step == 16 and state.recoveries[0].back_to == 0
    assert any("Going back to the start" in line for line in said)


def test_stopping_and_resuming_after_a_recovery_equals_going_on_bit_for_bit(short_run, tmp_path):
    straight = start(short_run)
    go(short_run, tmp_path / "straight", straight, breaking(straight, with_nan, 9, times=1))
    broken = start(short_run)
    stop = breaking(broken, with_nan, 9, times=1, should_stop=lambda: len(broken.recoveries) > 0 and broken.step == 11)
    go(short_run, tmp_path / "broken", broken, stop)
    path, info = newest_checkpoint(tmp_path / "broken")
    assert info.step == 11 and len(info.recoveries) == 1
    resumed, _, _ = go(short_run, tmp_path / "broken", start(short_run, path, info.step))
    assert resumed.recoveries == straight.recoveries
    expected = straight.pair.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in resumed.pair.state_dict().items())


def test_steps_done_before_a_recovery_are_not_gone_on_from(short_run, tmp_path):
    state = start(short_run)
    harm = breaking(state, collapsed, 15, times=1, should_stop=lambda: len(state.recoveries) > 0)
    save(short_run, replace_step(state, 12, "yellow"), tmp_path, "final")  # later than where it will go back to
    save(short_run, replace_step(state, 8, "green"), tmp_path, "latest")
    go(short_run, tmp_path, replace_step(state, 14, "green"), harm)
    path, info = newest_checkpoint(tmp_path)
    assert (path.stem, info.step, len(info.recoveries)) == ("checkpoint_latest", 9, 1)


def replace_step(state, step: int, light: str):
    state.step, state.health = step, Health(light)
    return state


def test_each_recovery_halves_the_rate_and_slows_the_temperature_down(plan):
    once, twice = gentler(plan, 1), gentler(plan, 2)
    assert gentler(plan, 0) == plan
    assert (once.learning_rate, twice.learning_rate) == (plan.learning_rate / 2, plan.learning_rate / 4)
    assert once.teacher_temperature == plan.teacher_temperature
    assert once.final_teacher_temperature == pytest.approx((plan.teacher_temperature + plan.final_teacher_temperature) / 2)
    assert twice.teacher_temperature_steps == 4 * plan.teacher_temperature_steps
    assert gentler(replace(plan, centering="centre"), 1).centering == "sinkhorn"


def test_the_checkpoint_of_the_best_probe_is_kept(short_run, tmp_path, monkeypatch):
    results = iter([ProbeResult(9.0, 0.9, 9.0), *(ProbeResult(5.0 - r, r, 9.0) for r in (0.2, 0.4, 0.3, 0.1))])
    monkeypatch.setattr("nnssl_reg.pretraining.probe.SECONDS_BETWEEN", 0.0)
    monkeypatch.setattr("nnssl_reg.pretraining.probe.TIME_SHARE", math.inf)
    _, log, said = go(short_run, tmp_path, probe=lambda encoder: next(results))
    best = read_info(checkpoint_path(tmp_path, "best"))
    assert (best.step, best.probe_recall, best.probe_error_mm) == (8, 0.4, 4.6)  # that of an untrained network does not count
    assert [row["probe_recall"] for row in log.rows] == [0.9, 0.2, 0.4, 0.3, 0.1]
    assert log.rows[0]["step"] == 0 and log.trained["step"] == 16
    assert any("40.0% within one token" in line for line in said)
    assert newest_checkpoint(tmp_path)[1].step == 16
    assert best_probe(tmp_path) == (0.4, -4.6)
    checkpoint_path(tmp_path, "best").write_bytes(b"broken")
    assert best_probe(tmp_path) is None


def test_a_probe_leaves_the_training_as_it_would_have_been(short_run, tmp_path):
    def probe(encoder):
        torch.rand(3)
        return ProbeResult(1.0, 0.5, 2.0)

    without, _, _ = go(short_run, tmp_path / "without")
    probed, _, _ = go(short_run, tmp_path / "with", probe=probe)
    expected = without.pair.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in probed.pair.state_dict().items())


def test_every_line_of_an_epoch_begins_with_the_light_and_its_reason(short_run, change, tmp_path):
    run = change(short_run, gradient_clip=1e-6)  # every gradient is far longer
    _, _, said = go(run, tmp_path)
    lines = [line for line in said if "loss class" in line]
    assert len(lines) == 4 and all(line.startswith("yellow (gradients are far longer") for line in lines)
    assert read_info(checkpoint_path(tmp_path, "latest")).light == "yellow"
    assert sum(line.startswith("step 4: yellow") for line in said) == 1  # the change itself is said once
