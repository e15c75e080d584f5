"""Accuracy of nnssl_reg beside the registration programs a user would pick instead, on the same pairs, as tables.

    python tests/benchmarks/accuracy.py DATA_ROOT OUT --peer PYTHON                          # data sets 1 to 4, 6 pairs each
    python tests/benchmarks/accuracy.py DATA_ROOT OUT --datasets 2to1 --methods mind,ants_syn --peer PYTHON

DATA_ROOT holds folders Dataset001_Name with a dataset.json; pairs are the first of its registration_val. A data set 2to1 takes
the moving images of set 2 and the fixed ones of set 1, in their order. PYTHON has the peers (antspyx picsl_greedy itk-elastix
convexAdam SimpleITK) installed; peers.py tells how they are called.

Every pair and method is a process of its own and leaves one json in OUT; a rerun does what is missing and makes the tables anew
(OUT/tables.md). Peers work on images resampled to cubes, nnssl_register on the files as they are; all are judged in the same
way: the whole field on the fixed image's own grid, the moving label carried through it (nearest), nnssl_reg's metrics.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from accuracy_tables import tables

from nnssl_reg.evaluation.summary import judge
from nnssl_reg.imageio.images import read_grid, read_labels
from nnssl_reg.imageio.json_files import atomic_path, read_json, write_json
from nnssl_reg.imageio.pairs import Pair, read_pairs
from nnssl_reg.imageio.raw_dataset import find_dataset
from nnssl_reg.imageio.transforms import read_field

PEERS = ("ants_affine", "ants_syn", "greedy", "elastix", "affine_convexadam")
OWN = {name: f"--features {name}" for name in ("mind", "dino", "dino+mind")}
SMALL_MM = 250  # the body part of a smaller field of view deserves finer cubes: heads, organs


def pairs_json(root: Path, dataset: str, out: Path) -> tuple[str, Path, dict[str, str]]:
    """The name of a data set, the json of its pairs, and its organs, id -> name; for 2to1 such a json is written."""
    moving, _, fixed = dataset.partition("to")
    if not fixed:
        folder = find_dataset(root, dataset)
        return folder.name, folder / "dataset.json", organs_of(folder)
    folders = [find_dataset(root, name) for name in (fixed, moving)]
    each = [read_pairs(folder / "dataset.json") for folder in folders]
    listed = [
        {"fixed": a.fixed, "moving": b.moving, "fixed_label": a.fixed_label, "moving_label": b.moving_label}
        for a, b in zip(*each)
    ]
    name = f"{folders[1].name}_to_{folders[0].name}"
    write_json(out / name / "pairs.json", [{k: str(v.resolve()) for k, v in p.items() if v is not None} for p in listed])
    return name, out / name / "pairs.json", organs_of(folders[0])


def organs_of(folder: Path) -> dict[str, str]:
    """Label id -> name, as the data set's json tells."""
    return {str(value): name for name, value in read_json(folder / "dataset.json").get("labels", {}).items()}


def cubes_mm(pair: Pair) -> float:
    """Edge of the cubes that peers get: 1 mm for heads and smaller, 2 mm for trunks."""
    return 1.0 if max(read_grid(pair.fixed).extent_mm) < SMALL_MM else 2.0


def by_peer(method: str, pair: Pair, folder: Path, args: argparse.Namespace) -> tuple[Path, dict]:
    """Register with a peer: the field's file and what it cost."""
    field, mm = folder / "field.nii.gz", args.spacing or cubes_mm(pair)
    script = Path(__file__).with_name("peers.py")
    done = process([args.peer, script, method, mm, pair.fixed, pair.moving, field], args.threads)
    return field, json.loads(done.strip().splitlines()[-1])


def by_nnssl_reg(flags: str, pair: Pair, folder: Path, args: argparse.Namespace, source: Path) -> tuple[Path, dict]:
    """Register one of a json's pairs, with settings planned for all of them: the field's file and what it cost."""
    ids = [p.id for p in read_pairs(source)]
    process([Path(sys.executable).with_name("nnssl_register"), "-i", source, "-o", folder, "-num_parts", len(ids), "-part_id",
             ids.index(pair.id), "-device", "cpu", "--no_figures", "--no_pbar", *shlex.split(flags)], args.threads)  # fmt: skip
    told = read_json(folder / f"{pair.id}.json")
    return folder / told["files"]["field"], {
        "seconds": told["seconds"],
        "peak_gb": told["peak_memory_gb"],
        "stages_seconds": told["stages_seconds"],
        "initial": told["initial"],
        "contrast": told["contrast"],
        "settings": told["settings"],
    }


