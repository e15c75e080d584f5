"""Judge pairs, and tell the results of many: rows of metrics.csv, summary.json and a table to print."""

import csv
import io
import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace

import numpy as np

from nnssl_reg.evaluation.confidence import Evidence, confidence_of
from nnssl_reg.evaluation.learn2reg_metrics import hd95_l2r, sd_log_jacobian_l2r
from nnssl_reg.evaluation.metrics import (
    dice,
    folding_percent,
    hd95_of,
    label_ids,
    mean_of,
    sd_log_jacobian,
    surface_distances_mm,
    tre_mm,
)
from nnssl_reg.geometry.displacement import DisplacementField
from nnssl_reg.geometry.image import Image
from nnssl_reg.geometry.sampling import resample

MEASURES = ("dice_initial", "dice", "hd95_mm_initial", "hd95_mm", "surface_mm_initial", "surface_mm",
            "sd_log_jacobian", "folding_percent", "confidence", "inconsistency_mm", "body_mm", "feature_cost_initial",
            "feature_cost", "overlap_percent")  # fmt: skip
FURTHER_MEASURES = ("tre_mm_initial", "tre_mm", "sd_log_jacobian_l2r", "hd95_l2r")  # columns where a pair has one
TABLE_ROWS = 60


@dataclass(frozen=True)
class Scores:
    """What one registration is worth. "_initial": by world coordinates alone, before registration. NaN: not known.

    Means are over the labels that both images have. lost_labels: of those, what the warped label image no longer has; a lost
    label counts as Dice 0 and is left out of the distances. "_l2r": as Learn2Reg computes it (hd95_l2r: in voxels of 1, and
    infinite where a label is lost). tre_mm: mean over the landmarks. From confidence to overlap_percent: see confidence.py.
    """

    dice_initial: float = math.nan
    dice: float = math.nan
    hd95_mm_initial: float = math.nan
    hd95_mm: float = math.nan
    surface_mm_initial: float = math.nan
    surface_mm: float = math.nan
    sd_log_jacobian: float = math.nan
    folding_percent: float = math.nan
    label_dice_initial: dict[str, float] = field(default_factory=dict)
    label_dice: dict[str, float] = field(default_factory=dict)
    lost_labels: tuple[int, ...] = ()
    tre_mm_initial: float = math.nan
    tre_mm: float = math.nan
    sd_log_jacobian_l2r: float = math.nan
    hd95_l2r: float = math.nan
    confidence: float = math.nan
    confidence_flag: str = ""
    confidence_reason: str = ""
    inconsistency_mm: float = math.nan
    body_mm: float = math.nan
    feature_cost_initial: float = math.nan
    feature_cost: float = math.nan
    overlap_percent: float = math.nan


@dataclass(frozen=True)
class PairResult:
    """One row of metrics.csv. error: why there are no scores, or None."""

    id: str
    fixed: str
    moving: str
    scores: Scores = Scores()
    seconds: float = math.nan
    error: str | None = None


