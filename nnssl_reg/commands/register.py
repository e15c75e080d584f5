"""nnssl_register: pairs of images in, warped images, transforms, pictures and scores out."""

import logging
import os
from argparse import Namespace
from functools import partial
from pathlib import Path

from tqdm import tqdm

from nnssl_reg.commands.entry import mendable
from nnssl_reg.commands.finished_pairs import finished_result, inputs_of
from nnssl_reg.commands.model_choice import choose_model
from nnssl_reg.commands.pair_memory import check_memory, memory_told
from nnssl_reg.commands.pair_outputs import write_pair
from nnssl_reg.commands.pair_reader import PairReader
from nnssl_reg.commands.pair_transforms import Exports, chosen_exports, pack_submission
from nnssl_reg.commands.pair_writer import PairWriter, write_whole
from nnssl_reg.commands.register_pair import register_pair
from nnssl_reg.commands.registration_setup import Setup, device_called, make_setup, readable_grids
from nnssl_reg.commands.results import write_results
from nnssl_reg.evaluation.summary import PairResult
from nnssl_reg.imageio.images import file_stem, read_grid
from nnssl_reg.imageio.pairs import Pair, default_pair_id, file_problems, read_pairs

# what can be wrong with one pair; RuntimeError: GPU memory, errors of ITK
PAIR_ERRORS = (ValueError, OSError, RuntimeError, MemoryError)
log = logging.getLogger("nnssl_reg")


def run(args: Namespace) -> int:
    """Register every pair; a failing pair does not stop the others. Exit code 1 if one failed."""
    _check_numbers(args)
    every = _pairs(args)
    _check_rigid(every, args)
    pairs = every[: args.limit][args.part_id :: args.num_parts]
    exports = chosen_exports(args, every[: args.limit])
    device = device_called(args.device)
    out = _output_folder(args)
    # from all pairs, whatever part of them is done now, so that all parts and later runs use the same numbers
    setup = make_setup(readable_grids(every), device, model=choose_model(args, device),
                       kind=args.features, init=args.init, overrides=args.overrides, regularisation=args.regularisation,
                       diffeomorphic=args.diffeomorphic, settings=args.settings)  # fmt: skip
    print(setup.told())
    print(memory_told(pairs, setup))
    part = "" if args.num_parts == 1 else f" (part {args.part_id} of 0 ... {args.num_parts - 1})"
    print(f"Registering {len(pairs)} pair{'s' * (len(pairs) != 1)}{part} with {setup.kind} features on {device}; results go "
          f"to {out}")  # fmt: skip
    results = {} if args.overwrite else _finished(pairs, setup, out, args, exports)
    if results:
        print(f"{len(results)} of them {'is' if len(results) == 1 else 'are'} there already, made in the same way, and kept "
              "(--overwrite: register all again).")  # fmt: skip
    results |= _register([pair for pair in pairs if pair.id not in results], setup, out, args, exports)
    if exports.zip and args.num_parts == 1:
        print(pack_submission(out, pairs))
    suffix = "" if args.num_parts == 1 else f"_part{args.part_id}of{args.num_parts}"
    return write_results(out, [results[pair.id] for pair in pairs], setup.record, suffix)


def _register(pairs: list[Pair], setup: Setup, out: Path, args: Namespace, exports: Exports) -> dict[str, PairResult]:
    """Register pairs one after the other, reading ahead and writing behind; an error becomes the pair's row."""
    results, rows = {}, {pair.id: {"id": pair.id, "fixed": str(pair.fixed), "moving": str(pair.moving)} for pair in pairs}
    store = setup.store(args.volume)
    with tqdm(total=len(pairs), unit="pair", disable=args.no_pbar or not pairs) as bar:

        def over(name: str, found: PairResult | BaseException) -> None:
            if isinstance(found, BaseException):
                if not isinstance(found, PAIR_ERRORS):
                    raise found
                log.info("%s", name, exc_info=found)
                said = mendable(found, "nnssl_register") or str(found) or type(found).__name__
                found = PairResult(**rows[name], error=said.splitlines()[0])
            results[name] = found

        def fits(pair: Pair) -> None:
            check_memory(pair.id, (read_grid(pair.fixed), read_grid(pair.moving)), setup)

        with PairReader(pairs, store, fits) as reader, PairWriter(over) as writer:
            for pair, images in reader:
                try:
                    settings = _settings(pair, setup, args)
                    done = register_pair(images.result(), store, setup.registration, is_diffeomorphic=setup.diffeomorphic,
                                         on_stage=bar.set_postfix_str)  # fmt: skip
                except PAIR_ERRORS as error:
                    over(pair.id, error)
                else:
                    writer.write(pair.id, _written, out, pair, done, settings, not args.no_figures, exports)
                    del done
                del images
                bar.set_postfix_str("", refresh=False)
                bar.update()
    return results


