"""Which model a registration uses: the one named, the one in nnssl_results, the package's own, or none, and then MIND."""

import os
from argparse import Namespace
from pathlib import Path

import torch

from nnssl_reg.commands.found_models import models_in, packaged_models
from nnssl_reg.commands.pair_features import Model
from nnssl_reg.imageio.model_folder import is_shared_model
from nnssl_reg.paths import results_folder
from nnssl_reg.pretraining.checkpoint import load_encoder
from nnssl_reg.pretraining.model_card import one_line
from nnssl_reg.pretraining.shared_model import load_shared_model, read_shared_model

NOT_SET = "nnssl_results is not set"


def choose_model(args: Namespace, device: torch.device) -> Model | None:
    """The model to use, or None for MIND features. Says which, and why. Raises ValueError where several could be meant."""
    folder = _folder(args)
    if folder is None:
        return None
    model = load_model(folder, device)
    if model.default_features == "mind" and args.features is None and not _is_named(args):
        print(f"Model: none ({folder.name} says that MIND features measured better); MIND features are used.")
        return None
    name = f"{folder.name} (comes with the package)" if folder in packaged_models() else str(folder)
    about = "" if model.card is None else f", {one_line(model.card)}"
    only_across = (args.features or model.default_features) == "auto"
    print(f"Model: {name}{', only for CT beside another modality' if only_across else about}")
    return model


def packaged_model(features: str | None, device: torch.device) -> Model | None:
    """The model that comes with the package, None where these features (None: those that its card names) do without it."""
    packaged = packaged_models()
    if features == "mind" or not packaged:
        return None
    model = load_model(packaged[0], device)
    return None if features is None and model.default_features == "mind" else model


def load_model(folder: Path, device: torch.device) -> Model:
    """The model in a training output folder, or in one that nnssl_export_model or nnssl_import_model wrote."""
    if is_shared_model(folder):
        configuration, card = read_shared_model(folder)
        return Model(folder, configuration, lambda: load_shared_model(folder, device)[1], card)
    return Model(folder, *load_encoder(folder, device))


def model_folder(args: Namespace) -> Path:
    """The folder of the model that --model, -d, -c, -p name, else of the only one there is. Raises ValueError without one."""
    found = _named_or_found(args)
    if isinstance(found, Path):
        return found
    raise ValueError(f"There is no model to take: {found}. Name one with --model FOLDER, or train one with nnssl_train_dino.")


def model_called(name: str | Path) -> Path:
    """The folder of that path, or the packaged model of that name. Raises ValueError for a file."""
    packaged = {path.name: path for path in packaged_models()}
    folder = Path(name).expanduser()
    if folder.is_file():
        raise ValueError(f"The model {name} is a file; a model is a folder. Import a .zip first: nnssl_import_model {name}")
    return folder if folder.is_dir() else packaged.get(str(name), folder)


def _folder(args: Namespace) -> Path | None:
    """The folder of the model to use, None for MIND, which is said."""
    if args.features == "mind" and not _is_named(args):
        return None
    found = _named_or_found(args)
    if isinstance(found, Path):
        return found
    packaged = packaged_models()
    if not packaged:
        return _without_model(args, found)
    if found != NOT_SET:
        print(f"No model of yours: {found}.")
    return packaged[0]


def _named_or_found(args: Namespace) -> Path | str:
    """The model's folder, or a sentence why there is none where none was named. Raises ValueError for a wrong name."""
    if args.model is not None:
        return model_called(args.model)
    if not _is_named(args) and args.results is None and not os.environ.get("nnssl_results", "").strip():
        return NOT_SET
    results = results_folder(args.results, make=False)
    if not results.is_dir():
        return _no_folder(results, args)
    found = [folder for folder in models_in(results) if _matches(folder, args)]
    if len(found) == 1:
        return found[0]
    if not found:
        if _is_named(args):
            raise ValueError(f"No model in {results} fits {_flags(args)}; train one with nnssl_train_dino, or name another.")
        return f"there is no trained model in {results}"
    listed = "\n".join(f"  --model {f}" for f in found)
    raise ValueError(
        f"{len(found)} models fit {_flags(args)}; choose one with --model, -d, -c, -p, or --features mind:\n{listed}"
    )


def _no_folder(results: Path, args: Namespace) -> str:
    """A sentence about a folder of results that is not there; an error if a model of it, or the folder, was named."""
    source = "nnssl_results" if args.results is None else "-results"
    said = f"folder of models {results} (from {source}) {'is no folder' if results.exists() else 'does not exist'}"
    if _is_named(args) or args.results is not None:
        raise ValueError(f"The {said}; give the one that nnssl_train_dino or nnssl_import_model wrote to, -results FOLDER.")
    return f"the {said}"


def _is_named(args: Namespace) -> bool:
    return any(value is not None for value in (args.model, args.d, args.c, args.p))


def _matches(folder: Path, args: Namespace) -> bool:
    _, plans, configuration = folder.name.split("__", 2)
    dataset = folder.parent.name
    wanted = None if args.d is None else str(args.d)
    same = wanted is None or dataset == wanted or (wanted.isdigit() and dataset.startswith(f"Dataset{int(wanted):03d}_"))
    return same and args.p in (None, plans) and args.c in (None, configuration)


def _flags(args: Namespace) -> str:
    flags = [f"-{name} {getattr(args, name)}" for name in ("d", "c", "p") if getattr(args, name) is not None]
    return " ".join(flags) or "(no -d, -c, -p given)"


def _without_model(args: Namespace, why: str) -> None:
    """Say that MIND is used; an error if learned features were asked for."""
    if args.features in ("dino", "dino+mind", "auto"):
        raise ValueError(f"--features {args.features} needs a model, and {why}. Name one with --model FOLDER, or "
                         "train one with nnssl_train_dino; --features mind needs none.")  # fmt: skip
    print(f"Model: none ({why}); MIND features are used.")
