"""How stiff a registration is, in three words: factors on the planned smoothness."""

from dataclasses import replace

from nnssl_reg.planning.plans import RegistrationPlan

# The planned smoothness is chosen for two patients. Half of it follows small organs more closely and folds sooner; three times
# suits one patient at two times, where little moves and what moves, moves together.
REGULARISATION = {"weak": 0.5, "medium": 1.0, "strong": 3.0}


def regularised(plan: RegistrationPlan, choice: str | None) -> RegistrationPlan:
    """The plan with its smoothness times the factor of a choice; None: as planned. Raises ValueError for another word."""
    if choice is None:
        return plan
    if choice not in REGULARISATION:
        raise ValueError(f"The regularisation '{choice}' is none of {', '.join(REGULARISATION)}.")
    return replace(plan, smoothness=plan.smoothness * REGULARISATION[choice])
