"""The search for better registration settings: which values may be tried, and in which order."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nnssl_reg.planning.image_plan import RegistrationSettings

# Times the planned value, in the order in which they are searched: what matters most first.
FACTORS = {
    "registration.smoothness": (0.35, 0.6, 1.0, 1.7, 3.0),
    "registration.search_radius_mm": (0.5, 0.7, 1.0, 1.4),
    "registration.coarse_spacing_mm": (0.8, 1.0, 1.25, 1.6),
    "registration.iterations": (0.5, 1.0, 2.0),
    "registration.learning_rate": (0.5, 1.0, 2.0),
    "registration.voxel_smoothness": (0.35, 0.6, 1.0, 1.7),
    "features.mind_spacing_mm": (0.8, 1.0, 1.25, 1.6),
    "features.components": (0.67, 1.0, 2.0),
}
CHOICES = {
    "registration.smoothing_passes": (1, 2, 3, 5),
    "registration.rounds": (1, 2, 3, 4),
    "registration.voxel_iterations": (0, 10, 20, 40),
    "features.mind_scales": (((1, 2),), ((1, 1),), ((1, 1), (0, 2))),
    "features.mind_noise": (0.0, 0.3, 1.0),
    "features.mind_noise_ct": (0.1, 0.3, 1.0),
    "features.intensity_share": (0.0, 0.2, 0.33, 0.5),
    "features.context_share": (0.0, 0.1, 0.2, 0.3),
    "features.dino_share": (0.1, 0.25, 0.5, 0.75),
}
# those of the features last: all other trials share the features and initial alignments that are at hand
ORDER = ("registration.smoothness", "registration.search_radius_mm", "registration.coarse_spacing_mm",
         "registration.smoothing_passes", "registration.rounds", "registration.iterations", "registration.learning_rate",
         "registration.voxel_iterations", "registration.voxel_smoothness", "features.mind_scales", "features.mind_noise",
         "features.mind_noise_ct", "features.intensity_share", "features.context_share", "features.dino_share",
         "features.mind_spacing_mm", "features.components")  # fmt: skip
MOST_WORK = 4.0  # of the search for displacements, in the planned one's: it also bounds its memory
JUMPS = 0.35  # share of the parameters that a random trial changes
DRAWS = 200  # for a random trial that was not made yet

Position = tuple[int, ...]


@dataclass(frozen=True)
class Parameter:
    """A value of the plans, "section.name", what may be tried for it, ascending, and which of these is the planned one."""

    name: str
    values: tuple[Any, ...]
    planned: int


def tunable(plans: RegistrationSettings, kind: str) -> list[str]:
    """The names that make a difference for a kind of features, the most important first."""
    without = {
        "dino": ("features.mind_", "features.intensity_share", "features.context_share", "features.dino_share"),
        "mind": ("features.components", "features.dino_share"),
    }.get(kind, ())
    if kind == "dino" or plans.registration.voxel_iterations == 0 or max(plans.features.mind_stride) == 1:
        without = (*without, "registration.voxel_")  # no refinement at voxels, or its cells are voxels already
    return [name for name in ORDER if not name.startswith(without)]


def search_space(plans: RegistrationSettings, names: Sequence[str]) -> list[Parameter]:
    """What may be tried for each of the names, around the planned values."""
    return [_parameter(name, _planned(plans, name)) for name in names]


def values_at(space: Sequence[Parameter], position: Position) -> dict[str, Any]:
    """The values by name at a position: an index into the values of each parameter."""
    return {parameter.name: parameter.values[i] for parameter, i in zip(space, position)}


def is_affordable(plans: RegistrationSettings, values: dict[str, Any]) -> bool:
    """Whether values keep the search's radius, in blocks, and their number within a few times the planned work."""
    names = ("registration.search_radius_mm", "registration.coarse_spacing_mm")
    planned = [_planned(plans, name) for name in names]
    return _work(*[values.get(name, p) for name, p in zip(names, planned)]) <= MOST_WORK * _work(*planned)


def coordinate_search(space: Sequence[Parameter], score: Callable[[Position], float | None], trials: int, gain: float,
                      rng: np.random.Generator, allowed: Callable[[Position], bool]) -> Position:  # fmt: skip
    """The best position found in at most `trials` trials, from the planned one on.

    Parameter by parameter, a step up or down is kept, and repeated, while the score rises by more than `gain`. When no single
    step helps, random trials change several parameters at once; one that is better is searched around again. score: None ends
    the search. The same scores and rng make the same search.
    """
    best = tuple(parameter.planned for parameter in space)
    seen = {best: score(best)}

    def better(position: Position) -> bool:
        """Try a position that was not tried; whether it is the new best."""
        nonlocal best
        if position in seen or len(seen) >= trials or seen[best] is None or not allowed(position):
            return False
        seen[position] = found = score(position)
        if found is None:
            raise _Ended
        if found > seen[best] + gain:
            best = position
            return True
        return False

    try:
        while len(seen) < trials and seen[best] is not None:
            if not _sweep(space, lambda: best, better):
                jump = _jump(space, best, seen, rng, allowed)
                if jump is None:
                    break
                better(jump)
    except _Ended:
        pass
    return best


class _Ended(Exception):
    """No more scores come."""


def _sweep(space: Sequence[Parameter], best: Callable[[], Position], better: Callable[[Position], bool]) -> bool:
    """Steps along every parameter, each way as long as it helps. Whether one did."""
    helped = False
    for axis, parameter in enumerate(space):
        for step in (1, -1):
            while 0 <= best()[axis] + step < len(parameter.values) and better(_moved(best(), axis, step)):
                helped = True
    return helped


def _moved(position: Position, axis: int, step: int) -> Position:
    return (*position[:axis], position[axis] + step, *position[axis + 1 :])


def _jump(space, best: Position, seen, rng: np.random.Generator, allowed) -> Position | None:
    """A position not yet seen that differs from the best in some parameters; None if none was drawn."""
    for _ in range(DRAWS):
        changed = rng.random(len(space)) < JUMPS
        drawn = rng.integers(0, [len(parameter.values) for parameter in space])
        position = tuple(int(d) if c else b for d, c, b in zip(drawn, changed, best))
        if position not in seen and allowed(position):
            return position
    return None


def _work(radius_mm: float, spacing_mm: float) -> float:
    """Displacements looked at per mm^3."""
    return (2 * radius_mm / spacing_mm + 1) ** 3 / spacing_mm**3


def _planned(plans: RegistrationSettings, name: str) -> Any:
    section, _, field = name.partition(".")
    return getattr(getattr(plans, section), field)


def _parameter(name: str, planned: Any) -> Parameter:
    tried = [_times(planned, factor) for factor in FACTORS[name]] if name in FACTORS else CHOICES[name]
    values = tuple(sorted({*tried, planned}))
    return Parameter(name, values, values.index(planned))


def _times(value: Any, factor: float) -> Any:
    """A planned value times a factor, to four digits, whole where it is whole, at least 1 then."""
    if factor == 1.0:
        return value
    if isinstance(value, tuple):
        return tuple(_times(v, factor) for v in value)
    return max(1, round(value * factor)) if isinstance(value, int) else float(f"{value * factor:.4g}")