def process(command: list, threads: int) -> str:
    """The standard output of a process that may use `threads` threads. Raises RuntimeError with its last words."""
    names = ("ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS", "OMP_NUM_THREADS", "NUMBA_NUM_THREADS", "MKL_NUM_THREADS")
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False,
                          env=os.environ | {name: str(threads) for name in names})  # fmt: skip
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines() or ["nothing said"]
        raise RuntimeError(f"exit code {done.returncode}: {' | '.join(said[-3:])[:500]}")
    return done.stdout


def measure(method: str, pair: Pair, source: Path, args: argparse.Namespace) -> dict:
    """Cost and scores of one method on one pair, or its error."""
    try:
        with tempfile.TemporaryDirectory(dir=args.out) as name:
            if method in PEERS:
                path, cost = by_peer(method, pair, Path(name), args)
            else:
                path, cost = by_nnssl_reg(args.own[method], pair, Path(name), args, source)
            field = read_field(path)
        scores = judge(field, read_labels(pair.fixed_label), read_labels(pair.moving_label))
        return {"pair": pair.id, "method": method, "threads": args.threads, **cost, "scores": asdict(scores)}
    except (RuntimeError, ValueError, OSError) as error:
        return {"pair": pair.id, "method": method, "error": str(error)}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, metavar="DATA_ROOT")
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument(
        "--datasets", nargs="+", default=["1", "2", "3", "4"], metavar="ID", help="1, 001, Dataset001_X or 2to1"
    )
    parser.add_argument("--pairs", type=int, default=6, metavar="N", help="the first N of each; default: 6")
    parser.add_argument("--methods", default=",".join((*PEERS, "mind")), help=f"of {', '.join((*PEERS, *OWN))}, or of --own")
    parser.add_argument("--own", action="append", default=[], metavar="NAME=FLAGS",
                        help="a method NAME: nnssl_register with these FLAGS; may be given several times")  # fmt: skip
    parser.add_argument("--peer", metavar="PYTHON", help="a Python that has the peers installed")
    parser.add_argument("--spacing", type=float, metavar="MM",
                        help=f"cubes for peers; default: 1 mm below {SMALL_MM} mm of field of view, else 2 mm")  # fmt: skip
    parser.add_argument("--threads", type=int, default=os.cpu_count(), metavar="N", help="for every method; default: all cores")
    parser.add_argument("--fresh", action="store_true", help="measure again what is there")
    parser.add_argument("--tables", action="store_true", help="only make the tables of what is there")
    parser.add_argument("--reference", default="mind", metavar="METHOD", help="the others are tested against it; default: mind")
    args = parser.parse_args()
    args.own = OWN | dict(text.split("=", 1) for text in args.own)
    args.methods = args.methods.split(",")
    unknown = [name for name in args.methods if name not in (*PEERS, *args.own)]
    if unknown:
        parser.error(f"unknown methods {', '.join(unknown)}; known are {', '.join((*PEERS, *args.own))}")
    if args.peer is None and not args.tables and set(args.methods) & set(PEERS):
        parser.error(f"{', '.join(PEERS)} need --peer PYTHON; or choose other --methods")
    return args


def main() -> None:
    args = arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    written = []
    for dataset in args.datasets:
        name, source, organs = pairs_json(args.root, dataset, args.out)
        for method in args.methods if not args.tables else ():
            for pair in read_pairs(source)[: args.pairs]:
                path = args.out / name / method / f"{pair.id}.json"
                if args.fresh or not path.exists():
                    write_json(path, measure(method, pair, source, args))
                    found = read_json(path)
                    print(name, method, pair.id, found.get("error") or f"Dice {found['scores']['dice']:.3f}", flush=True)
        results = [read_json(path) for path in sorted((args.out / name).glob("*/*.json"))]
        written.append(tables(name, results, organs, args.reference, (*PEERS, *args.own)))
    text = "\n\n".join(written) + "\n"
    with atomic_path(args.out / "tables.md") as temporary:
        temporary.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
