"""nnssl_tune_registration: settings of the registration searched on pairs whose truth is known, judged on pairs held out."""

import os
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from nnssl_reg.commands.finished_pairs import inputs_of
from nnssl_reg.commands.model_choice import choose_model
from nnssl_reg.commands.registration_setup import Setup, device_called, make_setup, readable_grids
from nnssl_reg.commands.stop_request import StopRequest
from nnssl_reg.commands.tuning_pairs import (
    TuningPair,
    label_choice,
    make_synthetic,
    measure_of,
    sharing,
    split,
    tuning_pairs,
)
from nnssl_reg.commands.tuning_trials import LogBook, Trial, Trials
from nnssl_reg.evaluation.tuning_score import MEASURES, Measure
from nnssl_reg.imageio.json_files import read_dataclass, read_json, write_json
from nnssl_reg.imageio.pairs import read_pairs
from nnssl_reg.planning.image_plan import RegistrationSettings
from nnssl_reg.planning.plans import Plans
from nnssl_reg.planning.tuned_settings import TunedSettings, with_tuned
from nnssl_reg.planning.tuning_search import (
    Parameter,
    coordinate_search,
    is_affordable,
    search_space,
    tunable,
    values_at,
)


def run(args: Namespace) -> int:
    """Search, judge on the pairs held out, write. Exit code 0, or 128 + the signal that stopped it."""
    _check_flags(args)
    labels, pairs = label_choice(args), read_pairs(args.i)
    kind = "synthetic" if args.synthetic else measure_of(pairs, args.i, labels)
    device, out = device_called(args.device), _output_folder(args)
    model = choose_model(args, device)
    setup = make_setup(readable_grids(pairs), device, model=model, kind=args.features, init=args.init, overrides=args.overrides)
    space = _space(setup, args)
    if args.synthetic:
        print(f"Making pairs with known deformations in {out / 'synthetic'}.")
        pairs = make_synthetic(pairs, out / "synthetic", args.seed, args.volume)
    items = tuning_pairs(pairs, kind, setup.store(args.volume), labels)
    tuned_on, held_out = split(items)
    about = _about(setup, args, kind, items, space)
    book = LogBook(out / "tuning_log.json", about, args.overwrite)
    print(setup.told())
    print(f"Tuning {len(space)} parameters on {len(tuned_on)} pairs ({MEASURES[kind].name}), {args.trials} trials at most; "
          f"{_held(tuned_on, held_out)}. Results go to {out}")  # fmt: skip
    if book.log.trials:
        print(f"{len(book.log.trials)} trials are in {book.path} already and are not made again.")
    with StopRequest(args.max_minutes) as stop:
        found = _tuned(args, setup, MEASURES[kind], book, space, (tuned_on, held_out), stop)
        if found is None:
            print(f"Stopped after {len(book.log.trials)} trials; the same command goes on.")
            return stop.exit_code
    print(_written(out, setup, found))
    return 0


def _tuned(args: Namespace, setup: Setup, measure: Measure, book: LogBook, space: Sequence[Parameter],
           pairs: tuple[list[TuningPair], list[TuningPair]], stop: StopRequest) -> TunedSettings | None:  # fmt: skip
    """The search and its judgement; None if a signal stopped it. When the time is up, the best so far is judged."""
    tuned_on, held_out = pairs
    planned = RegistrationSettings(setup.features, setup.registration)
    start = values_at(space, tuple(parameter.planned for parameter in space))
    total = args.trials * len(tuned_on) + 2 * len(held_out)
    done = sum(len(tuned_on if trial.part == "tuning" else held_out) for trial in book.log.trials)
    with tqdm(total=total, initial=min(done, total), unit="pair", disable=args.no_pbar) as bar:
        trials = Trials(setup, measure, book, args.volume, bar.update, lambda: stop.signal is not None)
        best = first = trials.of("tuning", start, tuned_on)
        if first is None:
            return None

        def score(position) -> float | None:
            nonlocal best
            values = values_at(space, position)
            trial = book.find("tuning", values) if stop else trials.of("tuning", values, tuned_on, best)
            if trial is None:
                return None
            found = -np.inf if trial.objective is None else trial.objective
            best = trial if found > best.objective + measure.gain else best
            bar.set_postfix_str(measure.text(best.value))
            return found

        coordinate_search(space, score, args.trials, measure.gain, np.random.default_rng(args.seed),
                          lambda position: is_affordable(planned, values_at(space, position)))  # fmt: skip
        values = {parameter.name: best.values[parameter.name] for parameter in space}
        judged = [trials.of("held_out", v, held_out) for v in (start, values)]
    if None in judged or stop.signal is not None:
        return None
    return _judgement(setup, measure, start, values, (first, best), judged, book)


