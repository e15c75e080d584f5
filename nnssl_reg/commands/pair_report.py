"""What report.html needs of a pair, kept in a small file beside its outputs; and the page made from all of these files."""

import logging
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import torch

from nnssl_reg.commands.pair_types import RegisteredPair
from nnssl_reg.evaluation.report import ReportPair, affordable, report_html
from nnssl_reg.evaluation.report_images import PairImages, PairPictures, pair_pictures
from nnssl_reg.evaluation.summary import PairResult
from nnssl_reg.geometry.image import FeatureMap, Image
from nnssl_reg.imageio.json_files import atomic_path, read_dataclass, read_json, write_json

log = logging.getLogger("nnssl_reg")
ENDING = "_pictures.json"


def write_pictures(folder: Path, pair_id: str, done: RegisteredPair, features: Sequence[FeatureMap],
                   before: tuple[Image, Image | None], warped: tuple[Image, Image | None]) -> str:  # fmt: skip
    """Write the pictures of a pair and return the file's name.

    features: of fixed, before, warped, at the fixed cells; before: the moving image and label after the initial alignment.
    """
    apart = None if done.apart_mm is None else Image(done.apart_mm.cpu().numpy()[None], done.features[0].grid)
    shown = tuple(FeatureMap(torch.nan_to_num(m.values.float().cpu()), m.grid) for m in features)
    images = PairImages(done.fixed, before[0], warped[0], done.field, done.fixed_label, before[1], warped[1], shown,
                        apart)  # fmt: skip
    write_json(folder / f"{pair_id}{ENDING}", pair_pictures(images))
    return f"{pair_id}{ENDING}"


def write_report(folder: Path, results: Sequence[PairResult], suffix: str = "") -> Path:
    """Write report.html from the results and the files beside it, and return its path. suffix: of its name."""
    files = {i: folder / f"{r.id}{ENDING}" for i, r in enumerate(results) if r.error is None}
    shown = affordable({i: path.stat().st_size for i, path in files.items() if path.is_file()}, results)
    pairs = [_report_pair(folder, result, files[i] if i in shown else None) for i, result in enumerate(results)]
    path = folder / f"report{suffix}.html"
    written = datetime.now().astimezone().strftime("%d %B %Y, %H:%M")
    with atomic_path(path) as temporary:
        temporary.write_text(report_html(folder.resolve().name, written, pairs), encoding="utf-8")
    return path


def _report_pair(folder: Path, result: PairResult, pictures: Path | None) -> ReportPair:
    """A pair with what its files tell; a file that is missing or broken leaves its part of the page out."""
    sidecar, path = {}, folder / f"{result.id}.json"
    try:
        sidecar = read_json(path) if result.error is None and path.is_file() else {}
        return ReportPair(result, sidecar, None if pictures is None else read_dataclass(PairPictures, pictures))
    except (ValueError, OSError) as error:
        log.warning("report.html shows less of %s: %s", result.id, error)
        return ReportPair(result, sidecar)
