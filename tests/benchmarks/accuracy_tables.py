"""The tables of accuracy.py: means over pairs by method, paired tests against one method, Dice by organ, seconds by stage."""

import math
from statistics import mean, median

from scipy.stats import wilcoxon

HEADER = ("method", "pairs", "Dice", "worst", "HD95 mm", "SDlogJ", "folding %", "s", "GB")
INITIAL = ("dice", "hd95_mm", "label_dice")  # what is known before registration, too


def tables(name: str, results: list[dict], organs: dict[str, str], reference: str, order: tuple[str, ...]) -> str:
    """The tables of a data set in markdown. results: what accuracy.py keeps of each pair and method; organs: id -> name.

    order: of the methods; those not in it come last.
    """
    failed = [r for r in results if "error" in r]
    found = {m: {r["pair"]: r for r in results if r["method"] == m and "error" not in r} for m in methods_of(results, order)}
    rows = {m: by_pair for m, by_pair in ({"initial": initial(found)} | found).items() if by_pair}
    lines = [
        f"### {name}",
        "",
        *table((*HEADER, f"Dice - {reference}'s", "p"), [method_row(m, rows[m], rows.get(reference)) for m in rows]),
    ]
    lines += ["", *table(("Dice", *rows), organ_rows(rows, organs))] if rows else []
    staged = {m: by_pair for m, by_pair in found.items() if any("stages_seconds" in r for r in by_pair.values())}
    lines += ["", *table(("s, median", *staged), stage_rows(staged))] if staged else []
    lines += ["", *(f"failed: {r['method']}, {r['pair']}: {r['error']}" for r in failed)] if failed else []
    return "\n".join(lines)


def methods_of(results: list[dict], order: tuple[str, ...]) -> list[str]:
    """The methods that have results, in the order given."""
    there = {r["method"] for r in results}
    return [m for m in order if m in there] + sorted(there - set(order))


def initial(found: dict[str, dict]) -> dict[str, dict]:
    """By pair, the scores before registration, which every method's results tell."""
    pairs = {pair: r["scores"] for by_pair in found.values() for pair, r in by_pair.items()}
    return {pair: {"scores": {k: s[f"{k}_initial"] for k in INITIAL}} for pair, s in pairs.items()}


def method_row(method: str, by_pair: dict[str, dict], reference: dict[str, dict] | None) -> list[str]:
    """One method's row: means over pairs, but the worst Dice and the medians of seconds and memory."""
    scores = [r["scores"] for r in by_pair.values()]
    dice = known(s["dice"] for s in scores)
    return [
        method,
        str(len(by_pair)),
        number(mean(dice), 3) if dice else "-",
        number(min(dice), 3) if dice else "-",
        *(number(mean_of(s.get(key) for s in scores), d) for key, d in
          (("hd95_mm", 1), ("sd_log_jacobian", 3), ("folding_percent", 3))),
        *(number(median_of(r.get(key) for r in by_pair.values()), d) for key, d in (("seconds", 1), ("peak_gb", 2))),
        *(["-", "-"] if method == "initial" or reference in (None, by_pair) else compared(by_pair, reference)),
    ]  # fmt: skip


def compared(by_pair: dict[str, dict], reference: dict[str, dict]) -> list[str]:
    """Mean difference of the Dice over the pairs that both have, and the p of Wilcoxon's two-sided signed-rank test."""
    both = [(by_pair[p]["scores"]["dice"], reference[p]["scores"]["dice"]) for p in by_pair.keys() & reference.keys()]
    differences = [a - b for a, b in both if a is not None and b is not None]
    p = float(wilcoxon(differences).pvalue) if any(differences) else math.nan
    return [number(mean_of(differences), 3), number(p, 3)]


def organ_rows(rows: dict[str, dict[str, dict]], organs: dict[str, str]) -> list[list[str]]:
    """A row for each organ that any pair has, with the mean Dice of each method."""
    ids = {i for by_pair in rows.values() for r in by_pair.values() for i in r["scores"]["label_dice"]}
    cells = {i: [mean_of(r["scores"]["label_dice"].get(i) for r in by_pair.values()) for by_pair in rows.values()] for i in ids}
    return [[organs.get(i, i).replace("_", " "), *(number(v, 3) for v in cells[i])] for i in sorted(ids, key=int)]


def stage_rows(staged: dict[str, dict[str, dict]]) -> list[list[str]]:
    """A row for each stage of nnssl_register in the order of their work, with the median seconds of each method."""
    told = [[r.get("stages_seconds", {}) for r in by_pair.values()] for by_pair in staged.values()]
    longest = sorted((stages for each in told for stages in each), key=len, reverse=True)
    names = dict.fromkeys(name for stages in longest for name in stages)
    return [[name, *(number(median_of(stages.get(name) for stages in each), 1) for each in told)] for name in names]


def known(values) -> list[float]:
    """Without None and NaN: a measure that a pair does not have."""
    return [v for v in values if v is not None and not math.isnan(v)]


def mean_of(values) -> float:
    values = known(values)
    return mean(values) if values else math.nan


def median_of(values) -> float:
    values = known(values)
    return median(values) if values else math.nan


def number(value: float, digits: int) -> str:
    return "-" if math.isnan(value) else f"{value:.{digits}f}"


def table(header: tuple[str, ...], rows: list[list[str]]) -> list[str]:
    """The lines of a markdown table."""
    return [f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *rows)]