def _judgement(setup: Setup, measure: Measure, start: dict, values: dict, tuned: tuple[Trial, Trial], held: Sequence[Trial],
               book: LogBook) -> TunedSettings:  # fmt: skip
    """The values to use, with their scores and the reason: the planned ones where the pairs held out are not better."""
    planned, best = (trial.value for trial in tuned)
    count_held = f"{len(held[0].pairs)} pair{'s' * (len(held[0].pairs) != 1)}"
    parts = [f"tuned on {len(tuned[0].pairs)} pairs: {measure.text(best)} against {measure.number(planned)} planned",
             f"on {count_held} held out {measure.text(held[1].value)} against {measure.number(held[0].value)}"]  # fmt: skip
    count = sum(trial.part == "tuning" for trial in book.log.trials)
    better = held[1].objective > held[0].objective and tuned[1] is not tuned[0]
    if tuned[1] is tuned[0]:
        reason = (
            f"planned values kept: none of {count} trials on {len(tuned[0].pairs)} pairs was better ({measure.text(planned)})"
        )
    elif not better:
        reason = "planned values kept, as the pairs held out did not get better: " + "; ".join(parts)
    else:
        reason = "; ".join(parts)
    scores = {
        "measure": measure.name,
        "trials": count,
        **{f"{part}_{name}": {"value": trial.value, "objective": trial.objective}
           for part, both in (("tuning", tuned), ("held_out", held)) for name, trial in zip(("planned", "best"), both)},
        "best_values": values,
    }  # fmt: skip
    return TunedSettings(setup.kind, values if better else start, reason, scores)


def _written(out: Path, setup: Setup, found: TunedSettings) -> str:
    """Write tuned_settings.json, and with a model that was trained here a copy of its plans. What to say about it."""
    path = out / "tuned_settings.json"
    write_json(path, found)
    changed = {name: value for name, value in found.values.items() if value not in (p := _planned(setup, name), _listed(p))}
    lines = [f"{found.reason[0].upper()}{found.reason[1:]}."]
    lines += [f"  {name}: {_planned(setup, name)} -> {value}" for name, value in changed.items()]
    lines.append(f"Use them with: nnssl_register --settings {path}")
    if setup.model is not None and setup.model.card is None:  # a shared model is planned anew for the images at hand
        copy = _write_plans(out, setup.model.folder, found)
        lines.append(f"{copy} is a copy of the model's plans with these values; put in the place of the model's own "
                     "nnsslPlans.json, it makes them its default.")  # fmt: skip
    return "\n".join(lines)


def _write_plans(out: Path, folder: Path, found: TunedSettings) -> Path:
    plans = read_dataclass(Plans, folder / "nnsslPlans.json")
    name = read_json(folder / "configuration.json")["configuration"]
    changed = with_tuned(plans.configurations[name], found.values, found.reason)
    path = out / "nnsslPlans_tuned.json"
    write_json(path, replace(plans, configurations={**plans.configurations, name: changed}))
    return path


def _planned(setup: Setup, name: str) -> Any:
    section, _, field = name.partition(".")
    return getattr(getattr(setup, section), field)


def _listed(value: Any) -> Any:
    """A value as json gives it back."""
    return list(value) if isinstance(value, tuple) else value


def _space(setup: Setup, args: Namespace) -> list[Parameter]:
    """The parameters to search: all that matter, or those of -parameters; not what --set fixes."""
    planned = RegistrationSettings(setup.features, setup.registration)
    names = tunable(planned, setup.kind)
    unknown = [name for name in args.parameters or () if name not in names]
    if unknown:
        raise ValueError(f"-parameters {' '.join(unknown)}: with {setup.kind} features there are {', '.join(names)}.")
    fixed = {override.partition("=")[0].strip() for override in args.overrides}
    chosen = [name for name in names if name in (args.parameters or names) and name not in fixed]
    if not chosen:
        raise ValueError("--set fixes every parameter that was to be tuned; leave some out of it.")
    return search_space(planned, chosen)


def _about(setup: Setup, args: Namespace, kind: str, items: Sequence[TuningPair], space: Sequence[Parameter]) -> dict:
    """What decides the outcome of trials."""
    return {
        "measure": kind,
        "labels": args.labels,
        "seed": args.seed,
        "features": setup.kind,
        "model": setup.record["model_fingerprint"],
        "planned values": {"features": asdict(setup.features), "registration": asdict(setup.registration)},
        "parameters": {parameter.name: parameter.values for parameter in space},
        "pairs": [{"id": item.pair.id, **inputs_of(item.pair, args.volume)} for item in items],
    }


def _held(tuned_on: Sequence[TuningPair], held_out: Sequence[TuningPair]) -> str:
    count = sharing(tuned_on, held_out)
    shared = f" ({count} with an image that is tuned on)" if count else ""
    return f"{len(held_out)} pair{'s are' if len(held_out) != 1 else ' is'} held out{shared}"


def _check_flags(args: Namespace) -> None:
    if args.synthetic and args.labels:
        raise ValueError("--synthetic looks at no labels; leave out it or -labels.")
    if args.trials < 2:
        raise ValueError(f"-trials {args.trials}: at least 2 are needed, the planned values and others.")


def _output_folder(args: Namespace) -> Path:
    """-o, else beside the json of pairs; made if need be."""
    out = Path(args.o).expanduser() if args.o else Path(args.i).parent / f"{Path(args.i).name.split('.')[0]}_tuned"
    out.mkdir(parents=True, exist_ok=True)
    if not os.access(out, os.W_OK):
        raise OSError(f"Cannot write to {out}; choose another output folder with -o.")
    return out
