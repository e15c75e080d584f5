"""Training: exact resumption, stopping, and what a breakdown says."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from nnssl_reg.pretraining.checkpoint import checkpoint_path, newest_checkpoint, read_info
from nnssl_reg.pretraining.crop_loader import open_loader
from nnssl_reg.pretraining.measure import measure
from nnssl_reg.pretraining.trainer import Observer, learn, train, views_of
from nnssl_reg.pretraining.training_log import TrainingLog
from nnssl_reg.pretraining.training_state import Run, seed_of, start


def go(run: Run, folder: Path, observer: Observer | None = None, checkpoint: Path | None = None, step: int = 0):
    """Train in a folder; the state and whether it finished."""
    folder.mkdir(exist_ok=True)
    log = TrainingLog(folder, lambda text: None)
    log.forget_after(step)
    state = start(run, checkpoint, step)
    return state, train(run, state, folder, log, observer or Observer())


def after(steps: int) -> Observer:
    """An observer that stops a run after some steps."""
    done = []
    return Observer(on_step=lambda step, loss: done.append(step), should_stop=lambda: len(done) >= steps)


def everything(state) -> dict[str, torch.Tensor]:
    moments = {f"{name}.{key}": value for name, p in state.pair.student.named_parameters()
               for key, value in state.optimizer.state[p].items()}  # fmt: skip
    return {**state.pair.state_dict(), **moments}


@pytest.mark.parametrize("changes", [{}, {"centering": "centre", "workers": 1},
                                     {"gram_weight": 2.0, "gram_start_step": 1}])  # fmt: skip
def test_stopping_and_resuming_equals_an_uninterrupted_run_bit_for_bit(run, change, tmp_path, changes):
    run = change(run, **changes)
    straight, finished = go(run, tmp_path / "straight")
    assert finished and straight.step == 6

    _, finished = go(run, tmp_path / "broken", after(2))
    assert not finished
    path, info = newest_checkpoint(tmp_path / "broken")
    assert info.step == 2
    torch.rand(5)  # the global random state is none of its business
    resumed, finished = go(run, tmp_path / "broken", checkpoint=path, step=info.step)
    assert finished and resumed.step == 6
    expected = everything(straight)
    for name, value in everything(resumed).items():
        assert torch.equal(value, expected[name]), name


def test_another_seed_gives_other_weights(run, tmp_path):
    first, second = (everything(go(replace(run, seed=seed), tmp_path / str(seed), after(1))[0]) for seed in (3, 4))
    assert not torch.equal(first["student.patch_head.prototypes"], second["student.patch_head.prototypes"])


def test_a_run_leaves_its_checkpoints_and_a_log_of_all_its_steps(run, tmp_path):
    epochs = []
    go(run, tmp_path / "run", Observer(on_epoch=lambda state, log: epochs.append(state.step)))
    assert epochs == [3, 6]
    assert {name: read_info(checkpoint_path(tmp_path / "run", name)).step for name in ("latest", "previous", "final")} == {
        "latest": 6, "previous": 3, "final": 6}  # fmt: skip
    log = TrainingLog(tmp_path / "run", print)
    assert [row["step"] for row in log.rows] == [6]
    row = log.rows[0]
    assert row["log_prototypes"] == pytest.approx(math.log(32))
    most = 2 / run.configuration.pretraining.student_temperature + math.log(32)  # cosines lie between -1 and 1
    assert 0 < row["masked_loss"] < most and row["effective_rank"] > 1
    assert "ln K 3.466" in next((tmp_path / "run").glob("training_log_*.txt")).read_text()


def test_a_finished_run_that_gets_more_steps_goes_on_as_if_it_had_never_left_memory(run, change, tmp_path):
    longer = change(run, steps=9)
    state, _ = go(run, tmp_path / "memory")
    train(longer, replace_plan(state, longer), tmp_path / "memory", TrainingLog(tmp_path / "memory", print), Observer())
    go(run, tmp_path / "run")
    path, info = newest_checkpoint(tmp_path / "run")
    extended, finished = go(longer, tmp_path / "run", checkpoint=path, step=info.step)
    assert finished and extended.step == 9 == newest_checkpoint(tmp_path / "run")[1].step
    expected = everything(state)
    assert all(torch.equal(value, expected[name]) for name, value in everything(extended).items())


def replace_plan(state, run: Run):
    state.pair.plan = run.configuration.pretraining
    return state


def test_training_lowers_the_loss_of_visible_tokens(run, change, tmp_path):
    run = change(run, steps=60, steps_per_epoch=60, warmup_steps=5, learning_rate=5e-3, final_learning_rate=1e-3,
                 intensity_strength=0.3, layer_decay=1.0, final_teacher_temperature=0.04, class_weight=0.1)  # fmt: skip
    go(run, tmp_path / "run")
    rows = TrainingLog(tmp_path / "run", print).rows
    assert rows[-1]["visible_loss"] < rows[0]["visible_loss"] - 0.3
    assert rows[-1]["visible_loss"] < math.log(32) - 0.2


def test_a_damaged_case_is_left_out_and_said_once(run, change, tmp_path):
    (group,) = run.groups
    (group.folder / f"{group.names[0]}.b2nd").write_bytes(b"nothing")
    (tmp_path / "run").mkdir()
    said = []
    log = TrainingLog(tmp_path / "run", said.append)
    assert train(change(run, workers=1), start(run), tmp_path / "run", log, Observer())
    assert [line for line in said if "left out" in line] == [f"{group.folder / group.names[0]} is left out: "
                                                             f"{log.left_out[str(group.folder / group.names[0])]}"]  # fmt: skip


def test_a_worker_that_finds_nothing_to_read_is_said(run, change, tmp_path, capfd):
    for name in run.groups[0].names:
        (run.groups[0].folder / f"{name}.b2nd").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="process that reads the cases died"):
        go(change(run, workers=1), tmp_path / "run")
    assert run.groups[0].names[0] in capfd.readouterr().err


def test_the_cost_is_measured_without_leaving_anything(run, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    cost = measure(run, seconds=0)
    assert cost.seconds_per_step > 0 and cost.gpu_bytes is None
    go(run, tmp_path / "run", after(1))
    assert cost.checkpoint_bytes == pytest.approx(checkpoint_path(tmp_path / "run", "latest").stat().st_size, rel=0.1)
    assert before == sorted(p for p in before if p.exists())


def test_the_cost_of_a_step_is_the_time_of_steps_with_their_reading_after_the_first_two(run, monkeypatch):
    clock, waits = [0.0], iter([9.0, 5.0, *[3.5] * 30])  # seconds of each step: the first ones are slow

    def slow_steps(*_):
        for seconds in waits:
            clock[0] += seconds
            yield

    monkeypatch.setattr("nnssl_reg.pretraining.measure.steps", slow_steps)
    monkeypatch.setattr("nnssl_reg.pretraining.measure.time.perf_counter", lambda: clock[0])
    assert measure(run).seconds_per_step == pytest.approx(3.5)
    assert len(list(waits)) == 30 - 3  # three steps were enough for the ten seconds


def test_seeds_of_steps_differ():
    seeds = {seed_of(seed, step) for seed in range(3) for step in range(-1, 50)}
    assert len(seeds) == 3 * 51


def test_a_step_that_is_not_finite_leaves_the_weights_as_they_were(run):
    state, loader = start(run), open_loader(run.window_request, 0, 0)
    good, _ = views_of(run, state, loader, 0)
    bad = replace(good, student=good.student * math.nan)
    before = [p.detach().clone() for p in state.pair.student.parameters()]
    values, _ = learn(run, state, bad)
    assert not math.isfinite(float(values["total"]))
    assert all(torch.equal(a, b) for a, b in zip(before, state.pair.student.parameters()))
    values, _ = learn(run, state, good)
    assert math.isfinite(float(values["total"]))
    assert not all(torch.equal(a, b) for a, b in zip(before, state.pair.student.parameters()))
