"""The pairs that settings are tuned on, with their truths: labels, landmarks, or deformations made for the purpose."""

import logging
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from nnssl_reg.commands.pair_features import FeatureStore
from nnssl_reg.commands.pair_reader import check_names, read_pair
from nnssl_reg.commands.pair_types import ImagePair
from nnssl_reg.evaluation.known_pairs import make_known_pair
from nnssl_reg.evaluation.metrics import label_ids
from nnssl_reg.evaluation.tuning_score import LabelTruth, PointTruth, label_truth
from nnssl_reg.imageio.images import file_stem, read_image, write_image
from nnssl_reg.imageio.json_files import read_json, write_json
from nnssl_reg.imageio.landmarks import write_landmarks
from nnssl_reg.imageio.pairs import Pair, read_pairs

LEAST_PAIRS = 3  # two to tune on and one that is held out
SYNTHETIC_PAIRS = 6  # at least; images serve several times where there are fewer
HELD_OUT_EVERY = 3
log = logging.getLogger("nnssl_reg")


@dataclass(frozen=True, eq=False)
class TuningPair:
    """A pair of files, and what is known of it. bare: without label and landmark files, which need not be read again."""

    pair: Pair
    truth: LabelTruth | PointTruth

    @property
    def bare(self) -> Pair:
        return replace(self.pair, fixed_label=None, moving_label=None, fixed_landmarks=None, moving_landmarks=None,
                       rigid_mask=None)  # fmt: skip


def measure_of(pairs: Sequence[Pair], path: str, labels: Sequence[int] | None) -> str:
    """Which measure the pairs allow: "dice" if any has labels of both images, else "tre". Raises ValueError for neither."""
    if any(_has(pair, "label") for pair in pairs):
        return "dice"
    if labels:
        raise ValueError(f"-labels {' '.join(map(str, labels))}: no pair of {path} has labels of both images; name them as "
                         "fixed_label and moving_label.")  # fmt: skip
    if any(_has(pair, "landmarks") for pair in pairs):
        return "tre"
    raise ValueError(f"{path}: no pair has labels or landmarks of both images, so nothing tells good settings from bad. Name "
                     "them (fixed_label and moving_label, or fixed_landmarks and moving_landmarks), or tune on deformations "
                     "made for the purpose with --synthetic.")  # fmt: skip


def tuning_pairs(pairs: Sequence[Pair], measure: str, store: FeatureStore, labels: Sequence[int] | None) -> list[TuningPair]:
    """All pairs that have what is measured, read once. Raises ValueError with the problems of all of them."""
    kind = "label" if measure == "dice" else "landmarks"
    usable = [pair for pair in pairs if _has(pair, kind)]
    if len(usable) < len(pairs):
        log.warning("%d of %d pairs have no %s of both images and are left out.", len(pairs) - len(usable), len(pairs),
                    "labels" if kind == "label" else kind)  # fmt: skip
    found, problems, ids, checked = [], [], set(), set()
    for pair in usable:
        try:
            images = read_pair(pair, store)
            check_names(images, checked)
            truth = _truth(images, measure, labels)
            ids |= set() if measure != "dice" else _common(images)
            if truth is None:
                problems.append(f"{pair.id}: the two images have no {'wanted ' * bool(labels)}label in common")
            else:
                found.append(TuningPair(pair, truth))
        except (ValueError, OSError) as error:
            problems.append(f"{pair.id}: {error}")
    unknown = sorted(set(labels or ()) - ids)
    if unknown and ids:
        raise ValueError(f"-labels {' '.join(map(str, unknown))}: no pair has it in both images; there are "
                         f"{', '.join(map(str, sorted(ids)))}.")  # fmt: skip
    if problems:
        raise ValueError("These pairs cannot be tuned on; repair them or leave them out:\n" + "\n".join(problems))
    if len(found) < LEAST_PAIRS:
        raise ValueError(f"{len(found)} pair{'s' * (len(found) != 1)} with {'labels' if kind == 'label' else kind}: at least "
                         f"{LEAST_PAIRS} are needed, as every third is held out to judge what was found; or use --synthetic, "
                         "which makes pairs of single images.")  # fmt: skip
    return found


def make_synthetic(pairs: Sequence[Pair], folder: Path, seed: int, volume: int | None) -> list[Pair]:
    """Pairs of each image of `pairs` and a deformed one with changed intensities, with points, in folder; made once."""
    images = {path: channel for pair in pairs
              for path, channel in ((pair.fixed, pair.fixed_channel), (pair.moving, pair.moving_channel))}  # fmt: skip
    files = list(images) * -(-SYNTHETIC_PAIRS // len(images))
    about = {"seed": seed, "volume": volume, "images": [[str(path.resolve()), path.stat().st_mtime_ns] for path in files]}
    if not (folder / "about.json").is_file() or read_json(folder / "about.json") != about:
        entries = [_synthetic(number, path, images[path], folder, seed, volume) for number, path in enumerate(files)]
        write_json(folder / "pairs.json", entries)
        write_json(folder / "about.json", about)  # last: it says that all is there
    return read_pairs(folder / "pairs.json")


def split(pairs: Sequence[TuningPair]) -> tuple[list[TuningPair], list[TuningPair]]:
    """Those to tune on, and every third, held out."""
    held_out = list(pairs[HELD_OUT_EVERY - 1 :: HELD_OUT_EVERY])
    return [pair for pair in pairs if pair not in held_out], held_out


def sharing(tuned: Sequence[TuningPair], held_out: Sequence[TuningPair]) -> int:
    """How many held-out pairs have an image that is also tuned on."""
    seen = {path.resolve() for item in tuned for path in (item.pair.fixed, item.pair.moving)}
    return sum(bool({item.pair.fixed.resolve(), item.pair.moving.resolve()} & seen) for item in held_out)


def label_choice(args: Namespace) -> list[int] | None:
    """-labels, checked."""
    if args.labels is not None and min(args.labels) < 1:
        raise ValueError(f"-labels {' '.join(map(str, args.labels))}: label ids are whole numbers above 0 (0 is background).")
    return args.labels


def _has(pair: Pair, kind: str) -> bool:
    return getattr(pair, f"fixed_{kind}") is not None and getattr(pair, f"moving_{kind}") is not None


def _truth(images: ImagePair, measure: str, labels: Sequence[int] | None) -> LabelTruth | PointTruth | None:
    if measure == "dice":
        return label_truth(images.fixed.label, images.moving.label, set(labels) if labels else None)
    return PointTruth(*images.landmarks)


def _common(images: ImagePair) -> set[int]:
    return set(label_ids(images.fixed.label.array)) & set(label_ids(images.moving.label.array))


def _synthetic(number: int, path: Path, channel: str | None, folder: Path, seed: int, volume: int | None) -> dict:
    """Write one deformed image and the points of both; its entry in pairs.json."""
    made = make_known_pair(read_image(path, volume=volume), np.random.default_rng([seed, number]))
    name = f"{number:02d}_{file_stem(path)}"
    write_image(folder / f"{name}.nii.gz", made.moving)
    write_landmarks(folder / f"{name}_fixed.csv", made.fixed_points_mm, "ras")
    write_landmarks(folder / f"{name}_moving.csv", made.moving_points_mm, "ras")
    entry = {"id": name, "fixed": str(path.resolve()), "moving": f"{name}.nii.gz", "fixed_landmarks": f"{name}_fixed.csv",
             "moving_landmarks": f"{name}_moving.csv", "landmarks_space": "ras"}  # fmt: skip
    return entry if channel is None else entry | {"fixed_channel": channel}
