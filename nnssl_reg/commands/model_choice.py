"""Which model a registration uses: the folder named, the one found in nnssl_results, or none, and then MIND."""

import os
from argparse import Namespace
from pathlib import Path

import torch

from nnssl_reg.commands.pair_features import Model
from nnssl_reg.paths import results_folder
from nnssl_reg.pretraining.checkpoint import load_encoder


def choose_model(args: Namespace, device: torch.device) -> Model | None:
    """The model to use, or None for MIND features. Says which, and why. Raises ValueError where several could be meant."""
    folder = _model_folder(args)
    if folder is None:
        return None
    configuration, encoder = load_encoder(folder, device)
    print(f"Model: {folder}")
    return Model(folder, configuration, encoder)


def _model_folder(args: Namespace) -> Path | None:
    named = args.model is not None or args.d is not None or args.c is not None or args.p is not None
    if args.features == "mind" and not named:
        return None
    if args.model is not None:
        return Path(args.model).expanduser()
    if not named and args.results is None and not os.environ.get("nnssl_results", "").strip():
        return _without_model(args, "nnssl_results is not set")
    results = results_folder(args.results)
    found = [f for f in sorted(results.glob("Dataset*/*__*__*")) if _matches(f, args) and any(f.glob("checkpoint_*.json"))]
    if len(found) == 1:
        return found[0]
    if not found:
        if named:
            raise ValueError(f"No model in {results} fits {_flags(args)}; train one with nnssl_train_dino, or name another.")
        return _without_model(args, f"there is no trained model in {results}")
    listed = "\n".join(f"  --model {f}" for f in found)
    raise ValueError(
        f"{len(found)} models fit {_flags(args)}; choose one with --model, -d, -c, -p, or --features mind:\n{listed}"
    )


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
    if args.features in ("dino", "dino+mind"):
        raise ValueError(f"--features {args.features} needs a model, and {why}. Name one with --model FOLDER, or "
                         "train one with nnssl_train_dino; --features mind needs none.")  # fmt: skip
    print(f"Model: none ({why}); MIND features are used.")
