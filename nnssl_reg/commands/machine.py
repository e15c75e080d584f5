"""What this machine lends to the process: cores and memory, within the limits of a container where there is one."""

import math
import os
from pathlib import Path

import psutil

CGROUP = Path("/sys/fs/cgroup")


def usable_cores() -> int:
    """Cores that this process may use: its affinity, and the time that its control group grants, rounded up."""
    pinned = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    granted = granted_cores()
    return pinned if granted is None else max(1, min(pinned, math.ceil(granted)))


def granted_cores() -> float | None:
    """Cores' worth of time that the control group grants (version 2, then 1), None without a limit."""
    quota, period = (_words(CGROUP / "cpu.max") + ["", ""])[:2]
    if not quota:
        quota, period = (" ".join(_words(CGROUP / "cpu" / f"cpu.cfs_{name}_us")) for name in ("quota", "period"))
    return int(quota) / int(period) if quota.isdigit() and period.isdigit() and int(period) > 0 else None


def free_memory() -> float:
    """Bytes that can still be had, within the control group's limit (version 2, then 1)."""
    free = psutil.virtual_memory().available
    for limit, used in (("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes")):
        most, now = (" ".join(_words(CGROUP / name)) for name in (limit, used))
        if most.isdigit() and now.isdigit():
            return float(max(0, min(free, int(most) - int(now))))
    return float(free)


def _words(path: Path) -> list[str]:
    """The words of a small file of the system, none if it cannot be read."""
    try:
        return path.read_text().split()
    except (OSError, ValueError):
        return []
