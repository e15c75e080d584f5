"""Several processes: together they compute what one does with the joined batch, and they stop, go back and resume as one.

Weights that they hold in shares change none of that, nor what is written.
"""

import contextlib
import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from datetime import timedelta
from itertools import islice
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file

from nnssl_reg.imageio.case_store import case_names
from nnssl_reg.imageio.json_files import read_dataclass, write_json
from nnssl_reg.planning.plans import Configuration
from nnssl_reg.pretraining import trainer
from nnssl_reg.pretraining.case_groups import CaseGroup
from nnssl_reg.pretraining.checkpoint import checkpoint_path, newest_checkpoint, read_info
from nnssl_reg.pretraining.crop_loader import open_loader
from nnssl_reg.pretraining.probe import ProbeResult
from nnssl_reg.pretraining.processes import Processes, whole
from nnssl_reg.pretraining.trainer import Observer, steps, train
from nnssl_reg.pretraining.training_log import TrainingLog
from nnssl_reg.pretraining.training_state import Run, save, start

SIZE = 2
CASES = {
    "sinkhorn": {},
    "centre": {"centering": "centre", "loss_tokens": 3},
    "gram": {"gram_weight": 2.0, "gram_start_step": 1},
    "parts": {"global_crops": 1, "local_crops": 2, "local_crop_size": (4, 8, 4)},
    "uneven": {"batch_size": 6},  # three of six are masked: one process has two of them, the other one
    "shares": {"sharded": True},
    "shares_of_all": {"sharded": True, "gram_weight": 2.0, "gram_start_step": 1, "batch_size": 2, "centering": "centre",
                      "global_crops": 1, "local_crops": 2, "local_crop_size": (4, 8, 4)},
}  # fmt: skip
STEPS, HALF = 4, 2
FOLDERS = {"": {}, "shares_": {"sharded": True}}  # of whole runs, by what their names begin with


def with_plan(run: Run, **values) -> Run:
    """The run without stochastic depth, which each process draws for itself, and with other values in its plan."""
    network = replace(run.configuration.network, drop_path_rate=0.0)
    pretraining = replace(run.configuration.pretraining, **values)
    return replace(run, configuration=replace(run.configuration, network=network, pretraining=pretraining))


def a_few_steps(run: Run, name: str, folder: Path, origin: Path | None = None) -> None:
    """Train a few steps; the losses, and all tensors at the end, go to <name>_<processes>_<rank>.

    A checkpoint of half of them goes to a folder. origin: such a checkpoint, to go on from.
    """
    run, done, stem = with_plan(run, **CASES[name]), HALF if origin else 0, f"{name}_{run.processes.size}"
    state, loader, rows = start(run, origin, done), open_loader(run.window_request, done, 0), []
    for group in state.optimizer.param_groups:
        group["eps"] = 1e-3  # or AdamW would make whole steps of gradients that are 0 but for rounding
    for values, _, _ in islice(steps(run, state, loader), STEPS - done):
        rows.append(values)
        state.step += 1
        if state.step == HALF:
            save(run, state, folder / stem, "latest")
    stem = folder / f"{stem}_{run.processes.rank}{'_second_half' if origin else ''}"
    stem.with_suffix(".json").write_text(json.dumps(rows))
    moments = {f"moment.{n}": state.optimizer.state[p]["exp_avg"] for n, p in state.pair.student.named_parameters()}
    found = {key: whole(value).contiguous() for key, value in {**state.pair.state_dict(), **moments}.items()}
    save_file(found, stem.with_suffix(".safetensors"))
    if name == "shares":
        (folder / f"held_{run.processes.rank}.json").write_text(json.dumps(held(state)))


def held(state) -> dict[str, int]:
    """How many numbers this process holds."""
    student, teacher = list(state.pair.student.parameters()), state.pair.teacher.parameters()
    parts = {"student": student, "teacher": teacher, "moments": [state.optimizer.state[p]["exp_avg"] for p in student]}
    own = {of: sum(getattr(p, "to_local", lambda p=p: p)().numel() for p in tensors) for of, tensors in parts.items()}
    return {**own, "student in all": sum(p.numel() for p in student)}


def seen(encoder: torch.nn.Module) -> ProbeResult:
    """A number of an encoder, which the first of the processes asks for alone."""
    with torch.inference_mode():
        return ProbeResult(1.0, float(encoder(torch.ones(1, 1, 8, 8, 8)).patch_tokens.square().mean()), 1.0)


