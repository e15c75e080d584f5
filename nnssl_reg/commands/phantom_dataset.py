"""A raw data set of phantoms: CT and MR files, labels, landmarks, and pairs whose true deformations are known."""

from pathlib import Path

import numpy as np

from nnssl_reg.evaluation.phantom_anatomy import LABELS
from nnssl_reg.evaluation.phantoms import Phantom, make_phantom, random_grid
from nnssl_reg.imageio.images import write_image
from nnssl_reg.imageio.json_files import read_json, write_json
from nnssl_reg.imageio.landmarks import write_landmarks

CHANNELS = ("CT", "MR")
FIELD_OF_VIEW_MM = {"CT": (385.0, 300.0, 320.0), "MR": (385.0, 300.0, 315.0)}
SPACING_MM = {"CT": (4.0, 4.0, 4.2), "MR": (4.2, 4.2, 5.2)}


def write_phantom_dataset(raw: Path, dataset_id: int, n_ct: int, n_mr: int, seed: int) -> Path:
    """Write Dataset<id>_Phantom into the folder of raw data and return its folder; what a seed gave is not made again.

    Files: imagesTr/Phantom_0001_0000.nii.gz (CT; MR has _0001), labelsTr/Phantom_0001.nii.gz, landmarksTr/Phantom_0001.csv
    (RAS mm, row by row the same anatomical points). Raises ValueError if the folder holds phantoms of another seed or number.
    """
    folder = raw / f"Dataset{dataset_id:03d}_Phantom"
    about = {"seed": seed, "ct": n_ct, "mr": n_mr}
    if (folder / "dataset.json").is_file():
        found = read_json(folder / "dataset.json").get("phantoms")
        if found != about:
            raise ValueError(f"{folder} holds other phantoms ({found}, wanted {about}); choose another folder with -o.")
        return folder
    modalities = ["CT"] * n_ct + ["MR"] * n_mr
    for number, modality in enumerate(modalities, 1):
        _write_case(folder, number, modality, draw_phantom(seed, number, modality))
    write_json(folder / "dataset.json", _description(modalities) | {"phantoms": about})  # last: it says that all is there
    return folder


def draw_phantom(seed: int, number: int, modality: str) -> Phantom:
    """Patient `number` of a seed, on a grid of its own: some 96 x 76 x 76 voxels (CT) or 92 x 72 x 61 (MR)."""
    rng = np.random.default_rng([seed, number])
    spacing = np.array(SPACING_MM[modality]) * rng.uniform(0.93, 1.07, 3)
    shape = np.rint(np.array(FIELD_OF_VIEW_MM[modality]) / spacing).astype(int)
    return make_phantom(rng, random_grid(rng, shape, spacing), modality)


def _write_case(folder: Path, number: int, modality: str, phantom: Phantom) -> None:
    name = f"Phantom_{number:04d}"
    write_image(folder / "imagesTr" / f"{name}_{CHANNELS.index(modality):04d}.nii.gz", phantom.image)
    write_image(folder / "labelsTr" / f"{name}.nii.gz", phantom.labels)
    write_landmarks(folder / "landmarksTr" / f"{name}.csv", phantom.landmarks_mm, "ras")


def _description(modalities: list[str]) -> dict:
    """The dataset.json. Pairs: one of each modality, and two of MR to CT, each patient in one of them."""
    numbers = {m: [i for i, modality in enumerate(modalities, 1) if modality == m] for m in CHANNELS}
    files = {i: f"./imagesTr/Phantom_{i:04d}_{CHANNELS.index(m):04d}.nii.gz" for i, m in enumerate(modalities, 1)}
    pairs = [(a[0], a[1]) for a in numbers.values() if len(a) > 1]
    pairs += list(zip(numbers["CT"][4:6], numbers["MR"][4:6]))
    return {
        "name": "Phantom",
        "description": "Computer-made abdomens: one anatomy under random smooth deformations, CT-like and MR-like",
        "channel_names": {str(i): name for i, name in enumerate(CHANNELS)},
        "labels": {"background": 0, **LABELS},
        "numTraining": len(modalities),
        "file_ending": ".nii.gz",
        "landmarks_space": "ras",
        "registration_val": [{"fixed": files[fixed], "moving": files[moving]} for fixed, moving in pairs],
    }