def judge(total: DisplacementField, fixed_label: Image | None = None, moving_label: Image | None = None,
          warped_label: Image | None = None, landmarks: tuple[np.ndarray, np.ndarray] | None = None,
          learn2reg: bool = False) -> Scores:  # fmt: skip
    """Scores of a registration given the total field (initial alignment included) and the label images of the pair.

    Labels are compared on the fixed label's grid. warped_label: the moving label on that grid, if it is at hand already.
    landmarks: of the fixed and of the moving image, (N, 3) RAS mm each. learn2reg: Learn2Reg's own variants, too.
    """
    jacobian = total.jacobian_determinant().cpu().numpy()
    known = {"sd_log_jacobian": sd_log_jacobian(jacobian), "folding_percent": folding_percent(jacobian)}
    if learn2reg:
        known["sd_log_jacobian_l2r"] = sd_log_jacobian_l2r(jacobian)
    if landmarks is not None:
        known["tre_mm_initial"] = mean_of(np.linalg.norm(landmarks[1] - landmarks[0], axis=1))
        known["tre_mm"] = mean_of(tre_mm(*landmarks, total))
    if fixed_label is None or moving_label is None:
        return Scores(**known)
    grid, fixed = fixed_label.grid, fixed_label.array[0]
    if warped_label is None or not warped_label.grid.matches(grid):
        warped_label = (total if total.grid.matches(grid) else total.on(grid)).warp(moving_label)
    labels = sorted(set(label_ids(fixed)) & set(label_ids(moving_label.array)))
    initial = _overlap(fixed, resample(moving_label, grid).array[0], grid.spacing_mm, labels)
    after = _overlap(fixed, warped_label.array[0], grid.spacing_mm, labels)
    if learn2reg:
        known["hd95_l2r"] = mean_of(hd95_l2r(fixed, warped_label.array[0], labels).values())
    return Scores(**known, **after, **{f"{name}_initial": value for name, value in initial.items()},
                  lost_labels=tuple(sorted(set(labels) - set(label_ids(warped_label.array)))))  # fmt: skip


def with_confidence(scores: Scores, evidence: Evidence) -> Scores:
    """Scores with the measures that need no labels, and the confidence that follows from them."""
    found = confidence_of(evidence)
    return replace(scores, **asdict(evidence), confidence=found.value, confidence_flag=found.flag,
                   confidence_reason=found.reason)  # fmt: skip


def _overlap(fixed: np.ndarray, moved: np.ndarray, spacing_mm, labels: list[int]) -> dict:
    """Dice and surface distances by label and on average."""
    overlap = dice(fixed, moved, labels)
    distances = surface_distances_mm(fixed, moved, spacing_mm, labels).values()
    return {
        "dice": mean_of(overlap.values()),
        "hd95_mm": mean_of(hd95_of(d) for d in distances),
        "surface_mm": mean_of(mean_of(d) for d in distances),
        "label_dice": {str(label): value for label, value in overlap.items()},
    }


def scores_told(scores: Scores) -> dict:
    """Scores as a sidecar keeps them: what is not known is left out."""
    told = {name: _known(value) if isinstance(value, float) else value for name, value in vars(scores).items()}
    return {name: value for name, value in told.items() if value is not None}


def metrics_csv(results: Sequence[PairResult]) -> str:
    """The text of metrics.csv: one row per pair, a Dice column per label; what is not known stays empty."""
    labels, measures = _labels(results), _measures(results)
    header = ["id", "fixed", "moving", "dice_initial", "dice", *(f"dice_{label}" for label in labels), *measures[2:],
              "confidence_flag", "confidence_reason", "lost_labels", "seconds", "error"]  # fmt: skip
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    for r in results:
        values = [getattr(r.scores, name) for name in measures]
        numbers = [*values[:2], *(r.scores.label_dice.get(label, math.nan) for label in labels), *values[2:]]
        lost = " ".join(map(str, r.scores.lost_labels))
        words = [r.scores.confidence_flag, r.scores.confidence_reason, lost]
        writer.writerow([r.id, r.fixed, r.moving, *map(_cell, numbers), *words, _cell(r.seconds), r.error or ""])
    return text.getvalue()


def summarise(results: Sequence[PairResult]) -> dict:
    """The content of summary.json: counts, what failed and why, means and medians over the pairs, and means per label."""
    done = [r for r in results if r.error is None]
    columns = {name: [getattr(r.scores, name) for r in done] for name in _measures(done)} | {
        "seconds": [r.seconds for r in done]
    }
    labels = {}
    for label in _labels(done):
        rows = [r.scores for r in done if label in r.scores.label_dice]
        labels[label] = {
            "pairs": len(rows),
            "dice_initial": _known(mean_of(s.label_dice_initial[label] for s in rows)),
            "dice": _known(mean_of(s.label_dice[label] for s in rows)),
            "lost_in": [r.id for r in done if int(label) in r.scores.lost_labels],
        }
    return {
        "pairs": len(results),
        "registered": len(done),
        "with_labels": sum(bool(r.scores.label_dice) for r in done),
        "mean": {name: _known(mean_of(values)) for name, values in columns.items()},
        "median": {name: _known(_median(values)) for name, values in columns.items()},
        "labels": labels,
        "failed": {r.id: r.error for r in results if r.error is not None},
    }


