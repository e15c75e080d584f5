"""How far to trust a registration that has no labels: a number, high, medium or low, and the reason in words."""

import math
from dataclasses import dataclass

# Each measure x becomes a factor 1 / (1 + (x / half)^2): 1 for x = 0, a half at `half`, and still ordered far beyond it.
# On phantoms under the known deformations right results (Dice 0.88 to 0.93) have an inconsistency of 1.3 to 2.8 % of the body
# and a feature cost of 0.16 to 0.36; wrong ones (Dice 0.06 to 0.67, started upside down, turned or 10 cm off) have 4.7 to 9.6 %
# and 0.37 to 0.60.
HALF_INCONSISTENCY = 0.04  # of the body's size, between right and wrong: 10 mm in a trunk, 4.5 mm in a brain
HALF_COST = 0.6  # of the difference of unrelated places; lower would call all pairs of CT and MR wrong
HALF_FOLDING_PERCENT = 1.0  # anatomy does not fold; a percent is what unregularised methods reach
HALF_UNCOVERED = 0.5  # of the body outside the moving image: there the field is only a continuation
HIGH, MEDIUM = 0.6, 0.3  # one measure at its half value alone is no longer high; two of them are no longer medium
NAMED_BELOW = 0.75  # a factor below this is a reason


@dataclass(frozen=True)
class Evidence:
    """What is known about a registration without labels; means over the cells of the fixed body. NaN: not known.

    inconsistency_mm: between the registrations of the two directions, where the moving image covers the body; body_mm: edge
    of a cube of the body's volume; feature_cost_initial, feature_cost: squared feature difference after the initial alignment
    and after the deformation, 1 for unrelated cells; overlap_percent: of the body that the moving image covers.
    """

    inconsistency_mm: float
    body_mm: float
    feature_cost_initial: float
    feature_cost: float
    folding_percent: float
    overlap_percent: float


@dataclass(frozen=True)
class Confidence:
    """value: 0 (none) to 1; flag: "high", "medium" or "low"; reason: a sentence."""

    value: float
    flag: str
    reason: str


def confidence_of(evidence: Evidence) -> Confidence:
    """The product of a factor per measure. Without the other direction it is medium at best."""
    factors = {text: _factor(*numbers) for text, numbers in _measures(evidence).items()}
    value = math.prod(factors.values())
    flag = "high" if value >= HIGH else "medium" if value >= MEDIUM else "low"
    reasons = [text for text, factor in sorted(factors.items(), key=lambda item: item[1]) if factor < NAMED_BELOW]
    if math.isnan(evidence.inconsistency_mm):
        flag = "medium" if flag == "high" else flag
        reasons.append("the other direction was not registered, so the two could not be compared")
    if evidence.feature_cost > evidence.feature_cost_initial:
        reasons.append("the deformation did not bring the features closer")
    if not reasons:
        reasons = [f"the two directions differ by {evidence.inconsistency_mm:.1f} mm only, and the features match"]
    return Confidence(value, flag, "; ".join(reasons))


def _measures(e: Evidence) -> dict[str, tuple[float, float]]:
    """What each measure says, its value and the value that halves the confidence."""
    return {
        f"the two directions differ by {e.inconsistency_mm:.1f} mm": (e.inconsistency_mm / e.body_mm, HALF_INCONSISTENCY),
        f"the features still differ by {100 * e.feature_cost:.0f} % of what unrelated places do": (e.feature_cost, HALF_COST),
        f"{e.folding_percent:.2g} % of the voxels fold": (e.folding_percent, HALF_FOLDING_PERCENT),
        f"the moving image covers {e.overlap_percent:.0f} % of the body only": (1 - e.overlap_percent / 100, HALF_UNCOVERED),
    }


def _factor(value: float, half: float) -> float:
    return 1.0 if math.isnan(value) else 1 / (1 + (value / half) ** 2)