def go(run: Run, folder: Path, observer: Observer, resume: bool = False):
    """Train in a folder, anew or from its newest checkpoint, and probe; the state at the end."""
    folder.mkdir(exist_ok=True)
    path, info = newest_checkpoint(folder) if resume else (None, None)
    run.processes.wait(run.device)
    state = start(run, path, info.step if info else 0)
    train(run, state, folder, TrainingLog(folder, print, silent=not run.processes.first), observer, seen)
    return state


def break_down(run: Run, folder: Path) -> None:
    """Train while the teacher of the second process loses its mind after step 5; the way back goes to <folder>_<rank>.json."""
    left, state, rank = [1], start(run), run.processes.rank

    def harm(step: int, loss: float) -> None:
        if rank == 1 and step == 5 and left.pop():
            state.pair.teacher.encoder.eva.norm.weight.data.fill_(math.nan)
            left.append(0)

    folder.mkdir(exist_ok=True)
    log = TrainingLog(folder, print, silent=rank > 0)
    train(run, state, folder, log, Observer(on_step=harm))
    Path(f"{folder}_{rank}.json").write_text(json.dumps([(r.step, r.back_to) for r in state.recoveries]))


def be_one_of_them(rank: int, folder: Path) -> None:
    """What each of the processes does: all that the tests look at, because starting them takes the most time."""
    torch.set_num_threads(1)
    trainer.mixed_precision, trainer.LOG_STEPS = lambda device: contextlib.nullcontext(), 2
    dist.init_process_group("gloo", f"file://{folder / 'meeting'}", timedelta(minutes=15), SIZE, rank)
    configuration, cases = read_dataclass(Configuration, folder / "plan.json"), folder / "cases"
    groups = (CaseGroup(cases, tuple(case_names(cases))),)
    run = Run(configuration, "3d_fullres", "Dataset999_Waves", groups, 3, torch.device("cpu"),
              Processes(rank, SIZE))  # fmt: skip
    for name in CASES:
        a_few_steps(run, name, folder)
    a_few_steps(run, "shares_of_all", folder, checkpoint_path(folder / "shares_of_all_1", "latest"))
    for name, changes in FOLDERS.items():
        run = with_plan(run, **changes)
        straight, broken = folder / f"{name}straight", folder / f"{name}broken"
        epochs = {"on_epoch": lambda state, log: seen(state.pair.teacher.encoder)} if rank == 0 else {}
        go(run, straight, Observer(**epochs))
        go(run, broken, Observer(should_stop=lambda: rank == 1))  # a signal may reach one of them only
        (folder / f"{name}stopped_{rank}.json").write_text(str(newest_checkpoint(broken)[1].step))
        go(run, broken, Observer(), resume=True)
        break_down(with_plan(run, steps=8, steps_per_epoch=2), folder / f"{name}back")
    dist.destroy_process_group()
    sys.stdout.flush()
    os._exit(0)  # what still holds the group may abort an ordinary exit, by its threads


@pytest.fixture(scope="module")
def shared(run_of_module) -> tuple[Run, Path]:
    """A run, and the folder in which two processes have left what they found."""
    folder = run_of_module.groups[0].folder.parent
    write_json(folder / "plan.json", run_of_module.configuration)
    for name in CASES:
        alone(a_few_steps, run_of_module, name, folder)
    started = [subprocess.Popen([sys.executable, __file__, str(rank), str(folder)], stdout=subprocess.PIPE,
                                stderr=subprocess.STDOUT, text=True) for rank in range(SIZE)]  # fmt: skip
    said = [process.communicate(timeout=900)[0] for process in started]
    assert [process.returncode for process in started] == [0] * SIZE, "\n".join(said)
    return run_of_module, folder


