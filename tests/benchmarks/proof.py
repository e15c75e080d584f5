"""Everything that results.md says of accuracy, robustness, speed and pictures, by one command that goes on where it stopped.

    python tests/benchmarks/proof.py DATA_ROOT OUT --peer PYTHON
    python tests/benchmarks/proof.py DATA_ROOT OUT --skip engine robustness --datasets 1 2 --pairs 3      # without peers

DATA_ROOT holds folders Dataset001_Name with a dataset.json; PYTHON has the peers installed (accuracy.py says which). The
scripts beside this one do the work, each in a process of its own, and what they left in OUT is not made again. OUT/proof.md
holds all tables; OUT/pictures the registration of the median and of the worst pair by Dice of each data set in --pictured, and
an organ's features across patients and modalities. A model trained on a set's own images joins as a method of its own:
--own "own dino=--features dino --model FOLDER".
"""

import argparse
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from accuracy import OWN, PEERS, pairs_json

from nnssl_reg.imageio.json_files import atomic_path, read_json
from nnssl_reg.imageio.pairs import read_pairs
from nnssl_reg.imageio.raw_dataset import find_dataset

SHAPES = ((192, 160, 192), (256, 256, 256))
PARTS = ("accuracy", "robustness", "engine", "pictures")
# local intensity alone; where contrasts do not agree MIND may be kept instead, so across modalities it is not asked for
RAW = "raw=--features mind --set features.intensity_share=1"


def script(name: str, *words) -> list[str]:
    """The command of a script beside this one."""
    return [sys.executable, str(Path(__file__).with_name(name)), *map(str, words)]


def run(command: list[str], kept: Path | None = None) -> None:
    """A process; kept: the file that its standard output becomes once all went well. Raises CalledProcessError."""
    print("$", " ".join(command), flush=True)
    if kept is None:
        subprocess.run(command, check=True)
        return
    with atomic_path(kept) as temporary, temporary.open("w", encoding="utf-8") as file:
        subprocess.run(command, check=True, stdout=file)


def accuracy(args: argparse.Namespace) -> None:
    """Peers and our own methods on the pairs of each data set: OUT/tables.md."""
    own = [word for text in args.own for word in ("--own", text)]
    common = [args.root, args.out, "--pairs", args.pairs, "--threads", args.threads, *own]
    peers = [] if args.peer is None else ["--peer", args.peer]
    for dataset in args.datasets:
        methods = [*(PEERS if peers else ()), *args.methods.split(","), *(text.split("=")[0] for text in args.own)]
        methods = dict.fromkeys(m for m in methods if m != "raw" or "to" not in dataset)
        run(script("accuracy.py", *common, *peers, "--datasets", dataset, "--methods", ",".join(methods)))
    run(script("accuracy.py", *common, "--datasets", *args.datasets, "--tables"))


def robustness(args: argparse.Namespace) -> None:
    """Dice of changed images: OUT/robustness.md."""
    datasets = [name for name in args.datasets if "to" not in name]
    words = [args.root, args.out / "robustness", "--datasets", *datasets, "--threads", args.threads, *args.changed_pairs]
    run(script("robustness.py", *words), args.out / "robustness.md")


def engine(args: argparse.Namespace) -> None:
    """Time and memory beside convexAdam: OUT/engine.md, made once."""
    if not (args.out / "engine.md").exists():
        words = [*args.shapes, *([] if args.peer is None else ["--peer", args.peer])]
        run(script("engine.py", *words), args.out / "engine.md")


