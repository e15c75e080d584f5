"""Truths about cases on a Dask cluster, here two workers in processes of their own: the same results, whoever is killed."""

import json
import os
import subprocess
import sys
import time

import pytest

from nnssl_reg.commands import dask_pool, phantom_dataset
from nnssl_reg.commands.case_pool import Task
from nnssl_reg.commands.dask_pool import DaskPool, pool_for
from nnssl_reg.commands.entry import main
from nnssl_reg.imageio.case_store import case_names, read_case

pytest.importorskip("distributed")
KILL_ITSELF = "__import__('os').kill(__import__('os').getpid(), 9)"  # the argument of eval, which any worker can import


def dask(*arguments: str) -> subprocess.Popen:
    # a case that has killed two workers is given up
    settings = {"DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "1", "DASK_DISTRIBUTED__WORKER__DAEMON": "True"}
    return subprocess.Popen(
        [sys.executable, "-m", "dask", *arguments, "--no-dashboard"], env={**os.environ, **settings},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip


@pytest.fixture(scope="module")
def scheduler(tmp_path_factory):
    """The address of a scheduler that has no workers yet, and the file that tells workers of it."""
    known = tmp_path_factory.mktemp("dask") / "scheduler.json"
    process = dask("scheduler", "--host", "127.0.0.1", "--port", "0", "--scheduler-file", str(known))
    try:
        for _ in range(600):
            if known.is_file() and known.stat().st_size:
                break
            time.sleep(0.1)
        yield json.loads(known.read_text())["address"], known
    finally:
        process.terminate()
        process.wait(30)


@pytest.fixture(scope="module")
def address(scheduler, tmp_path_factory):
    """The scheduler's address, once two workers have been started."""
    folder = tmp_path_factory.mktemp("workers")
    workers = dask("worker", "--scheduler-file", str(scheduler[1]), "--nthreads", "1", "--nworkers", "2",
                   "--memory-limit", "8GB", "--local-directory", str(folder))  # fmt: skip
    try:
        yield scheduler[0]
    finally:
        workers.terminate()
        workers.wait(30)


def tasks(*expressions: str) -> list[Task]:
    return [Task(f"case{i}", expression, 1.0) for i, expression in enumerate(expressions)]


def test_without_workers_the_message_says_how_to_start_one(scheduler, monkeypatch):
    monkeypatch.setattr(dask_pool, "WORKERS_SECONDS", 0.5)
    with pytest.raises(ConnectionError, match=f"no workers. Start some with `dask worker {scheduler[0]} --nthreads 1`"):
        DaskPool(scheduler[0], progress=False)


def test_values_and_errors_come_back_in_the_order_of_the_tasks(address):
    with DaskPool(address, progress=False) as pool:
        outcomes = pool.run(eval, tasks("1 + 1", "int('x')", "1 / 0", "4"), "counting")
        (pid,) = pool.run(eval, tasks("__import__('os').getpid()"), "asking")
    assert [o.value for o in outcomes] == [2, None, None, 4]
    assert "invalid literal" in outcomes[1].error and " (on " in outcomes[1].error
    assert outcomes[2].error.startswith("ZeroDivisionError") and pid.value != os.getpid()


def test_the_case_of_a_killed_worker_goes_to_another_one(address, tmp_path):
    flag = str(tmp_path / "killed")
    once = f"7 if __import__('os').path.exists({flag!r}) else (open({flag!r}, 'w').close(), {KILL_ITSELF})"
    with DaskPool(address, progress=False) as pool:
        outcomes = pool.run(eval, tasks("1", once, "3", "4"), "counting")
    assert [o.value for o in outcomes] == [1, 7, 3, 4] and os.path.exists(flag)


def test_a_case_that_kills_every_worker_is_named_and_the_rest_goes_on(address):
    with DaskPool(address, progress=False) as pool:
        outcomes = pool.run(eval, tasks("1", KILL_ITSELF, "3"), "counting")
    assert [o.value for o in outcomes] == [1, None, 3] and "workers that had it were killed" in outcomes[1].error


def test_a_case_too_large_for_every_worker_is_refused_with_both_numbers(address):
    with DaskPool(address, progress=False) as pool:
        outcomes = pool.run(eval, [Task("huge", "1", 9e9), Task("small", "2", 1e9)], "counting")
    assert "about 9.0 GB" in outcomes[0].error and "more than 8.0 GB" in outcomes[0].error and outcomes[1].value == 2


def test_a_cluster_preprocesses_as_one_machine_does(address, tmp_path, monkeypatch):
    monkeypatch.setattr(phantom_dataset, "SPACING_MM", {"CT": (15, 15, 16), "MR": (15, 16, 17)})
    phantom_dataset.write_phantom_dataset(tmp_path / "raw", 1, 2, 1, seed=0)
    found = []
    for flags in (["--dask", address], ["-np", "0", "-npfp", "0"]):
        folder = tmp_path / flags[0].strip("-")
        places = ["-raw", str(tmp_path / "raw"), "-preprocessed", str(folder)]
        assert main(["-d", "1", *places, *flags, "--no_pbar"], "nnssl_plan_and_preprocess") == 0
        cases = folder / "Dataset001_Phantom" / "nnsslPlans_3d_fullres"
        found.append({name: read_case(cases, name)[0].array.tobytes() for name in case_names(cases)})
    assert len(found[0]) == 3 and found[0] == found[1]


@pytest.mark.parametrize("wrong", ["tcp://127.0.0.1:1", "nonsense://x"])
def test_an_address_where_nobody_answers_is_named(wrong, monkeypatch):
    monkeypatch.setattr(dask_pool, "CONNECT_SECONDS", 0.5)
    with pytest.raises(ConnectionError, match=f"No Dask scheduler answers at {wrong}"):
        DaskPool(wrong)


def test_processes_of_this_machine_and_a_cluster_exclude_each_other():
    with pytest.raises(ValueError, match="leave them out"):
        pool_for(2, "tcp://127.0.0.1:8786", True)


@pytest.mark.parametrize(
    ("facts", "message"),
    [(("0.0.9", 1, 8e9), "has nnssl_reg 0.0.9, here it is"), ((None, 4, 8e9), "does 4 cases at a time.*--nthreads 1")],
)
def test_workers_that_cannot_do_the_work_are_named(facts, message):
    class Client:
        def wait_for_workers(self, *_, **__):
            pass

        def run(self, _):
            return {"tcp://worker:1": (facts[0] or dask_pool.version("nnssl_reg"), *facts[1:])}

    with pytest.raises(ValueError, match=message):
        dask_pool._checked(Client(), "tcp://scheduler:1")