def results_table(results: Sequence[PairResult]) -> str:
    """The results as plain text: a line per pair (the first TABLE_ROWS of them), then mean and median, then what failed."""
    done = [r for r in results if r.error is None]
    summary = summarise(results)
    measures = _measures(done)
    rows = [(_shortened(r.id), _numbers({name: getattr(r.scores, name) for name in measures} | {"seconds": r.seconds}))
            for r in done[:TABLE_ROWS]]  # fmt: skip
    header = (
        "pair",
        ["Dice", "HD95 mm", *(["TRE mm"] if "tre_mm" in measures else []), "SDlogJ", "J<=0 %", "confidence", "seconds"],
    )
    hidden = len(done) - len(rows)
    rows += [(f"... {hidden} more in metrics.csv", [""] * len(header[1]))] if hidden else []
    rows += [(name, _numbers(summary[name])) for name in ("mean", "median") if len(done) > 1]
    lines = _aligned([header, *rows]) if done else []
    lines += [f"failed: {r.id}: {r.error}" for r in results if r.error is not None]
    lost = [
        f"lost on the way: label {', '.join(map(str, r.scores.lost_labels))} in {r.id}" for r in done if r.scores.lost_labels
    ]
    low = [f"low confidence: {r.id}: {r.scores.confidence_reason}" for r in done if r.scores.confidence_flag == "low"]
    return "\n".join(lines + lost + low)


def _numbers(values: dict) -> list[str]:
    """The cells of one line of the table."""
    known = {name: math.nan if value is None else value for name, value in values.items()}

    def change(name: str, digits: int) -> str:
        before, after = known[f"{name}_initial"], known[name]
        return "-" if math.isnan(after) else f"{before:.{digits}f} -> {after:.{digits}f}"

    def plain(name: str, digits: int) -> str:
        return "-" if math.isnan(known[name]) else f"{known[name]:.{digits}f}"

    return [
        change("dice", 3),
        change("hd95_mm", 1),
        *([change("tre_mm", 2)] if "tre_mm" in known else []),
        plain("sd_log_jacobian", 3),
        plain("folding_percent", 3),
        plain("confidence", 2),
        plain("seconds", 1),
    ]


def _aligned(rows: list[tuple[str, list[str]]]) -> list[str]:
    """Lines with the first column to the left and the others to the right."""
    first = max(len(name) for name, _ in rows)
    widths = [max(len(cells[i]) for _, cells in rows) for i in range(len(rows[0][1]))]
    return [f"{name:<{first}}  " + "  ".join(f"{cell:>{width}}" for cell, width in zip(cells, widths)) for name, cells in rows]


def _shortened(name: str, length: int = 58) -> str:
    return name if len(name) <= length else name[: length // 2 - 2] + "..." + name[-(length // 2 - 1) :]


def _measures(results: Sequence[PairResult]) -> list[str]:
    """The measures that every table has, and those of the further ones that a pair knows."""
    return [*MEASURES, *(m for m in FURTHER_MEASURES if any(not math.isnan(getattr(r.scores, m)) for r in results))]


def _labels(results: Sequence[PairResult]) -> list[str]:
    return sorted({label for r in results for label in r.scores.label_dice}, key=int)


def _median(values) -> float:
    known = [v for v in values if not math.isnan(v)]
    return statistics.median(known) if known else math.nan


def _known(value: float) -> float | str | None:
    """None for NaN, which JSON does not know, and text for infinities, which are known: a label was lost."""
    return None if math.isnan(value) else value if math.isfinite(value) else str(value)


def _cell(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.6g}"