def pictures(args: argparse.Namespace) -> None:
    """Median and worst pair of each data set by the Dice of --pictured-method, and features as colours: OUT/pictures."""
    for dataset in args.pictured:
        name, source, _ = pairs_json(args.root, dataset, args.out)
        found = [read_json(path) for path in (args.out / name / args.pictured_method).glob("*.json")]
        ranked = sorted((r["scores"]["dice"], r["pair"]) for r in found if "error" not in r)
        shown = {ranked[(len(ranked) - 1) // 2][1]: "median", ranked[0][1]: "worst"} if ranked else {}
        for pair, kind in shown.items():
            path = args.out / "pictures" / f"{name}__{kind}__{pair}.png"
            if not path.exists():
                draw(source, pair, path, args)
    path = args.out / "pictures" / "features.png"
    if args.coloured and not path.exists():
        folders = [find_dataset(args.root, name) for name in args.coloured]
        run(script("feature_colours.py", path, *folders), args.out / "features.md")


def draw(source: Path, pair: str, path: Path, args: argparse.Namespace) -> None:
    """The figure that nnssl_register makes of one of a json's pairs."""
    ids = [p.id for p in read_pairs(source)]
    flags = dict([*OWN.items(), *(text.split("=", 1) for text in args.own)])[args.pictured_method]
    with tempfile.TemporaryDirectory(dir=args.out) as folder:
        words = ["-i", source, "-o", folder, "-num_parts", len(ids), "-part_id", ids.index(pair), "-device", "cpu", "--no_pbar"]
        run([str(Path(sys.executable).with_name("nnssl_register")), *map(str, words), *shlex.split(flags)])
        path.parent.mkdir(exist_ok=True)
        shutil.move(Path(folder) / f"{pair}.png", path)


def written(args: argparse.Namespace, failed: list[str]) -> str:
    """All tables under one another, which pictures there are, and what failed."""
    parts = [f"## {title}\n\n{(args.out / file).read_text(encoding='utf-8').strip()}" for title, file in
             (("Accuracy", "tables.md"), ("Robustness", "robustness.md"), ("Speed and memory of ConvexAdam", "engine.md"),
              ("Features across patients", "features.md")) if (args.out / file).exists()]  # fmt: skip
    drawn = sorted(path.name for path in (args.out / "pictures").glob("*.png"))
    parts += ["## Pictures\n\n" + "\n".join(f"- pictures/{name}" for name in drawn)] if drawn else []
    parts += ["## Failed\n\n" + "\n".join(failed)] if failed else []
    return "\n\n".join(parts) + "\n"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, metavar="DATA_ROOT")
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("--peer", metavar="PYTHON", help="a Python that has the peers installed; without it, no peers")
    parser.add_argument("--skip", nargs="+", default=[], choices=PARTS, metavar="PART", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--datasets", nargs="+", default=["1", "2", "3", "4", "2to1"], metavar="ID")
    parser.add_argument("--pairs", type=int, default=6, metavar="N", help="the first N of each; default: 6")
    parser.add_argument("--methods", default="raw,mind,dino,dino+mind", help="our own; default: raw,mind,dino,dino+mind")
    parser.add_argument("--own", action="append", default=[], metavar="NAME=FLAGS", help="a further one, see accuracy.py")
    parser.add_argument("--threads", type=int, default=2, metavar="N", help="for every method; default: 2")
    parser.add_argument("--changed-pairs", type=int, default=3, metavar="N", help="of robustness.py; default: 3")
    parser.add_argument("--shape", type=int, nargs=3, action="append", metavar=("X", "Y", "Z"),
                        help=f"of engine.py; default: {' and '.join(' x '.join(map(str, s)) for s in SHAPES)}")  # fmt: skip
    parser.add_argument("--pictured", nargs="*", default=["1", "2", "2to1"], metavar="ID")
    parser.add_argument("--pictured-method", default="dino+mind", metavar="METHOD", help="default: dino+mind")
    parser.add_argument("--coloured", nargs="*", default=["1", "2"], metavar="ID", help="whose features are drawn")
    args = parser.parse_args()
    args.own = [RAW, *args.own]
    args.changed_pairs = ["--pairs", args.changed_pairs]
    args.shapes = [word for shape in args.shape or SHAPES for word in ("--shape", *shape)]
    return args


def main() -> None:
    args, failed = arguments(), []
    args.out.mkdir(parents=True, exist_ok=True)
    for part in (part for part in PARTS if part not in args.skip):
        try:
            {"accuracy": accuracy, "robustness": robustness, "engine": engine, "pictures": pictures}[part](args)
        except (subprocess.CalledProcessError, OSError, ValueError) as error:
            failed.append(f"{part}: {error}")  # the other parts may still be made
    with atomic_path(args.out / "proof.md") as temporary:
        temporary.write_text(written(args, failed), encoding="utf-8")
    print((args.out / "proof.md").read_text(encoding="utf-8"))
    sys.exit("\n".join(failed) or None)


if __name__ == "__main__":
    main()
