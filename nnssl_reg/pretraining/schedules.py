"""What changes during training, as pure functions of the step."""

import math
from dataclasses import dataclass

from nnssl_reg.planning.plans import PretrainingPlan


@dataclass(frozen=True)
class StepSettings:
    """The scheduled numbers of one optimiser step."""

    learning_rate: float
    weight_decay: float
    teacher_momentum: float
    teacher_temperature: float
    gram_weight: float


def cosine(start: float, end: float, step: int, steps: int) -> float:
    """From start at step 0 to end at step `steps`, along half a cosine; end afterwards."""
    if step >= steps:
        return end
    return end + (start - end) * (1 + math.cos(math.pi * step / steps)) / 2


def linear(start: float, end: float, step: int, steps: int) -> float:
    """From start at step 0 to end at step `steps`, along a line; end afterwards."""
    return end if step >= steps else start + (end - start) * step / steps


def warmed_cosine(peak: float, end: float, step: int, warmup_steps: int, steps: int) -> float:
    """A line up to peak, reached after warmup_steps (its first value is not 0), then half a cosine down to end."""
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    return cosine(peak, end, step - warmup_steps, steps - warmup_steps)


def settings_at(step: int, plan: PretrainingPlan) -> StepSettings:
    """The settings of step 0 .. plan.steps - 1."""
    return StepSettings(
        learning_rate=warmed_cosine(plan.learning_rate, plan.final_learning_rate, step, plan.warmup_steps, plan.steps),
        weight_decay=cosine(plan.weight_decay, plan.final_weight_decay, step, plan.steps),
        teacher_momentum=cosine(plan.teacher_momentum, plan.final_teacher_momentum, step, plan.steps),
        teacher_temperature=linear(
            plan.teacher_temperature, plan.final_teacher_temperature, step, plan.teacher_temperature_steps
        ),
        gram_weight=plan.gram_weight if step >= plan.gram_start_step else 0.0,
    )
