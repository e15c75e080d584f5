"""What a run does when it breaks down: gentler settings, and the record of how often."""

from dataclasses import dataclass, replace

from nnssl_reg.planning.plans import PretrainingPlan

MAX_RECOVERIES = 3  # times that a run goes back; the next breakdown stops it


@dataclass(frozen=True)
class Recovery:
    """One return to an earlier state. step: where the run broke down, back_to: the step it went on from."""

    step: int
    back_to: int
    reason: str
    change: str


class Trouble(Exception):
    """The run cannot go on as it is: a loss is not finite, or the features have collapsed."""

    def __init__(self, step: int, reason: str):
        super().__init__(f"step {step}: {reason}")
        self.step, self.reason = step, reason


def gentler(plan: PretrainingPlan, times: int) -> PretrainingPlan:
    """The plan after `times` recoveries: each halves the rate and the temperature's rise, which takes twice as long.

    From the first on, patch targets are shared evenly among prototypes, which a running centre only does on average.
    """
    if times == 0:
        return plan
    share = 0.5**times
    rise = plan.final_teacher_temperature - plan.teacher_temperature
    return replace(
        plan,
        learning_rate=plan.learning_rate * share,
        final_learning_rate=plan.final_learning_rate * share,
        final_teacher_temperature=plan.teacher_temperature + rise * share,
        teacher_temperature_steps=plan.teacher_temperature_steps * 2**times,
        centering="sinkhorn",
    )


def described(plan: PretrainingPlan) -> str:
    """What `gentler` has changed, with the values it has now."""
    return (f"learning rate {plan.learning_rate:.2g}, teacher temperature to {plan.final_teacher_temperature:.3g} in "
            f"{plan.teacher_temperature_steps} steps, Sinkhorn targets")  # fmt: skip


def advice(trouble: Trouble, recoveries: tuple[Recovery, ...], last_good: str) -> str:
    """The message of a run that stops for good."""
    return (
        f"Training broke down in step {trouble.step}: {trouble.reason}. It had gone back {len(recoveries)} times (from steps "
        f"{', '.join(str(r.step) for r in recoveries)}), each time with half the rate, and stops now; {last_good}. Look at "
        "progress.png for when it began. Then begin anew elsewhere (-results) with a larger pretraining.batch_size, a smaller "
        "pretraining.learning_rate or pretraining.intensity_strength; with a loss that is NaN at once, look for broken "
        "values in the images (nnssl_plan_and_preprocess --verify_dataset_integrity)."
    )
