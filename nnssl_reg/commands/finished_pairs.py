"""Which pairs a run before has finished in the same way, so that they need not be registered again."""

import json
import math
from pathlib import Path
from typing import Any

from nnssl_reg.evaluation.summary import PairResult, Scores
from nnssl_reg.imageio.json_files import from_dict, read_json
from nnssl_reg.imageio.pairs import Pair

DECIDING = ("features", "model_fingerprint", "diffeomorphic", "plans", "inputs")  # settings that change the result


def inputs_of(pair: Pair, volume: int | None) -> dict:
    """What goes into a pair, told apart by name, size and time of change of each file. Raises OSError for a missing file."""
    files, said = {}, {"volume": volume}
    for role, value in vars(pair).items():
        if isinstance(value, Path):
            state = value.stat()
            files[role] = {"name": value.name, "bytes": state.st_size, "modified_ns": state.st_mtime_ns}
        elif value is not None and role != "id":
            said[role] = value
    return {"files": files, **said}


def finished_result(folder: Path, pair: Pair, settings: dict, wanted: set[str]) -> PairResult | None:
    """The row of a pair whose sidecar tells the same settings and whose files are all there, else None.

    settings: those of this run, with the pair's "inputs"; wanted: names of files that the sidecar must list.
    """
    try:
        told = read_json(folder / f"{pair.id}.json")
        files, stored = told["files"], told["settings"]
        same = all(stored.get(name) == _as_json(settings[name]) for name in DECIDING)
        if not same or not wanted <= set(files) or not all((folder / name).is_file() for name in files.values()):
            return None
        scores, seconds = scores_from(told["scores"], pair.id), float(told["seconds"])
    except (ValueError, OSError, KeyError, TypeError, AttributeError):  # no sidecar, or none of this version's
        return None
    return PairResult(pair.id, str(pair.fixed), str(pair.moving), scores, seconds)


def scores_from(told: dict, name: str) -> Scores:
    """Scores from a sidecar, where null stands for NaN and "inf" for what is infinitely far."""
    by_label = {key: {label: math.nan if v is None else v for label, v in value.items()}
                for key, value in told.items() if isinstance(value, dict)}  # fmt: skip
    plain = {
        key: math.inf if value == "inf" else value for key, value in told.items() if value is not None and key not in by_label
    }
    return from_dict(Scores, plain | by_label, name)


def _as_json(value: Any) -> Any:
    return json.loads(json.dumps(value))
