"""The files of one registered pair: warped image and label, transforms, a sidecar that explains them, a picture."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
from tqdm import tqdm

from nnssl_reg.commands import pair_transforms
from nnssl_reg.commands.pair_evidence import MetFeatures, evidence_of, met_features
from nnssl_reg.commands.pair_report import write_pictures
from nnssl_reg.commands.pair_transforms import FIELD_AND_COMPOSITE, Exports, WrittenTransforms, write_transforms
from nnssl_reg.commands.pair_types import RegisteredPair
from nnssl_reg.evaluation.figures import registration_figure
from nnssl_reg.evaluation.summary import Scores, judge, scores_told, with_confidence
from nnssl_reg.geometry.host_memory import peak_bytes
from nnssl_reg.geometry.image import Image
from nnssl_reg.imageio.images import write_image
from nnssl_reg.imageio.json_files import write_json
from nnssl_reg.imageio.pairs import Pair
from nnssl_reg.registration.rigid_regions import RigidRegion

MEANING = {
    "maps": "a point of the fixed image to the moving point that corresponds to it; images are pulled the other way, "
    "warped(p) = moving(p + field(p))",
    "features": "what was matched: mind (hand-made), dino (learned), or both",
    "smoothing_mm": "standard deviation of the Gaussian through which features saw both images, because one is noisy",
    "contrast": "how well local intensities agree after a first match beside MIND, whether they served, and whether so "
    "little difference was left that the images were taken for one patient's; null: not wanted",
    "initial_matrix": "initial alignment, fixed world -> moving world, homogeneous RAS mm",
}


def write_pair(folder: Path, pair: Pair, done: RegisteredPair, settings: dict, seconds: float, figures: bool,
               exports: Exports = FIELD_AND_COMPOSITE) -> Scores:  # fmt: skip
    """Write everything about a pair into `folder`, the sidecar last, and return its scores."""
    files = {"warped": f"{pair.id}_warped.nii.gz"}
    warped = done.field.warp(done.moving)
    with ThreadPoolExecutor(1, "transforms") as beside:  # packing and SimpleITK let go of Python's lock
        transforms = beside.submit(write_transforms, folder, pair, done, warped, exports)
        write_image(folder / files["warped"], warped)
        warped_label = None
        if done.moving_label is not None:
            files["warped_label"] = f"{pair.id}_warped_label.nii.gz"
            warped_label = done.field.warp(done.moving_label)
            write_image(folder / files["warped_label"], warped_label)
        scores = judge(done.field, done.fixed_label, done.moving_label, warped_label, done.landmarks, exports.learn2reg)
        met = met_features(done)
        scores = with_confidence(scores, evidence_of(done, met, scores.folding_percent))
        if figures:
            files |= _write_figures(folder, pair, done, met, (warped, warped_label), scores)
        written = transforms.result()
    tqdm.write(f"{pair.id}: {written.in_words()}")
    files |= written.files
    write_json(folder / f"{pair.id}.json", _sidecar(pair, done, settings, seconds, scores, files, written))
    return scores


def _write_figures(folder: Path, pair: Pair, done: RegisteredPair, met: MetFeatures,
                   warped: tuple[Image, Image | None], scores: Scores) -> dict[str, str]:  # fmt: skip
    """Write the picture of a pair and those of its report; returns the files' names. warped: image and label."""
    start, grid, labels = done.alignment.transform, done.fixed.grid, {}
    before, before_label = start.warp(done.moving, grid), None
    if done.fixed_label is not None and done.moving_label is not None:
        before_label = start.warp(done.moving_label, grid)
        labels = {"fixed_label": done.fixed_label, "moving_label": before_label, "warped_label": warped[1]}
    picture = f"{pair.id}.png"
    title = _title(pair, done, scores)
    registration_figure(folder / picture, done.fixed, before, warped[0], done.field, title, **labels)
    report = write_pictures(folder, pair.id, done, met.features, (before, before_label), warped)
    return {"picture": picture, "report": report}


def _title(pair: Pair, done: RegisteredPair, scores: Scores) -> str:
    parts = [f"initial alignment: {done.alignment.name}"]
    if not np.isnan(scores.dice):
        parts.append(f"Dice {scores.dice_initial:.3f} -> {scores.dice:.3f}")
    parts.append(f"SDlogJ {scores.sd_log_jacobian:.3f}")
    parts.append(f"J <= 0: {scores.folding_percent:.3f} %")
    return f"{pair.id}\n{'   '.join(parts)}"


def _sidecar(pair: Pair, done: RegisteredPair, settings: dict, seconds: float, scores: Scores, files: dict,
             written: WrittenTransforms) -> dict:  # fmt: skip
    length, peak = done.field.vectors_mm.square().sum(0).sqrt(), peak_bytes()
    return {
        "id": pair.id,
        "fixed": str(pair.fixed),
        "moving": str(pair.moving),
        "files": files,
        "meaning": MEANING | {kind: text for kind, text in pair_transforms.MEANING.items() if kind in files},
        "displacement_mm": {"mean": float(length.mean()), "max": float(length.max())},
        **written.sidecar(),
        "initial": {"name": done.alignment.name, "costs": done.alignment.costs},
        "features": done.look.kind,
        "smoothing_mm": done.look.smoothing_mm,
        "contrast": None if done.contrast is None else asdict(done.contrast),
        "initial_matrix": done.alignment.transform.matrix.tolist(),
        **({} if done.flow is None else {"diffeomorphic": {"mean_mm_from_the_field_found": done.flow.distance_mm}}),
        **({"rigid_regions": [_told(region) for region in done.rigid]} if done.rigid else {}),
        "scores": scores_told(scores),
        "seconds": round(seconds, 3),
        "stages_seconds": done.seconds,
        "peak_memory_gb": None if peak is None else round(peak / 2**30, 3),
        "settings": settings,
        "written": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def _told(region: RigidRegion) -> dict:
    """A rigid region as the sidecar keeps it. matrix: fixed world -> moving world, homogeneous RAS mm."""
    return {
        "id": region.id,
        "voxels": region.voxels,
        "rotation_degrees": round(region.rotation_degrees, 3),
        "misfit_mm": round(region.misfit_mm, 3),
        "band_mm": round(region.band_mm, 1),
        "matrix": region.matrix.tolist(),
    }
