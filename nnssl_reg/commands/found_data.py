"""How far each data set has come, read from the folders alone: raw, measured, planned, preprocessed, trained."""

import re
from pathlib import Path
from typing import Any

from nnssl_reg.commands.found_models import models_in
from nnssl_reg.imageio.json_files import read_json
from nnssl_reg.imageio.model_folder import is_shared_model

# as extract_fingerprint, images.py and pretrain_data.py have them, which load torch: here nothing heavy is loaded
FINGERPRINT = "dataset_fingerprint.json"
PRETRAIN_DATA = "pretrain_data.json"
IMAGES = (".nii.gz", ".nii", ".mha", ".mhd", ".nrrd")


def dataset_states(raw: Path | None, preprocessed: Path | None, results: Path | None) -> list[dict[str, Any]]:
    """The state of every data set that one of the folders knows; "about" puts it into a line."""
    folders = [folder for folder in (raw, preprocessed, results) if folder is not None and folder.is_dir()]
    names = {path.name for folder in folders for path in folder.iterdir() if re.fullmatch(r"Dataset\d+_.+", path.name)}
    return [_state(name, raw, preprocessed, results) for name in sorted(names)]


def _state(name: str, raw: Path | None, preprocessed: Path | None, results: Path | None) -> dict[str, Any]:
    try:
        listed = raw is not None and (raw / name / PRETRAIN_DATA).is_file() and not (raw / name / "imagesTr").is_dir()
        images = _images(raw / name / "imagesTr") if not listed and raw is not None and (raw / name).is_dir() else None
        planned = {} if preprocessed is None else _planned(preprocessed / name)
        measured = preprocessed is not None and (preprocessed / name / FINGERPRINT).is_file()
        models = [] if results is None else [path for path in models_in(results) if path.parent.name == name]
        trained = {path.name: "imported" if is_shared_model(path) else "trained" for path in models}
    except OSError as error:
        return {"name": name, "about": f"cannot be looked at: {error}"}
    raw_images = f"{images} images" if images is not None else f"images in {PRETRAIN_DATA}" if listed else "no raw images"
    parts = [raw_images, "measured" if measured else "not measured"]
    parts += [f"{plans}: {cases} preprocessed" for plans, cases in planned.items()] or ["not planned"]
    parts += [f"{model}: {how}" for model, how in trained.items()] or ["no model"]
    return {"name": name, "images": images, "fingerprint": measured, "preprocessed": planned, "models": trained,
            "about": "; ".join(parts)}  # fmt: skip


def _images(folder: Path) -> int:
    return sum(path.name.endswith(IMAGES) for path in folder.iterdir()) if folder.is_dir() else 0


def _planned(folder: Path) -> dict[str, int]:
    """Whole preprocessed cases of every configuration of every plans file, as in the name of their folder."""
    found = {}
    for path in sorted(folder.glob("*.json")):
        try:
            told = read_json(path) if path.name != FINGERPRINT else {}
            names = list(told.get("configurations", {})) if isinstance(told, dict) else []
        except ValueError as error:
            found[f"{path.name} ({error})"] = 0
            continue
        for name in names:
            cases = folder / f"{path.stem}_{name}"
            found[cases.name] = sum(1 for _ in cases.glob("*.json"))
    return found
