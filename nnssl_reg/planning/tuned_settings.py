"""Registration settings found by tuning: a file of values with their scores, and the plans that they change."""

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from nnssl_reg.imageio.json_files import from_dict, read_json
from nnssl_reg.planning.overrides import apply_overrides

SETTINGS_VERSION = 1
Sections = TypeVar("Sections")  # a Configuration, or another dataclass of sections and reasons


@dataclass(frozen=True)
class TunedSettings:
    """What tuned_settings.json holds. features: the kind that it was tuned with; values: "section.name" -> value; reason: how
    they were found, in one sentence; scores: of the values and of the planned ones."""

    features: str
    values: dict[str, Any]
    reason: str
    scores: dict[str, Any] = field(default_factory=dict)
    version: int = SETTINGS_VERSION


def read_settings(path: str | Path) -> TunedSettings:
    """The settings of a file. Raises ValueError or OSError for one that is missing or is something else."""
    data = read_json(Path(path))
    if not isinstance(data, dict) or "values" not in data:
        raise ValueError(
            f"{path} holds no tuned settings; expected is the tuned_settings.json that nnssl_tune_registration wrote."
        )
    if data.get("version") != SETTINGS_VERSION:
        raise ValueError(f"{path} has version {data.get('version')}, this program reads {SETTINGS_VERSION}; tune again.")
    return from_dict(TunedSettings, data, str(path))


def with_tuned(plans: Sections, values: dict[str, Any], reason: str, where: str = "tuned settings") -> Sections:
    """Plans with values of "section.name", and the reason for each. where: the file, for messages.

    Raises ValueError for names that the plans do not have and values that do not fit.
    """
    try:
        changed = apply_overrides(plans, [f"{name}={_text(value)}" for name, value in values.items()])
    except ValueError as error:
        raise ValueError(f"{where}: {str(error).replace('--set ', '')}") from error
    return replace(changed, reasons={**plans.reasons, **dict.fromkeys(values, reason)})


def _text(value: Any) -> str:
    return json.dumps(value) if isinstance(value, (list, tuple)) else str(value)
