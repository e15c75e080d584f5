"""proof.py on phantoms: what is there is not made again, what fails is named, and every part leaves its table and pictures."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from nnssl_reg.commands.phantom_dataset import write_phantom_dataset
from nnssl_reg.imageio.pairs import read_pairs

SCORES = {"dice": 0.75, "dice_initial": 0.25, "hd95_mm": 3.0, "hd95_mm_initial": 9.0, "sd_log_jacobian": 0.4,
          "folding_percent": 0.0, "label_dice": {"1": 0.75}, "label_dice_initial": {"1": 0.25}}  # fmt: skip


def proof(*words) -> subprocess.CompletedProcess:
    command = [sys.executable, str(Path(__file__).with_name("proof.py")), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_results_that_are_there_become_tables_and_what_fails_is_named(tmp_path):
    folder, out = write_phantom_dataset(tmp_path / "raw", 1, 2, 0, seed=0), tmp_path / "out"
    pair = read_pairs(folder / "dataset.json")[0].id
    kept = out / folder.name / "mind" / f"{pair}.json"
    kept.parent.mkdir(parents=True)
    kept.write_text(json.dumps({"pair": pair, "method": "mind", "seconds": 5.0, "peak_gb": 1.0, "scores": SCORES}))
    words = ("--datasets", 1, "--methods", "mind", "--own", "raw=--features mind", "--pictured", "--coloured", 7)
    done = proof(tmp_path / "raw", out, "--skip", "robustness", "engine", "--pairs", 0, *words)
    text = (out / "proof.md").read_text()
    assert "| mind | 1 | 0.750 | 0.750 | 3.0 | 0.400 | 0.000 | 5.0 | 1.00 | - | - |" in text
    assert done.returncode == 1 and "pictures: " in text.split("## Failed")[1]  # there is no data set 7


@pytest.mark.slow
def test_every_part_leaves_its_table_and_pictures(tmp_path):
    for number, (ct, mr) in enumerate(((2, 0), (0, 2)), 1):
        write_phantom_dataset(tmp_path / "raw", number, ct, mr, seed=number)
    out, words = tmp_path / "out", ("--datasets", 1, "2to1", "--pairs", 1, "--changed-pairs", 1)
    words = (*words, "--shape", 48, 48, 48, "--methods", "raw,mind", "--pictured", 1, "2to1", "--pictured-method", "mind")
    done = proof(tmp_path / "raw", out, *words)
    assert done.returncode == 0, done.stderr
    text = (out / "proof.md").read_text()
    assert all(title in text for title in ("## Accuracy", "## Robustness", "## Speed", "## Features", "## Pictures"))
    assert [line.split(" | ")[0] for line in text.splitlines() if line.startswith("| raw | 1")] == ["| raw"]  # not MR to CT
    assert len(list((out / "pictures").glob("*__worst__*.png"))) == 2
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.json") if "pairs.json" not in path.name}
    assert proof(tmp_path / "raw", out, *words).returncode == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before
