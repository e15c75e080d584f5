"""nnssl_import_model: a shared model's zip, checked, into nnssl_results, where nnssl_register finds it."""

import os
import re
from argparse import Namespace
from pathlib import Path

from nnssl_reg.imageio.json_files import atomic_path, read_dataclass, read_json
from nnssl_reg.imageio.model_folder import CONFIGURATION, FILES, PLANS, whole_folder
from nnssl_reg.imageio.model_zip import WAY_OUT, unpack_model_zip
from nnssl_reg.paths import results_folder
from nnssl_reg.planning.plans import Plans
from nnssl_reg.pretraining.model_card import ModelCard, licences, one_line
from nnssl_reg.pretraining.shared_model import load_shared_model

_DATASET = re.compile(r"Dataset\d{3,6}_[A-Za-z0-9._+-]{1,80}")
_PART = re.compile(r"[A-Za-z0-9.-]+(_[A-Za-z0-9.-]+)*")  # without __, which parts the name of a model's folder


def run(args: Namespace) -> int:
    """Import one zip; of one that cannot be trusted or does not work nothing is left behind."""
    path, results = Path(args.zip).expanduser(), results_folder(args.results)
    with atomic_path(results / "import") as unpacked:
        unpacked.mkdir()
        unpack_model_zip(path, unpacked)
        card, place = _checked(unpacked, path, args.name)
        target = results / place
        with whole_folder(target, args.overwrite) as new:
            for name in FILES:
                os.replace(unpacked / name, new / name)
        unpacked.rmdir()
    print(f"{card.name}: {one_line(card)}\nLicence of its data: {licences(card)}")
    print(f"Known limits: {card.notes or 'the card names none'}\nImported to {target}")
    print(f"To use it: nnssl_register -f FIXED -m MOVING -d {target.parent.name}")
    return 0


def _checked(unpacked: Path, path: Path, name: str | None) -> tuple[ModelCard, Path]:
    """The card of a model that loads, and where it belongs; messages name the zip, not the folder that will be gone."""
    try:
        card = load_shared_model(unpacked, "cpu", WAY_OUT)[2]
        return card, _place(unpacked, path, name)
    except ValueError as error:
        raise ValueError(f"{str(error).replace(f'{unpacked}{os.sep}', f'{path}: ')} Nothing was imported.") from error


def _place(unpacked: Path, path: Path, name: str | None) -> Path:
    """Where a model belongs in the folder of results: as if it had been trained here. name: of the data set, instead."""
    plans = read_dataclass(Plans, unpacked / PLANS)
    configuration = read_json(unpacked / CONFIGURATION)["configuration"]
    dataset, where = (plans.dataset_name, f"{path}: {PLANS} names the data set") if name is None else (name, "-name gives")
    if not _DATASET.fullmatch(dataset):
        raise ValueError(f"{where} {dataset[:80]!r}, expected a name like Dataset001_Abdomen; choose one with -name.")
    for what, part in (("plans", plans.plans_name), ("configuration", configuration)):
        if not _PART.fullmatch(part) or len(part) > 80:
            raise ValueError(f"{path}: {PLANS} has {what} called {part[:80]!r}, expected letters, digits, single _, . and -. "
                             f"{WAY_OUT}")  # fmt: skip
    return Path(dataset) / f"DINO__{plans.plans_name}__{configuration}"
