"""Entry of every console script: parse the flags, set up logging, import the command only then, and run it."""

import importlib
import logging
import os
import re
import sys
from argparse import ArgumentParser
from difflib import get_close_matches
from pathlib import Path

from nnssl_reg.commands.arguments import COMMANDS

_OF_TORCH = "DefaultCPUAllocator"  # torch's word where main memory ends
_COARSER = ("Use -device cpu, or coarser features: --set features.mind_spacing_mm=8 (learned ones: "
            "--set features.window_size=48).")  # fmt: skip
LESS_MEMORY = {
    "nnssl_register": _COARSER,
    "nnssl_tune_registration": _COARSER,
    "nnssl_train_dino": "Take fewer crops at a time, --set pretraining.batch_size=N; or plan for this memory, "
    "nnssl_plan_experiment -gpu_memory_target GB, which also makes crops smaller, then preprocess again.",
    "nnssl_preprocess": "Use fewer processes, -np 1.",
    "nnssl_plan_and_preprocess": "Use fewer processes, -np 1 and -npfp 1.",
    "nnssl_extract_fingerprint": "Use fewer processes, -npfp 1.",
}  # the way out where memory ends
_NUMBER = re.compile(r"-[\d.]+(e[-+]?\d+)?")


def main(argv: list[str] | None = None, name: str | None = None) -> int:
    """Run the command called `name` (default: this script's own name). Returns the exit code: 0 done, 1 failed, 130 stopped."""
    name = Path(sys.argv[0]).stem if name is None else name
    command = COMMANDS[name]
    parser = ArgumentParser(prog=name, description=command.help, allow_abbrev=False)
    command.add_arguments(parser)
    parser.add_argument("--verbose", action="store_true", help="more messages, and the traceback of an error")
    _check_options(parser, sys.argv[1:] if argv is None else argv)
    args = parser.parse_args(argv)
    logging.basicConfig(format="%(levelname)s: %(message)s", force=True)
    logging.getLogger("nnssl_reg").setLevel(logging.INFO if args.verbose else logging.WARNING)
    try:
        return importlib.import_module(command.module).run(args) or 0
    except KeyboardInterrupt:
        print(f"{name} was stopped; what it had finished is kept.", file=sys.stderr)
        return 130
    except Exception as error:
        line = mendable(error, name)
        if args.verbose or line is None:
            raise
        print(f"error: {line}", file=sys.stderr)
        return 1


def mendable(error: BaseException, name: str) -> str | None:
    """What to say of an error of the command `name` that its user can mend, None for a bug."""
    if isinstance(error, (ValueError, OSError)):
        return str(error)
    of_torch = type(error).__name__ == "OutOfMemoryError" or _OF_TORCH in str(error)  # by name: torch is not loaded for this
    if isinstance(error, MemoryError) or of_torch:
        said = str(error).partition(" GPU ")[0].splitlines() or ["out of memory"]
        return f"{said[0].rstrip('.')}. {LESS_MEMORY.get(name, 'Close other programs, or use a machine with more memory.')}"
    return None


def _check_options(parser: ArgumentParser, argv: list[str]) -> None:
    """Refuse options that do not exist; argparse alone would read -init as -i nit."""
    known = [option for action in parser._actions for option in action.option_strings]
    for word in argv:
        name = word.partition("=")[0]
        if word.startswith("-") and not _NUMBER.fullmatch(word) and name not in known and word != "--":
            close = get_close_matches(name, known, n=3, cutoff=0.4)
            parser.error(f"there is no option {name}" + (f"; did you mean {', '.join(close)}?" if close else ""))


def script() -> None:
    """What setup.py names: the exit code goes to the shell."""
    code = main()
    if os.environ.get("WORLD_SIZE", "1") != "1":  # torchrun's: one of several
        leave(code)
    sys.exit(code)


def leave(code: int) -> None:
    """End this process as it is: Python's own way out destroys torch's process group, whose threads may then abort it."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
