"""report.html: one page for all pairs of a run that needs nothing else, neither network nor files beside it."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import ChainableUndefined, Environment, FileSystemLoader
from markupsafe import Markup

from nnssl_reg.evaluation.figures import COLOURS
from nnssl_reg.evaluation.report_images import PairPictures
from nnssl_reg.evaluation.summary import PairResult, summarise

PAGE = Path(__file__).parent / "report_page"
MAX_PICTURE_BYTES = 30_000_000  # of all pairs in one page, which browsers still open at once


@dataclass(frozen=True)
class Column:
    """A number of the table: its name, heading with unit, digits, and what it is in a sentence."""

    name: str
    heading: str
    digits: int
    tip: str


COLUMNS = (
    Column("dice_initial", "Dice before", 3, "Overlap of the labels before registration, by the files' coordinates alone: "
           "0 none, 1 complete; mean over the labels that both images have."),
    Column("dice", "Dice after", 3, "Overlap of the fixed and the warped labels: 0 none, 1 complete; mean over labels. A label "
           "that was lost on the way counts as 0."),
    Column("hd95_mm", "HD95 (mm)", 1, "Distance that 95 % of the fixed and warped label surfaces lie within each other, mean "
           "over labels. Smaller is better."),
    Column("tre_mm", "TRE (mm)", 2, "Distance of the fixed landmarks, carried by the registration, from the moving ones; mean "
           "over the landmarks."),
    Column("sd_log_jacobian", "SDlogJ", 3, "Standard deviation of the logarithm of the local change of volume: 0 for a stiff "
           "motion, larger for a rougher deformation."),
    Column("folding_percent", "Folding (%)", 3, "Share of voxels where the deformation turns space inside out (Jacobian "
           "determinant at or below 0). Anatomy does not fold: 0 is right."),
    Column("seconds", "Time (s)", 1, "Time to read, encode and register the pair, without writing its files."),
    Column("peak_memory_gb", "Memory (GB)", 2, "The most memory the program had held when the pair was done; it never falls "
           "from pair to pair."),
)  # fmt: skip
TIPS = {column.name: column.tip for column in COLUMNS} | {
    "pair": "Name of the pair; its files in the folder begin with it.",
    "confidence": "How far the result can be trusted, judged without labels: 1 is best. It falls where the "
    "registrations of the two directions disagree, features still differ, space folds, or the moving image does not cover "
    "the body.",
    "inconsistency_mm": "Mean distance between the field from fixed to moving and the inverse of the field from moving to "
    "fixed, over the body.",
    "feature_cost": "Mean squared difference of the features over the body, after the initial alignment and after the "
    "deformation: 0 equal, 1 as different as unrelated places.",
    "overlap_percent": "Share of the fixed body that the warped moving image covers.",
    "surface_mm": "Mean distance between the surfaces of fixed and warped labels, both directions, mean over labels.",
    "displacement_mm": "How far points move in all, initial alignment included.",
}  # fmt: skip


@dataclass(frozen=True)
class ReportPair:
    """A pair of the report. sidecar: the content of its json file; pictures: None if there are none."""

    result: PairResult
    sidecar: Mapping[str, Any] = field(default_factory=dict)
    pictures: PairPictures | None = None


def report_html(title: str, written: str, pairs: Sequence[ReportPair]) -> str:
    """The text of report.html; as large as the pictures of the pairs together."""
    environment = Environment(loader=FileSystemLoader(PAGE), undefined=ChainableUndefined, autoescape=True, trim_blocks=True)
    environment.globals.update(number=number, flat=flat, column_value=column_value, colour=lambda i: COLOURS[(int(i) - 1) % 10])
    environment.filters.update(
        words=lambda name: str(name).replace("_", " ").replace(".", ", "), capitalize_first=lambda t: t[:1].upper() + t[1:]
    )
    data = {i: _script_json(asdict(pair.pictures)) for i, pair in enumerate(pairs) if pair.pictures is not None}
    return environment.get_template("page.html").render(
        title=title, written=written, pairs=pairs, columns=known_columns(pairs), tips=TIPS, summary=_tiles(pairs), data=data,
        colours=_script_json(COLOURS),
    )  # fmt: skip


def number(value: Any, digits: int = 3, unit: str = "") -> str:
    """A number for a reader; an en dash where it is not known."""
    if not isinstance(value, (int, float)) or not math.isfinite(value):
        return "–"
    return f"{value:.{digits}f}{unit}"


def known_columns(pairs: Sequence[ReportPair]) -> list[Column]:
    """The columns of which a pair knows the value: without labels, say, there is no Dice."""
    return [column for column in COLUMNS if any(column_value(pair, column.name) is not None for pair in pairs)]


def column_value(pair: ReportPair, name: str) -> float | None:
    """What a table's cell shows; None if not known."""
    if name == "seconds":
        value = pair.result.seconds
    elif name == "peak_memory_gb":
        value = pair.sidecar.get(name)
    else:
        value = getattr(pair.result.scores, name, None)
    return value if isinstance(value, (int, float)) and math.isfinite(value) else None


def flat(values: Any, name: str = "") -> list[tuple[str, str]]:
    """Nested settings as (name, text) rows: names joined by dots, numbers short."""
    if isinstance(values, Mapping):
        return [row for key, value in values.items() for row in flat(value, f"{name}.{key}" if name else str(key))]
    if isinstance(values, (list, tuple)):
        return [(name, ", ".join(_plain(value) for value in values))]
    return [(name, _plain(values))]


def _plain(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def affordable(sizes: Mapping[int, int], results: Sequence[PairResult]) -> set[int]:
    """Which pairs' pictures (bytes by the pair's place) fit into MAX_PICTURE_BYTES: the least confident pairs first."""
    left, shown = MAX_PICTURE_BYTES, set()
    for i in sorted(sizes, key=lambda i: (_or(results[i].scores.confidence, math.inf), i)):
        left -= sizes[i]
        if left >= 0:
            shown.add(i)
    return shown


def _tiles(pairs: Sequence[ReportPair]) -> list[tuple[str, str, str]]:
    """What stands on top: (heading, number, remark)."""
    results = [pair.result for pair in pairs]
    summary = summarise(results)
    low = sum(r.scores.confidence_flag == "low" for r in results)
    failed = len(results) - summary["registered"]
    count = f"{summary['registered']} of {len(results)}" if failed else str(len(results))
    tiles = [("Pairs registered", count, f"{failed} failed" if failed else "none failed")]
    mean = {name: _or(value, math.nan) for name, value in summary["mean"].items() if not isinstance(value, str)}
    if summary["with_labels"]:
        change = f"{number(mean['dice_initial'])} → {number(mean['dice'])}"
        tiles.append(("Mean Dice", change, f"{summary['with_labels']} with labels"))
        tiles.append(("Mean HD95", number(mean["hd95_mm"], 1, " mm"), f"before {number(mean['hd95_mm_initial'], 1, ' mm')}"))
    tiles.append(("Mean folding", number(mean["folding_percent"], 3, " %"), f"SDlogJ {number(mean['sd_log_jacobian'])}"))
    if not math.isnan(mean["confidence"]):
        tiles.append(("Low confidence", str(low), f"mean confidence {number(mean['confidence'], 2)}"))
    tiles.append(("Mean time", number(mean["seconds"], 1, " s"), "per pair"))
    return tiles


def _or(value: float | None, other: float) -> float:
    return other if value is None or math.isnan(value) else value


def _script_json(value: Any) -> Markup:
    """Json that cannot end the script element it stands in."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return Markup(text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))
