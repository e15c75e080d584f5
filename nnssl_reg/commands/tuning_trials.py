"""Trials of settings on pairs, each logged at once in tuning_log.json and never made twice."""

import json
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from nnssl_reg.commands.pair_features import FeatureStore
from nnssl_reg.commands.pair_reader import read_pair
from nnssl_reg.commands.register_pair import deform_pair
from nnssl_reg.commands.registration_setup import Setup
from nnssl_reg.commands.tuning_pairs import TuningPair
from nnssl_reg.evaluation.tuning_score import Measure, PairScore, judged
from nnssl_reg.imageio.json_files import from_dict, read_json, write_json
from nnssl_reg.planning.image_plan import RegistrationSettings
from nnssl_reg.planning.tuned_settings import with_tuned
from nnssl_reg.registration.affine_init import InitialAlignment

LOG_VERSION = 1
KEPT_STORES = 2  # of features: those of the best values so far, and those on trial
ENOUGH_PAIRS = 3  # after which a trial that is clearly worse than the best one is given up
CLEARLY = 2.0  # standard errors
PAIR_ERRORS = (ValueError, RuntimeError, MemoryError)  # of settings that a pair cannot be registered with


@dataclass(frozen=True)
class Trial:
    """Values and what they gave. part: "tuning" or "held_out"; objective: mean over the pairs, more is better (of a trial that
    was given up: the best one's plus the difference on the pairs seen); None where a pair failed, then error says why."""

    part: str
    values: dict[str, Any]
    objective: float | None
    pairs: dict[str, PairScore] = field(default_factory=dict)
    given_up: bool = False
    error: str | None = None

    @property
    def value(self) -> float:
        """Mean of the measure over the pairs."""
        return float(np.mean([score.value for score in self.pairs.values()]))


@dataclass(frozen=True)
class TuningLog:
    """What tuning_log.json holds. about: what decides the trials' outcome; a log of something else is not gone on with."""

    about: dict[str, Any]
    trials: tuple[Trial, ...] = ()
    version: int = LOG_VERSION


class LogBook:
    """The trials of a file: asked by values, added to one by one. overwrite: begin anew.

    Raises ValueError for a file that tells of other pairs, measures or planned values.
    """

    def __init__(self, path: Path, about: dict, overwrite: bool):
        about = json.loads(json.dumps(about))  # as a file gives it back
        self.path, self.log = path, TuningLog(about)
        if not path.is_file() or overwrite:
            return
        found = from_dict(TuningLog, read_json(path), str(path))
        other = [key for key in {*about, *found.about} if found.about.get(key) != about.get(key)]
        if other or found.version != LOG_VERSION:
            raise ValueError(f"{path} was made with other {', '.join(sorted(other)) or 'versions'}, so its trials do not count "
                             "here; choose another folder with -o, or begin anew with --overwrite.")  # fmt: skip
        self.log = found

    def find(self, part: str, values: dict[str, Any]) -> Trial | None:
        plain = _plain(values)
        return next((t for t in self.log.trials if t.part == part and _plain(t.values) == plain), None)

    def add(self, trial: Trial) -> None:
        self.log = replace(self.log, trials=(*self.log.trials, trial))
        write_json(self.path, self.log)


class Trials:
    """Registers pairs with values on trial. Features and initial alignments are made once for all trials that share them.

    told: called after each pair. stops: whether to stop now, asked before each pair.
    """

    def __init__(self, setup: Setup, measure: Measure, book: LogBook, volume: int | None, told: Callable[[int], None],
                 stops: Callable[[], bool]):  # fmt: skip
        self.setup, self.measure, self.book, self.volume, self.told, self.stops = setup, measure, book, volume, told, stops
        self._stores: OrderedDict[str, FeatureStore] = OrderedDict()
        self._alignments: dict[tuple[str, str], InitialAlignment] = {}

    def of(self, part: str, values: dict[str, Any], pairs: Sequence[TuningPair], best: Trial | None = None) -> Trial | None:
        """The trial of these values, from the log if it is there; None if it was stopped. best: to give up early against."""
        found = self.book.find(part, values)
        if found is not None:
            return found
        plans = with_tuned(RegistrationSettings(self.setup.features, self.setup.registration), values, "on trial")
        scores, given_up = {}, False
        for i, item in enumerate(pairs):
            if self.stops():
                return None
            try:
                scores[item.pair.id] = self._score(item, plans)
            except PAIR_ERRORS as error:
                if best is None:  # the planned values: then the pair is to blame
                    raise ValueError(f"{item.pair.id}: {error} Leave this pair out.") from error
                self.told(len(pairs) - i)
                trial = Trial(part, values, None, scores, error=f"{item.pair.id}: {error}")
                self.book.add(trial)
                return trial
            self.told(1)
            given_up = best is not None and len(scores) < len(pairs) and self._is_clearly_worse(scores, best)
            if given_up:
                self.told(len(pairs) - i - 1)
                break
        objective = self._mean(scores, scores)
        if given_up:
            objective = best.objective + objective - self._mean(best.pairs, scores)
        trial = Trial(part, values, objective, scores, given_up)
        self.book.add(trial)
        return trial

    def _score(self, item: TuningPair, plans: RegistrationSettings) -> PairScore:
        shared = repr(asdict(plans.features))
        store = self._store(shared, plans)
        key = (item.pair.id, shared)
        found = deform_pair(read_pair(item.bare, store), store, plans.registration, self._alignments.get(key))
        self._alignments[key] = found.alignment
        return judged(item.truth, found.alignment.transform, found.deformation)

    def _store(self, shared: str, plans: RegistrationSettings) -> FeatureStore:
        if shared not in self._stores:
            while len(self._stores) >= KEPT_STORES:
                self._stores.popitem(last=False)
            self._stores[shared] = replace(self.setup, features=plans.features).store(self.volume)
        self._stores.move_to_end(shared)
        return self._stores[shared]

    def _mean(self, scores: dict[str, PairScore], names) -> float:
        return float(np.mean([self.measure.objective(scores[name]) for name in names]))

    def _is_clearly_worse(self, scores: dict[str, PairScore], best: Trial) -> bool:
        if len(scores) < ENOUGH_PAIRS or not set(scores) <= set(best.pairs):
            return False
        less = np.array([self.measure.objective(best.pairs[name]) - self.measure.objective(scores[name]) for name in scores])
        return less.mean() > max(self.measure.gain, CLEARLY * less.std(ddof=1) / len(less) ** 0.5)


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """Values as json gives them back."""
    return json.loads(json.dumps(values))