def alone(work, *args) -> None:
    """Work done by this process, as exactly as by those it is compared with."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "mixed_precision", lambda device: contextlib.nullcontext())
        work(*args)


@pytest.mark.parametrize("name", CASES)
def test_two_processes_compute_what_one_does_with_the_joined_batch(shared, name):
    run, folder = shared
    alone, *together = (json.loads((folder / f"{name}_{n}.json").read_text()) for n in ("1_0", "2_0", "2_1"))
    for rows in together:
        for row, expected in zip(rows, alone, strict=True):
            assert row == pytest.approx(expected, rel=1e-4)
    alone, *together = (load_file(folder / f"{name}_{n}.safetensors") for n in ("1_0", "2_0", "2_1"))
    for key, value in alone.items():
        assert torch.equal(together[0][key], together[1][key]), key
        torch.testing.assert_close(together[0][key], value, rtol=1e-4, atol=1e-6, msg=key)
    before = start(with_plan(run, **CASES[name])).pair.state_dict()
    assert (
        max(float((alone[key].float() - value.float()).abs().max()) for key, value in before.items()) > 1e-4
    )  # there was something to learn


@pytest.mark.parametrize("kind", FOLDERS)
def test_a_run_of_two_processes_that_one_signal_stopped_resumes_bit_for_bit(shared, kind):
    _, folder = shared
    assert [(folder / f"{kind}stopped_{rank}.json").read_text() for rank in range(SIZE)] == ["1", "1"]
    straight, resumed = (load_file(checkpoint_path(folder / f"{kind}{name}", "final")) for name in ("straight", "broken"))
    assert straight.keys() == resumed.keys()
    assert all(torch.equal(value, resumed[key]) for key, value in straight.items())


@pytest.mark.parametrize("kind", FOLDERS)
def test_one_process_goes_on_with_the_run_of_two(shared, kind):
    run, folder = shared
    path, info = newest_checkpoint(folder / f"{kind}straight")
    longer = replace(run, configuration=replace(run.configuration, pretraining=replace(info.pretraining, steps=info.step + 2)))
    assert go(longer, folder / f"{kind}straight", Observer(), resume=True).step == info.step + 2 == 8
    assert path == checkpoint_path(folder / f"{kind}straight", "final")


def test_what_was_begun_in_shares_is_ended_by_one_process_and_the_reverse(shared):
    run, folder = shared
    alone(a_few_steps, run, "shares_of_all", folder, checkpoint_path(folder / "shares_of_all_2", "latest"))
    for end in ("json", "safetensors"):
        read = load_file if end == "safetensors" else lambda path: {"rows": json.loads(path.read_text())[-HALF:]}
        expected = read(folder / f"shares_of_all_1_0.{end}")
        for half in ("1_0", "2_0", "2_1"):
            found = read(folder / f"shares_of_all_{half}_second_half.{end}")
            assert found.keys() == expected.keys()
            for key, value in expected.items():
                torch.testing.assert_close(found[key], value, rtol=1e-4, atol=1e-6, msg=key)


def test_a_checkpoint_of_shares_has_the_format_of_one_process(shared):
    _, folder = shared
    ours, expected = (load_file(checkpoint_path(folder / f"shares_of_all_{size}", "latest")) for size in (2, 1))
    assert {key: (value.shape, value.dtype) for key, value in ours.items()} == {
        key: (value.shape, value.dtype) for key, value in expected.items()}  # fmt: skip


def test_two_processes_hold_half_of_the_weights_moments_and_teacher_each(shared):
    _, folder = shared
    held = [json.loads((folder / f"held_{rank}.json").read_text()) for rank in range(SIZE)]
    for of in ("student", "teacher", "moments"):
        assert sum(each[of] for each in held) == held[0]["student in all"]
        assert all(0.4 < each[of] / each["student in all"] < 0.6 for each in held)


def test_the_first_process_probes_the_whole_teacher_and_keeps_the_best(shared):
    run, folder = shared
    path = checkpoint_path(folder / "shares_broken", "best")
    info = read_info(path)
    assert info.step == 6 and seen(start(run, path, 6).pair.teacher.encoder).recall == pytest.approx(info.probe_recall)
    probed = [row["step"] for row in TrainingLog(folder / "shares_straight", print).rows if "probe_recall" in row]
    assert probed[:2] == [0, 6]


@pytest.mark.parametrize("kind", FOLDERS)
def test_where_one_process_breaks_down_both_go_back_to_the_same_step(shared, kind):
    _, folder = shared
    assert [json.loads((folder / f"{kind}back_{rank}.json").read_text()) for rank in range(SIZE)] == [[[6, 4]], [[6, 4]]]
    assert len(read_info(checkpoint_path(folder / f"{kind}back", "final")).recoveries) == 1


def test_only_the_first_process_writes_and_its_rows_are_of_the_whole_batch(shared):
    run, folder = shared
    assert len(list((folder / "straight").glob("training_log_*.txt"))) <= 2  # one of two processes, one of going on alone
    rows = [json.loads(line) for line in (folder / "straight" / "training_log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows][:4] == [0, 2, 4, 6]
    assert all(0 < row["spread_between"] < 2 and row["effective_rank"] > 1 for row in rows[1:])


if __name__ == "__main__":
    be_one_of_them(int(sys.argv[1]), Path(sys.argv[2]))
