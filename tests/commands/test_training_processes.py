"""Training by several processes from the command line: started here or by torchrun, stopped, and failing, as one."""

import atexit
import json
import os
import signal
import subprocess
import sys
import time
from argparse import Namespace
from pathlib import Path

import pytest
import torch

from nnssl_reg.commands.failed_cases import read_failures
from nnssl_reg.commands.training_processes import chosen_device, start_processes, torchrun_place
from nnssl_reg.pretraining.checkpoint import checkpoint_path, read_info
from nnssl_reg.pretraining.processes import Processes

PROGRAM = "from nnssl_reg.commands.entry import main; import sys; sys.exit(main(sys.argv[1:], 'nnssl_train_dino'))"
TOGETHER = [sys.executable, "-c", PROGRAM, "999", "--no_pbar", "-device", "cpu", "-num_gpus", "2"]


def started(*flags: str) -> subprocess.Popen:
    """Two processes that train."""
    return subprocess.Popen([*TOGETHER, *flags], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize(("flags", "told"), [
    ((), "2 processes (cpu)"),
    pytest.param(("--set", "pretraining.sharded=true"), "2 processes (cpu, weights in shares)", marks=pytest.mark.slow),
])  # fmt: skip
def test_two_processes_train_one_run_and_each_thing_is_said_once(trainable, flags, told):
    with started(*flags) as process:
        said, error = process.communicate(timeout=900)
    assert process.returncode == 0, error
    assert said.count("Finished after 4 steps") == 1 == said.count(told) == said.count("Best by the probe")
    assert (trainable / "pca_latest.png").exists()
    assert read_info(checkpoint_path(trainable, "final")).step == 4
    assert len(list(trainable.glob("training_log_*.txt"))) == 1
    assert not list(trainable.glob(".*partial*"))


@pytest.mark.slow
def test_ctrl_c_reaches_both_once_and_the_run_is_saved(trainable):
    with started("--set", "pretraining.steps=100000") as process:
        deadline = time.time() + 600
        while not checkpoint_path(trainable, "latest").exists() and time.time() < deadline:
            time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        said, error = process.communicate(timeout=300)
    assert process.returncode == 130, error
    assert said.count("Stopped by SIGINT") == 1 and "--continue" in said
    rows = [json.loads(line)["step"] for line in (trainable / "training_log.jsonl").read_text().splitlines()]
    assert read_info(checkpoint_path(trainable, "latest")).step >= rows[-1]


def test_what_goes_wrong_in_the_processes_is_said_once_and_ends_all(trainable, monkeypatch):
    trainable.parent.parent.mkdir(parents=True)
    trainable.parent.write_text("a file where the results should go")
    with started() as process:
        said, error = process.communicate(timeout=900)
    assert process.returncode == 1, error
    assert error.count("error: ") == 1 and str(trainable.parent) in error and "Traceback" not in error


def fails_and_cannot_leave_in_order(args, place):
    """Like a process group's threads, which abort about every tenth process that ends while they run."""
    atexit.register(os.abort)
    raise ValueError("the one thing that went wrong")


def test_a_process_that_failed_ends_with_its_own_exit_code():
    assert start_processes(fails_and_cannot_leave_in_order, Namespace(num_gpus=2, device="cpu", verbose=False)) == 1


def test_torchrun_tells_each_process_its_place(monkeypatch):
    args = Namespace(num_gpus=1, device="cpu")
    assert torchrun_place(args) is None
    told = {"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "a", "MASTER_PORT": "1"}
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    place = torchrun_place(args)
    assert (place.processes, place.meeting, place.device) == (Processes(3, 4), "env://", torch.device("cpu"))
    with pytest.raises(ValueError, match="leave it out"):
        torchrun_place(Namespace(num_gpus=2, device="cpu"))


def test_each_process_takes_a_gpu_of_its_own_and_too_few_are_said(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch, "empty", lambda *_, **__: None)
    assert [chosen_device("cuda", n, 2) for n in range(2)] == [torch.device("cuda", 0), torch.device("cuda", 1)]
    assert chosen_device("cuda:1", 0, 1) == torch.device("cuda", 1)
    with pytest.raises(ValueError, match="4 GPUs are asked for, but torch finds 2"):
        chosen_device("cuda", 0, 4)
    with pytest.raises(ValueError, match="each takes its own"):
        chosen_device("cuda:1", 0, 2)


@pytest.mark.slow
def test_torchrun_starts_the_console_script(trainable):
    script = Path(trainable.parents[2]) / "train.py"
    script.write_text(PROGRAM)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script), "999",
               "--no_pbar", "-device", "cpu"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Finished after 4 steps") == 1


@pytest.mark.slow
def test_what_any_process_cannot_read_is_recorded_and_the_cost_of_all_is_told(trainable, folders):
    cases = folders / "preprocessed" / trainable.parent.name / "nnsslPlans_3d_fullres"
    for i in range(6):
        (cases / f"Case_{i:04d}_0000.b2nd").write_bytes(b"nothing")
    with started("--set", "pretraining.steps=12") as process:
        said, error = process.communicate(timeout=900)
    assert process.returncode == 1 and said.count("Finished after 12 steps") == 1, error
    assert {row["step"] for row in read_failures(trainable)} == {"train", "train, process 1"}
    with started("--dry_run") as process:
        said, error = process.communicate(timeout=900)
    assert process.returncode == 0 and said.count("in each process") == 1 == said.count("Nothing was written."), error
