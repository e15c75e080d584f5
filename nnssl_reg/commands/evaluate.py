"""Judge the transforms that nnssl_register wrote, from the labels and the stored fields alone."""

import logging
import math
from argparse import Namespace
from dataclasses import fields
from pathlib import Path

from tqdm import tqdm

from nnssl_reg.commands.results import write_results
from nnssl_reg.evaluation.confidence import Evidence
from nnssl_reg.evaluation.summary import PairResult, Scores, judge, with_confidence
from nnssl_reg.geometry.displacement import DisplacementField
from nnssl_reg.geometry.image import Image
from nnssl_reg.imageio.images import read_grid, read_labels
from nnssl_reg.imageio.json_files import read_json
from nnssl_reg.imageio.pairs import Pair, read_pair_landmarks, read_pairs
from nnssl_reg.imageio.transforms import read_transform

log = logging.getLogger("nnssl_reg")


def run(args: Namespace) -> int:
    """Write metrics.csv and summary.json anew. Exit code 1 if a pair could not be judged; the others are."""
    folder = Path(args.o)
    pairs = read_pairs(args.i)
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder; -o is the folder that nnssl_register wrote, with a field for each pair.")
    bar = tqdm(pairs, unit="pair", disable=args.no_pbar)
    results = [_result(pair, folder) for pair in bar]
    if not any(r.scores.label_dice for r in results):
        print("No pair has labels in both images: the fields alone are judged.")
    return write_results(folder, results, _settings(folder))


def _result(pair: Pair, folder: Path) -> PairResult:
    """The row of one pair, with its error if it cannot be judged."""
    names = {"id": pair.id, "fixed": str(pair.fixed), "moving": str(pair.moving)}
    try:
        field = _field(pair, folder)
        labels = [None if path is None else read_labels(path) for path in (pair.fixed_label, pair.moving_label)]
        landmarks = read_pair_landmarks(pair, field.grid, read_grid(pair.moving))
        scores = judge(field, *labels, landmarks=landmarks, learn2reg=True)
        scores = _with_stored_evidence(scores, folder / f"{pair.id}.json")
        _compare_with_stored(pair, folder, field, labels[1])
        return PairResult(**names, scores=scores, seconds=_seconds(folder / f"{pair.id}.json"))
    except (ValueError, OSError) as error:
        return PairResult(**names, error=str(error))


def _field(pair: Pair, folder: Path) -> DisplacementField:
    """The stored total field of a pair; it must lie on the fixed image's grid."""
    paths = [folder / f"{pair.id}_field.nii.gz", folder / f"{pair.id}_transform.h5"]
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        raise ValueError(f"neither {paths[0].name} nor {paths[1].name} is in {folder}; register this pair first")
    field, grid = read_transform(path), read_grid(pair.fixed)
    if path is paths[1]:
        field = field.on(grid)  # a composite stores its deformation on a coarser lattice that covers the fixed image
    if not field.grid.matches(grid, tolerance_mm=0.1):
        raise ValueError(f"{path} lies on {field.grid}, the fixed image on {grid}; was it written for another image?")
    return field


def _compare_with_stored(pair: Pair, folder: Path, field: DisplacementField, moving_label: Image | None) -> None:
    """Warn where the stored warped label is not what the stored field gives."""
    path = folder / f"{pair.id}_warped_label.nii.gz"
    if moving_label is None or not path.is_file():
        return
    stored = read_labels(path)
    if not stored.grid.matches(field.grid, tolerance_mm=0.1):
        log.warning("%s is on another grid than the field beside it.", path)
        return
    differing = 100 * float((stored.array != field.warp(moving_label).array).mean())
    if differing > 0.1:
        log.warning(
            "%s and the field beside it disagree in %.2f %% of the voxels; the scores are the field's.", path, differing
        )


def _with_stored_evidence(scores: Scores, sidecar: Path) -> Scores:
    """Scores with the confidence that registration found, if its sidecar tells: the field alone does not."""
    told = read_json(sidecar).get("scores", {}) if sidecar.is_file() else {}
    if "confidence" not in told:
        return scores
    known = {f.name: float(told.get(f.name, math.nan)) for f in fields(Evidence)}
    return with_confidence(scores, Evidence(**known | {"folding_percent": scores.folding_percent}))


def _seconds(sidecar: Path) -> float:
    """The time that registration took, if its sidecar tells."""
    value = read_json(sidecar).get("seconds") if sidecar.is_file() else None
    return float(value) if isinstance(value, (int, float)) else math.nan


def _settings(folder: Path) -> dict | None:
    """How the pairs were registered, from the summary that is about to be replaced."""
    path = folder / "summary.json"
    return read_json(path).get("settings") if path.is_file() else None
