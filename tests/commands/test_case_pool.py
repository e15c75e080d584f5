"""Truths about running cases in processes: a killed one is named, the rest goes on, memory bounds their number."""

import os

import pytest

from nnssl_reg.commands import case_pool
from nnssl_reg.commands.case_pool import CasePool, Task, workers_for

KILL_ITSELF = "__import__('os').kill(__import__('os').getpid(), 9)"  # the argument of eval, which any worker can import


def tasks(*expressions: str, size: float = 1.0) -> list[Task]:
    return [Task(f"case{i}", expression, size, "Buy memory.") for i, expression in enumerate(expressions)]


def test_values_and_errors_come_back_in_the_order_of_the_tasks():
    with CasePool(0, progress=False) as pool:
        outcomes = pool.run(eval, tasks("1 + 1", "int('x')", "1 / 0", "4"), "counting")
    assert [o.value for o in outcomes] == [2, None, None, 4]
    assert "invalid literal" in outcomes[1].error and outcomes[2].error.startswith("ZeroDivisionError")


def test_a_killed_worker_names_its_case_and_the_rest_goes_on_in_the_same_pool():
    with CasePool(2, progress=False) as pool:
        outcomes = pool.run(eval, tasks("1", KILL_ITSELF, "3", "4", "5"), "counting")
        assert [o.value for o in outcomes] == [1, None, 3, 4, 5]
        assert "was killed" in outcomes[1].error and "GB" in outcomes[1].error
        pids = {o.value for o in pool.run(eval, tasks("__import__('os').getpid()"), "asking")}
    assert pids and os.getpid() not in pids


def test_a_case_that_cannot_fit_the_memory_is_refused_with_both_numbers_and_the_way_out(monkeypatch):
    monkeypatch.setattr(case_pool, "free_memory", lambda: 4e9)
    huge, small = Task("huge", "1", 9e9, "Buy memory."), Task("small", "2", 1e9)
    with CasePool(0, progress=False) as pool:
        outcomes = pool.run(eval, [huge, small], "counting")
    assert outcomes[0].error == "it needs about 9.0 GB of memory, 4.0 GB are free. Buy memory." and outcomes[1].value == 2


def test_there_are_no_more_workers_than_memory_cores_and_wish_allow(monkeypatch):
    monkeypatch.setattr(case_pool, "free_memory", lambda: 10e9)
    assert workers_for(tasks("1", size=2e9), most=16) == 4  # 0.8 of the free memory
    assert workers_for(tasks("1", size=2e9), most=3) == 3
    assert workers_for(tasks("1", size=9.9e9), most=16) == 1


def test_what_cases_log_reaches_the_console_once_and_not_without_end(caplog):
    say = "__import__('logging').getLogger('nnssl_reg').warning('odd header')"
    with CasePool(0, progress=False) as pool:
        pool.run(eval, tasks(*[say] * 15), "counting")
    assert [r.getMessage() for r in caplog.records].count("odd header") == 10
    assert "5 more messages" in caplog.text


def test_a_negative_number_of_processes_is_refused():
    with pytest.raises(ValueError, match="at least 0"):
        CasePool(-1)
