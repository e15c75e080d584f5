"""Cores and memory: a container's limits count, whichever version of control groups says them."""

import psutil
import pytest

from nnssl_reg.commands import machine


@pytest.fixture
def cgroup(tmp_path, monkeypatch):
    """cgroup(name=text): files of a control group, on a machine where this process may use 8 cores."""
    monkeypatch.setattr(machine, "CGROUP", tmp_path)
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)

    def write(**files: str) -> None:
        for name, text in files.items():
            path = tmp_path / name.replace("__", "/").replace("_max", ".max").replace("_current", ".current")
            path.parent.mkdir(exist_ok=True)
            path.write_text(text + "\n")

    return write


def test_without_a_limit_the_affinity_counts(cgroup):
    assert machine.usable_cores() == 8 and machine.granted_cores() is None
    cgroup(cpu_max="max 100000")
    assert machine.usable_cores() == 8 and machine.granted_cores() is None


@pytest.mark.parametrize(("quota", "cores"), [("250000 100000", 3), ("50000 100000", 1), ("6400000 100000", 8)])
def test_the_time_that_a_container_is_granted_bounds_the_cores(cgroup, quota, cores):
    cgroup(cpu_max=quota)
    assert machine.usable_cores() == cores


def test_limits_of_the_first_version_count_as_well(cgroup, tmp_path):
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("200000\n")
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    assert machine.usable_cores() == 2
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("-1\n")
    assert machine.usable_cores() == 8


def test_free_memory_is_what_the_container_leaves(cgroup):
    cgroup(memory_max="5000000", memory_current="2000000")
    assert machine.free_memory() == 3e6
    cgroup(memory_max="max")
    assert machine.free_memory() == pytest.approx(psutil.virtual_memory().available, rel=0.2)