def _written(out: Path, pair: Pair, done, settings: dict, figures: bool, exports: Exports) -> PairResult:
    """Write a pair's files, in the writer's thread, beside which the next pair is computed."""
    seconds = sum(done.seconds.values())
    write = partial(write_pair, pair=pair, done=done, settings=settings, seconds=seconds, figures=figures, exports=exports)
    return PairResult(pair.id, str(pair.fixed), str(pair.moving), write_whole(out, pair.id, write), seconds)


def _settings(pair: Pair, setup: Setup, args: Namespace) -> dict:
    """The run's settings and what goes into this pair, as its sidecar keeps them."""
    return setup.record | {"inputs": inputs_of(pair, args.volume)}


def _finished(pairs: list[Pair], setup: Setup, out: Path, args: Namespace, exports: Exports) -> dict[str, PairResult]:
    """The rows of pairs that need not be registered again."""
    wanted = {"warped", *exports.kinds()} | (set() if args.no_figures else {"picture", "report"})
    found = {pair.id: finished_result(out, pair, _settings(pair, setup, args), wanted) for pair in pairs}
    return {name: result for name, result in found.items() if result is not None}


def _check_numbers(args: Namespace) -> None:
    if args.limit is not None and args.limit < 1:
        raise ValueError(f"-limit {args.limit}: at least one pair is needed; leave the flag out for all pairs.")
    if args.num_parts < 1 or not 0 <= args.part_id < args.num_parts:
        raise ValueError(f"-num_parts {args.num_parts} -part_id {args.part_id}: of N parts the ids are 0 ... N - 1.")


def _check_rigid(pairs: list[Pair], args: Namespace) -> None:
    rigid = [pair.id for pair in pairs if pair.rigid_mask is not None]
    if args.diffeomorphic and rigid:
        raise ValueError(f"--diffeomorphic: a field with rigid regions is no flow; {rigid[0]} has a rigid mask. Leave out one.")


def _pairs(args: Namespace) -> list[Pair]:
    """The pairs of -i, or the one of -f and -m."""
    own = {"fixed": args.f, "moving": args.m, "fixed_label": args.fl, "moving_label": args.ml, "fixed_mask": args.fmask,
           "moving_mask": args.mmask, "rigid_mask": args.rigid_mask}  # fmt: skip
    if args.i is not None:
        if any(v is not None for v in own.values()):
            raise ValueError("Give either -i (a json of pairs) or -f and -m (two files, their labels and masks), not both.")
        return read_pairs(args.i)
    if args.f is None or args.m is None:
        raise ValueError("What should be registered? Give -i PAIRS.json, or -f FIXED and -m MOVING.")
    paths = {key: Path(value).expanduser() for key, value in own.items() if value is not None}
    problems = file_problems(paths)
    if problems:
        raise ValueError("These files cannot be registered:\n" + "\n".join(f"  {problem}" for problem in problems))
    return [Pair(id=default_pair_id(paths["fixed"], paths["moving"]), **paths)]


def _output_folder(args: Namespace) -> Path:
    """-o; else beside the json of pairs, or, for two files, in the current folder: images often lie among a data set's."""
    if args.o:
        out = Path(args.o).expanduser()
    elif args.i:
        out = Path(args.i).parent / f"{Path(args.i).name.split('.')[0]}_registered"
    else:
        out = Path.cwd() / f"{file_stem(args.f)}_registered"
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / f".write_test_{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise OSError(f"Cannot write to {out} ({error.strerror}); choose another output folder with -o.") from error
    return out
