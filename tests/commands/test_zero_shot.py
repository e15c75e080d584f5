"""Truths about the Dice that training tells of labelled pairs: it is what registering with the model gives."""

import json
from pathlib import Path

import numpy as np
import pytest

from nnssl_reg import register
from nnssl_reg.commands.entry import main
from nnssl_reg.geometry.grid import Grid
from nnssl_reg.geometry.image import Image
from nnssl_reg.imageio.images import write_image
from nnssl_reg.imageio.json_files import write_json

GRID = Grid((20, 20, 20), np.eye(4))


def write_ball(folder: Path, name: str, middle: float, label: int) -> dict[str, str]:
    """A noisy ball and its label."""
    index = np.moveaxis(np.indices(GRID.shape), 0, -1)
    inside = np.linalg.norm(index - [middle, 10, 10], axis=-1) < 5
    noise = np.random.default_rng(int(middle)).normal(0, 5, GRID.shape)
    files = {"image": folder / f"{name}.nii.gz", "label": folder / f"{name}_label.nii.gz"}
    write_image(files["image"], Image((100.0 * inside + noise)[None].astype(np.float32), GRID))
    write_image(files["label"], Image((label * inside)[None].astype(np.uint8), GRID))
    return {kind: str(path) for kind, path in files.items()}


def pairs_json(folder: Path, labels=(1, 1), **names: str) -> Path:
    fixed, moving = (write_ball(folder, *b) for b in (("one", 9, labels[0]), ("two", 12, labels[1])))
    entry = {"fixed": fixed["image"], "moving": moving["image"], "fixed_label": fixed["label"], "moving_label": moving["label"]}
    path = folder / "pairs.json"
    write_json(path, [{key: value for key, value in entry.items() if names.get(key, True)}])
    return path


def train(*args: str) -> int:
    return main(["999", *args, "--no_pbar", "-device", "cpu"], "nnssl_train_dino")


def test_the_dice_in_the_log_is_that_of_registering_with_the_model(folders, trainable):
    path = pairs_json(folders)
    assert train("-probe_pairs", str(path)) == 0
    rows = [json.loads(line) for line in (trainable / "training_log.jsonl").read_text().splitlines()]
    told = {row["step"]: row["probe_dice"] for row in rows if "probe_dice" in row}
    (pair,) = json.loads(path.read_text())
    done = register(pair["fixed"], pair["moving"], features="dino", model=trainable, device="cpu")
    scores = done.scores(pair["fixed_label"], pair["moving_label"])
    assert sorted(told) == [0, 4] and abs(told[4] - scores.dice) < 1e-6
    assert scores.dice > scores.dice_initial  # else this would hold for a map that does nothing
    assert f"zero-shot Dice {scores.dice:.3f}" in next(trainable.glob("training_log_*.txt")).read_text()


def test_dice_is_told_and_changes_nothing(folders, trainable):
    path = pairs_json(folders)
    assert train("-probe_pairs", str(path)) == 0
    weights = (trainable / "checkpoint_final.safetensors").read_bytes()
    trainable.rename(trainable.with_name("with_dice"))
    assert train() == 0 and (trainable / "checkpoint_final.safetensors").read_bytes() == weights


@pytest.mark.parametrize(
    ("made", "message"),
    [({"fixed_label": False}, "no pair has labels of both images"), ({"labels": (1, 2)}, "have no label in common")],
)
def test_pairs_without_a_dice_are_refused_before_training(folders, trainable, capsys, made, message):
    assert train("-probe_pairs", str(pairs_json(folders, **made))) == 1
    assert message in capsys.readouterr().err and not list(trainable.glob("checkpoint*"))
