"""nnssl_register: pairs of images in, warped images, transforms, pictures and scores out."""

import importlib.metadata
import logging
import time
from argparse import Namespace
from dataclasses import asdict, replace
from pathlib import Path

import torch
from tqdm import tqdm

from nnssl_reg.commands.model_choice import choose_model
from nnssl_reg.commands.pair_features import FeatureStore, Model
from nnssl_reg.commands.pair_outputs import write_pair
from nnssl_reg.commands.pair_transforms import Exports, chosen_exports, pack_submission
from nnssl_reg.commands.register_pair import register_pair
from nnssl_reg.commands.results import write_results
from nnssl_reg.evaluation.summary import PairResult
from nnssl_reg.geometry.grid import Grid
from nnssl_reg.imageio.images import read_grid
from nnssl_reg.imageio.pairs import Pair, default_pair_id, read_pairs
from nnssl_reg.planning.image_plan import RegistrationSettings, plan_images
from nnssl_reg.planning.overrides import apply_overrides
from nnssl_reg.planning.plans import FeaturesPlan, RegistrationPlan

LIBRARIES = ("nnssl_reg", "torch", "numpy", "SimpleITK", "nibabel", "numba")


def run(args: Namespace) -> int:
    """Register every pair; a failing pair does not stop the others. Exit code 1 if one failed."""
    if args.limit is not None and args.limit < 1:
        raise ValueError(f"-limit {args.limit}: at least one pair is needed; leave the flag out for all pairs.")
    pairs = _pairs(args)[: args.limit]
    exports = chosen_exports(args, pairs)
    device = _device(args.device)
    out = _output_folder(args)
    model = choose_model(args, device)
    kind = args.features or ("mind" if model is None else "dino")
    features, registration = _plans(args, pairs, model)
    settings = _settings(kind, model, device, features, registration)
    print(f"Registering {len(pairs)} pair{'s' * (len(pairs) != 1)} with {kind} features on {device}; results go to {out}")
    store = FeatureStore(kind, features, model, device, args.volume)
    bar = tqdm(pairs, unit="pair", disable=args.no_pbar)
    results = [_one(pair, store, registration, out, settings, not args.no_figures, exports) for pair in bar]
    if exports.zip:
        print(pack_submission(out, pairs))
    return write_results(out, results, settings)


def _one(pair: Pair, store: FeatureStore, plan: RegistrationPlan, out: Path, settings: dict, figures: bool,
         exports: Exports) -> PairResult:  # fmt: skip
    """Register one pair and write its files; an error becomes its row."""
    names = {"id": pair.id, "fixed": str(pair.fixed), "moving": str(pair.moving)}
    try:
        started = time.perf_counter()
        registered = register_pair(pair, store, plan)
        seconds = time.perf_counter() - started
        scores = write_pair(out, pair, registered, settings, seconds, figures, exports)
        return PairResult(**names, scores=scores, seconds=seconds)
    except (ValueError, OSError, RuntimeError, MemoryError) as error:  # RuntimeError: GPU memory, errors of ITK
        logging.getLogger("nnssl_reg").info("", exc_info=True)
        return PairResult(**names, error=(str(error) or type(error).__name__).splitlines()[0])


def _pairs(args: Namespace) -> list[Pair]:
    """The pairs of -i, or the one of -f and -m."""
    if args.i is not None:
        if any(v is not None for v in (args.f, args.m, args.fl, args.ml)):
            raise ValueError("Give either -i (a json of pairs) or -f and -m (two files), not both.")
        return read_pairs(args.i)
    if args.f is None or args.m is None:
        raise ValueError("What should be registered? Give -i PAIRS.json, or -f FIXED and -m MOVING.")
    paths = {"fixed": args.f, "moving": args.m, "fixed_label": args.fl, "moving_label": args.ml}
    paths = {key: None if value is None else Path(value).expanduser() for key, value in paths.items()}
    missing = [str(p) for p in paths.values() if p is not None and not p.is_file()]
    if missing:
        raise FileNotFoundError(f"These files do not exist: {', '.join(missing)}.")
    return [Pair(id=default_pair_id(paths["fixed"], paths["moving"]), **paths)]


def _output_folder(args: Namespace) -> Path:
    source = Path(args.i or args.f)
    out = Path(args.o).expanduser() if args.o else source.parent / f"{source.name.split('.')[0]}_registered"
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / ".write_test"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise OSError(f"Cannot write to {out} ({error.strerror}); choose another output folder with -o.") from error
    return out


def _plans(args: Namespace, pairs: list[Pair], model: Model | None) -> tuple[FeaturesPlan, RegistrationPlan]:
    """The model's stored sections, or the planner's rules applied to the images at hand; then --init and --set."""
    if model is not None:
        plans = RegistrationSettings(model.configuration.features, model.configuration.registration)
    else:
        plans = plan_images(_readable_grids(pairs))
    plans = apply_overrides(plans, args.overrides)
    features, registration = plans.features, plans.registration
    return features, registration if args.init is None else replace(registration, init=args.init)


def _readable_grids(pairs: list[Pair]) -> list[Grid]:
    """The grids of all pairs whose headers can be read; the others are reported when it is their turn.

    Raises ValueError if there is none.
    """
    grids, problems = [], []
    for pair in pairs:
        try:
            grids += [read_grid(pair.fixed), read_grid(pair.moving)]
        except (ValueError, OSError) as error:
            problems.append(str(error))
    if not grids:
        raise ValueError("No pair can be read: " + "\n".join(problems))
    return grids


def _device(name: str | None) -> torch.device:
    device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if not available.get(device.type, False):
        raise ValueError(f"-device {name}: there is no such device here; use -device cpu.")
    return device


def _settings(kind: str, model: Model | None, device, features: FeaturesPlan, registration: RegistrationPlan) -> dict:
    return {
        "features": kind,
        "model": None if model is None else str(model.folder),
        "device": str(device),
        "plans": {"features": asdict(features), "registration": asdict(registration)},
        "versions": {name: importlib.metadata.version(name) for name in LIBRARIES},
    }
