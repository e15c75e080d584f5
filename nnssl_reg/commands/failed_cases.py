"""failed_cases.csv: which cases a step had to leave out, and why."""

import csv
from pathlib import Path

from nnssl_reg.commands.case_pool import Outcome
from nnssl_reg.imageio.json_files import atomic_path

COLUMNS = ("step", "case", "file", "reason")
FILE_NAME = "failed_cases.csv"


def record_failures(folder: Path, step: str, failures: list[tuple[str, Path, str]]) -> Path:
    """Replace the rows of one step by (case, file, reason), keep those of other steps; without rows there is no file."""
    path = Path(folder) / FILE_NAME
    rows = [row for row in read_failures(folder) if row["step"] != step]
    rows += [dict(zip(COLUMNS, (step, name, str(file), reason))) for name, file, reason in sorted(failures)]
    if not rows:
        path.unlink(missing_ok=True)
        return path
    with atomic_path(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    return path


def read_failures(folder: Path) -> list[dict[str, str]]:
    """The rows of a folder's failed_cases.csv, none without one."""
    path = Path(folder) / FILE_NAME
    if not path.is_file():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        return [{column: row.get(column) or "" for column in COLUMNS} for row in csv.DictReader(file)]


def failures_of(outcomes: list[Outcome]) -> list[tuple[str, Path, str]]:
    """(case, file, reason) of the outcomes that failed; a task's argument knows its file as `image`."""
    return [(o.task.name, o.task.argument.image, o.error) for o in outcomes if o.error is not None]


def print_failures(dataset: str, failures: list[tuple[str, Path, str]], path: Path | None) -> None:
    """Say how many failed, the first few with their reasons, and where all stand."""
    if not failures:
        return
    print(f"{dataset}: {len(failures)} case{'s' * (len(failures) > 1)} left out:")
    for name, _, reason in failures[:5]:
        print(f"  {name}: {reason}")
    more = f"  ... and {len(failures) - 5} more. " if len(failures) > 5 else "  "
    print(f"{more}All stand in {path}" if path is not None else more)
