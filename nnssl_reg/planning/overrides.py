"""Changes to a configuration from the command line: --set section.name=value."""

import json
from dataclasses import fields, is_dataclass, replace
from difflib import get_close_matches
from typing import Any, TypeVar, get_type_hints

from nnssl_reg.imageio.json_files import from_dict
from nnssl_reg.planning.plans import PretrainingPlan

Sections = TypeVar("Sections")  # a Configuration, or another dataclass of sections and reasons


def apply_overrides(configuration: Sections, overrides: list[str]) -> Sections:
    """The configuration with "section.name=value" applied in order; values are read as the field's type.

    Tuples are written as 32,32,32 (or one number for all). Raises ValueError naming every unknown name, with the closest
    known ones, and every value that does not fit.
    """
    errors = []
    for override in overrides:
        try:
            configuration = _applied(configuration, override)
        except ValueError as error:
            errors.append(str(error))
    if errors:
        raise ValueError(" ".join(errors))
    return configuration


def with_steps(plan: PretrainingPlan, steps: int) -> PretrainingPlan:
    """The plan for another number of steps: the warm-up and the rise of the temperature keep their share of the run."""
    share = steps / plan.steps
    return replace(
        plan,
        steps=steps,
        steps_per_epoch=min(plan.steps_per_epoch, max(1, steps // 4)),
        warmup_steps=max(1, round(plan.warmup_steps * share)),
        teacher_temperature_steps=max(1, round(plan.teacher_temperature_steps * share)),
        gram_start_step=round(plan.gram_start_step * share),
    )


def _applied(configuration: Sections, override: str) -> Sections:
    name, equals, text = override.partition("=")
    name = name.strip()
    section, _, field = name.partition(".")
    known = _names(configuration)
    if not equals:
        raise ValueError(f"--set {override}: expected section.name=value, e.g. pretraining.steps=500.")
    if name not in known:
        close = get_close_matches(name, known, n=3, cutoff=0.5)
        offer = f"Did you mean {' or '.join(close)}?" if close else f"There are {', '.join(known)}."
        raise ValueError(f"--set {override}: the plans have no '{name}'. {offer}")
    part = getattr(configuration, section)
    value = _parsed(text.strip(), getattr(part, field))
    data = {f.name: getattr(part, f.name) for f in fields(part)}
    checked = from_dict(type(part), _listed({**data, field: value}), f"--set {override}")
    reason = f"Set to {text.strip()} on the command line."
    return replace(configuration, **{section: checked}, reasons={**configuration.reasons, name: reason})


def _names(configuration: Sections) -> list[str]:
    """All section.name that a command line can set: plain values and tuples, not nested tables."""
    sections = {f.name: getattr(configuration, f.name) for f in fields(configuration)}
    names = []
    for section, part in sections.items():
        if is_dataclass(part):
            hints = get_type_hints(type(part))
            names += [f"{section}.{f.name}" for f in fields(part) if "dict" not in str(hints[f.name])]
    return names


def _parsed(text: str, current: Any) -> Any:
    """The value in json's types; a tuple takes a,b,c, or one value for all its members, or [[a,b],[c,d]]; a word is text."""
    if isinstance(current, str):
        return text
    if isinstance(current, tuple) and isinstance(current[0], tuple):
        return _number(text)
    if isinstance(current, tuple):
        parts = [_number(part) for part in text.strip("()[]").replace(",", " ").split()]
        return parts * len(current) if len(parts) == 1 else parts
    return _number(text)


def _number(text: str) -> Any:
    """json's reading of a text, or the text itself; Python's spellings of true, false and none count too."""
    try:
        return json.loads({"True": "true", "False": "false", "None": "null"}.get(text, text))
    except json.JSONDecodeError:
        try:
            return float(text)  # 1e-3 is json, .5 and 1. are not
        except ValueError:
            return text


def _listed(data: Any) -> Any:
    """Tuples as lists and dataclasses as dicts: what from_dict reads."""
    if is_dataclass(data) and not isinstance(data, type):
        return {f.name: _listed(getattr(data, f.name)) for f in fields(data)}
    if isinstance(data, dict):
        return {key: _listed(value) for key, value in data.items()}
    return [_listed(value) for value in data] if isinstance(data, tuple | list) else data
