"""The printed table of what was planned and why, and of what it will cost."""

import math
import shutil
import textwrap
from dataclasses import fields, is_dataclass

from nnssl_reg.planning.estimates import disk_bytes, encoding_seconds, preprocessing_seconds, training_hours, worker_bytes
from nnssl_reg.planning.fingerprint import Fingerprint
from nnssl_reg.planning.memory import GB, LARGE_GPU_GB, precision_for, predictions_gb
from nnssl_reg.planning.plans import ChannelPlan, Configuration, Plans
from nnssl_reg.planning.rules_image import DataSummary

_NAME, _VALUE = 38, 22  # columns


def table(plans: Plans) -> str:
    """Every choice of the first configuration with its reason, and of the others what differs from it."""
    width = max(120, shutil.get_terminal_size().columns)
    lines: list[str] = []
    first: Configuration | None = None
    for name, configuration in plans.configurations.items():
        lines += ["", f"{plans.dataset_name}, {name}" + ("" if first is None else ": as above, but")]
        for key, value in entries(configuration):
            if first is None or dict(entries(first))[key] != value:
                lines += _row(key, value, configuration.reasons.get(key, ""), width)
        first = first or configuration
    return "\n".join(lines)


def entries(configuration: Configuration) -> list[tuple[str, str]]:
    """("section.field", value as text) of a configuration, in pipeline order."""
    found = []
    for part in fields(configuration):
        section = getattr(configuration, part.name)
        if is_dataclass(section):
            found += [(f"{part.name}.{f.name}", _text(getattr(section, f.name))) for f in fields(section)]
    return found


def cost_table(plans: Plans, fingerprint: Fingerprint, gpu_memory_gb: float, gpu: bool, cores: int) -> str:
    """Predicted memory, time and disk of all that follows planning."""
    configurations = list(plans.configurations.values())
    extent = tuple(DataSummary.of(fingerprint).median_extent_mm)
    seconds = preprocessing_seconds(fingerprint, configurations, cores)
    disk, worker = disk_bytes(fingerprint, configurations) / GB, worker_bytes(fingerprint, configurations) / GB
    lines = [f"{plans.dataset_name}, predicted (within a factor of about two):"]
    lines.append(f"  preprocessing {_duration(seconds)} on {cores} cores, {worker:.1f} GB per process, {disk:.2f} GB on disk")
    gpu = gpu or gpu_memory_gb >= LARGE_GPU_GB
    machine = "a data-centre GPU" if gpu else f"{cores} CPU cores"
    for name, configuration in plans.configurations.items():
        memory = predictions_gb(configuration, extent, precision_for(gpu_memory_gb))
        hours = training_hours(configuration, gpu, cores)
        lines.append(f"  {name}: training {memory['training']:.1f} GB, {_duration(3600 * hours)} on {machine} for "
                     f"{configuration.pretraining.steps:,} steps")  # fmt: skip
        seconds = encoding_seconds(configuration, gpu, cores)
        lines.append(f"    encoding an image {memory['encoding a window']:.1f} GB, {_duration(seconds)}")
        lines.append(f"    registration with MIND {memory['registration (MIND)']:.1f} GB")
    return "\n".join(lines)


def _row(key: str, value: str, reason: str, width: int) -> list[str]:
    head = f"  {key:<{_NAME}} {value:<{_VALUE}} "
    room = width - _NAME - _VALUE - 4
    lines = textwrap.wrap(reason, room) or [""]
    if len(head) > _NAME + _VALUE + 4:  # a long value gets a line of its own
        return [head.rstrip(), *(" " * (_NAME + _VALUE + 4) + line for line in lines)]
    return [head + lines[0], *(" " * (_NAME + _VALUE + 4) + line for line in lines[1:])]


def _text(value) -> str:
    if isinstance(value, dict):
        return "; ".join(f"{key}: {_text(item)}" for key, item in value.items())
    if isinstance(value, ChannelPlan):
        bounds = "" if value.lower is None else f" {value.lower:g} to {value.upper:g}"
        return f"{value.name}, {value.normalization}{bounds}"
    if isinstance(value, tuple) and len(value) == 2:
        return f"{_text(value[0])} to {_text(value[1])}"
    if isinstance(value, tuple):
        return " x ".join(_text(item) for item in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, math.ceil(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
