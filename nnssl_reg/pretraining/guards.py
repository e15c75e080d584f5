"""What watches over a run: the traffic light, the probe that chooses the best checkpoint, and the way back."""

import math
import time
from pathlib import Path

from nnssl_reg.pretraining.checkpoint import checkpoint_path, good_checkpoints, readable_checkpoints
from nnssl_reg.pretraining.monitors import health
from nnssl_reg.pretraining.probe import Probe, ProbeClock
from nnssl_reg.pretraining.processes import assembled
from nnssl_reg.pretraining.recovery import MAX_RECOVERIES, Recovery, Trouble, advice, described, gentler
from nnssl_reg.pretraining.training_log import TrainingLog
from nnssl_reg.pretraining.training_state import Run, TrainingState, save, start


def require_finite(values: dict[str, float], step: int) -> None:
    """Raises Trouble naming the terms that are not finite."""
    bad = [f"{name} {value}" for name, value in values.items() if not math.isfinite(value)]
    if bad:
        raise Trouble(step + 1, ", ".join(bad))


def watch(run: Run, state: TrainingState, row: dict[str, float | None], log: TrainingLog) -> None:
    """The traffic light of a row, said whenever it changes. Raises Trouble at red, in all processes of the run at once."""
    found = health(row, state.plan.gradient_clip, state.plan.warmup_steps)
    if run.processes.any(found.light == "red", run.device):
        raise Trouble(state.step, "; ".join(found.reasons))
    if found.light != state.health.light:
        log.line(f"step {state.step}: {found}")
    state.health = found


def probed(run: Run, state: TrainingState, folder: Path, log: TrainingLog, probe: Probe | None,
           clock: ProbeClock) -> dict[str, float]:  # fmt: skip
    """Probe the teacher; keep it as checkpoint_best if its recall is the best so far (of equals, the smaller error).

    By recall, because the median error hardly moves while more or less than half of all tokens are found. All processes of a
    run come here; what was found, as columns of the log, is the first one's: the others have no probe.
    """
    began = time.perf_counter()
    with assembled(state.pair.teacher):
        result = probe(state.pair.teacher.encoder) if probe is not None else None
    clock.took(time.perf_counter() - began)
    better = False
    if result is not None:
        log.line(f"step {state.step}: probe: {result}")
        best = best_probe(folder)
        better = state.step > 0 and (best is None or (result.recall, -result.error_mm) > best)
    if run.processes.any(better, run.device):
        save(run, state, folder, "best", result)
    return {} if result is None else result.row()


def best_probe(folder: Path) -> tuple[float, float] | None:
    """Recall and negative error of checkpoint_best, or None if there is none that can be read."""
    for path, info in readable_checkpoints(folder)[0]:
        if path == checkpoint_path(folder, "best") and info.probe_recall is not None and info.probe_error_mm is not None:
            return info.probe_recall, -info.probe_error_mm
    return None


def go_back(run: Run, state: TrainingState, folder: Path, log: TrainingLog, trouble: Trouble) -> None:
    """Bring the state to an earlier good checkpoint, or to the start, with gentler settings, and save that.

    Each process of a run reads it, while none writes.

    A checkpoint that was gone back to before is taken again only where no other is left. Raises ValueError with advice after
    MAX_RECOVERIES times.
    """
    run.processes.wait(run.device)
    good = [(path, info.step) for path, info in good_checkpoints(folder) if info.step < trouble.step]
    if len(state.recoveries) >= MAX_RECOVERIES:
        last = f"the last good checkpoint is {good[0][0]} (step {good[0][1]})" if good else "no good checkpoint is left"
        raise ValueError(advice(trouble, state.recoveries, last)) from trouble
    tried = {recovery.back_to for recovery in state.recoveries}
    untried = [item for item in good if item[1] not in tried]
    path, step = (untried or good or [(None, 0)])[0]
    plan = gentler(run.configuration.pretraining, len(state.recoveries) + 1)
    made = Recovery(trouble.step, step, trouble.reason, described(plan))
    vars(state).update(vars(start(run, path, step, (*state.recoveries, made))))
    save(run, state, folder, "latest", keep_previous=False)  # or a resumed run would not know of it
    log.forget_after(step)
    origin = "the start" if path is None else f"step {step} ({path.stem})"
    log.line(f"step {trouble.step}: red ({trouble.reason}). Going back to {origin} with {made.change}; recovery "
             f"{len(state.recoveries)} of {MAX_RECOVERIES}.")  # fmt: skip
