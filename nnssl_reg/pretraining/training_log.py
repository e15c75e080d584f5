"""The log of a run: lines for people in training_log_<date>.txt, one row of numbers per interval in training_log.jsonl."""

import json
import logging
import math
import time
from collections.abc import Callable
from pathlib import Path

import torch

from nnssl_reg.planning.plans import PretrainingPlan
from nnssl_reg.pretraining import monitors
from nnssl_reg.pretraining.schedules import settings_at
from nnssl_reg.pretraining.student_teacher import StudentTeacher, Targets

logger = logging.getLogger("nnssl_reg")
TOKENS_WATCHED = 1024  # for the effective rank, whose cost grows with them


class TrainingLog:
    """Writes both files of a run's folder. echo: also gets every line, e.g. to print it.

    silent: of a run's further processes: keeps its rows to itself.
    """

    def __init__(self, folder: Path, echo: Callable[[str], None], silent: bool = False):
        self.folder, self.echo, self.silent = folder, echo, silent
        self.text = folder / f"training_log_{time.strftime('%Y_%m_%d_%H_%M_%S')}.txt"
        self.table = folder / "training_log.jsonl"
        self.rows = _rows(self.table)
        self.left_out: dict[str, str] = {}

    def line(self, text: str) -> None:
        """One line for people."""
        if self.silent:
            return
        with self.text.open("a", encoding="utf-8") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {text}\n")
        self.echo(text)

    def leave_out(self, case: str, reason: str) -> None:
        """A case that cannot be read, said once; silent processes warn of theirs."""
        if case in self.left_out:
            return
        self.left_out[case] = reason
        if self.silent:
            logger.warning("%s is left out: %s", case, reason)
        self.line(f"{case} is left out: {reason}")

    @property
    def trained(self) -> dict[str, float | None] | None:
        """The last row that tells of training steps, not of the probe alone."""
        return next((row for row in reversed(self.rows) if "total" in row), None)

    def row(self, values: dict[str, float]) -> None:
        """One row of numbers; "step" counts the steps done."""
        self.rows.append(values)
        if self.silent:
            return
        with self.table.open("a", encoding="utf-8") as file:
            file.write(json.dumps(values) + "\n")

    def forget_after(self, step: int) -> None:
        """Drop the rows of steps that a resumed run will do again."""
        self.rows = [row for row in self.rows if row["step"] <= step]
        if not self.silent:
            self.table.write_text("".join(json.dumps(row) + "\n" for row in self.rows), encoding="utf-8")


def row_of(step: int, means: dict[str, float], targets: Targets, pair: StudentTeacher) -> dict[str, float | None]:
    """A row after `step` steps: the means since the last row, the last step's settings, and whether the features are alive.

    Of the whole batch, whichever processes share it.
    """
    plan, processes = pair.plan, pair.processes
    settings = settings_at(step - 1, plan)
    patches = targets.tokens.patch_tokens.float()  # (B, N, D)
    every = max(1, processes.size * patches.shape[0] * patches.shape[1] // TOKENS_WATCHED)
    class_tokens = processes.gathered(targets.tokens.class_token)
    watched = processes.gathered(patches.flatten(0, 1)[::every].contiguous())
    count = len(targets.patch_tokens)
    own = patches.new_tensor([count, count * monitors.entropy(targets.patch_tokens), monitors.spread_within(patches)])
    sums = processes.total(torch.cat((own, targets.patch_tokens.sum(dim=0))))
    mean_target = sums[None, 3:] / sums[0]  # (1, K)
    return {
        "step": step,
        **means,
        "log_prototypes": math.log(plan.prototypes),
        **vars(settings),
        "teacher_entropy": float(sums[1] / sums[0]),
        "prototypes_used": math.exp(monitors.entropy(mean_target)),
        "effective_rank": monitors.effective_rank(watched.cpu()),
        "spread_within": float(sums[2]) / processes.size,
        "spread_between": monitors.spread_between(class_tokens) if plan.batch_size > 1 else None,
        "centre_norm": float(pair.class_centre.square().mean().sqrt()),
        "samples_per_second": plan.batch_size / means["seconds_per_step"],
    }


def describe(row: dict[str, float | None], plan: PretrainingPlan) -> str:
    """A row as a line for people."""
    waiting = row["seconds_waiting"] / row["seconds_per_step"]
    between = "" if row["spread_between"] is None else f", {row['spread_between']:.2f} between images"
    return (
        f"step {row['step']} of {plan.steps}: loss class {row['class_loss']:.3f}, masked {row['masked_loss']:.3f}, visible "
        f"{row['visible_loss']:.3f} (ln K {row['log_prototypes']:.3f}); effective rank {row['effective_rank']:.1f}; spread "
        f"{row['spread_within']:.2f} within{between}; teacher entropy {row['teacher_entropy']:.2f}; gradient "
        f"{row['gradient_norm']:.2f}; rate {row['learning_rate']:.2g}; {row['samples_per_second']:.2f} crops/s, "
        f"{waiting:.0%} of the time waiting for data"
    )


def _rows(path: Path) -> list[dict[str, float]]:
    """The rows of an earlier part of the run; a last line cut off by a kill is dropped."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows
