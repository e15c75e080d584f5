"""What nnssl_register and nnssl_evaluate leave for their pairs: metrics.csv, summary.json, report.html, a printed table."""

from collections.abc import Sequence
from pathlib import Path

from nnssl_reg.commands.pair_report import write_report
from nnssl_reg.evaluation.summary import PairResult, metrics_csv, results_table, summarise
from nnssl_reg.imageio.json_files import atomic_path, write_json


def write_results(folder: Path, results: Sequence[PairResult], settings: dict | None = None,
                  suffix: str = "") -> int:  # fmt: skip
    """Write the files, print the table and where they are. Returns the exit code: 1 if a pair failed, else 0.

    settings: how the pairs were registered, kept in summary.json; suffix: of the files' names, where they tell of a part only.
    """
    table, summary = folder / f"metrics{suffix}.csv", folder / f"summary{suffix}.json"
    with atomic_path(table) as temporary:
        temporary.write_text(metrics_csv(results), encoding="utf-8")
    write_json(summary, summarise(results) | {"settings": settings or {}})
    report = write_report(folder, results, suffix)
    failed = sum(r.error is not None for r in results)
    print(results_table(results))
    count = f"{len(results)} pair{'s' * (len(results) != 1)}" + (f", {failed} failed" if failed else "")
    print(f"{count}: {table}, {summary}, {report}")
    return 1 if failed else 0
