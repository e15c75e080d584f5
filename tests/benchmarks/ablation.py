"""Which parts of pretraining does registration gain from? One short run for each part left out or changed, as a table.

    python tests/benchmarks/ablation.py DATA_ROOT PREPROCESSED OUT                         # data set 3, 5 epochs, 12 pairs
    python tests/benchmarks/ablation.py DATA_ROOT PREPROCESSED OUT --epochs 10 --seeds 0 1 --variants planned "no visible term"

Each variant is trained by nnssl_train_dino for the same number of steps with the planned settings but for its own, and
registers the first pairs of registration_val with dino and with dino+mind. Between sizes of the tokens the number of tokens
in a crop and the distance of the learned features (tokens are shifted) stay alike. A rerun does what is missing.
"""

import argparse
import sys
from pathlib import Path

from accuracy import process

from nnssl_reg.imageio.json_files import read_json, write_json
from nnssl_reg.imageio.pairs import read_pairs
from nnssl_reg.imageio.raw_dataset import find_dataset
from nnssl_reg.pretraining.model_card import logged_metrics

VARIANTS = {
    "planned": {},
    "tokens of 2 voxels": {"network.patch_size": (2, 2, 2), "pretraining.crop_size": (14, 20, 14),
                           "features.token_shifts": (1, 1, 1)},
    "tokens of 8 voxels": {"network.patch_size": (8, 8, 8), "pretraining.crop_size": (40, 56, 40),
                           "pretraining.loss_tokens": 87, "features.token_shifts": (4, 4, 4),
                           "features.window_size": (48, 64, 48)},
    "no intensity changes": {"pretraining.intensity_strength": 0, "pretraining.gin_probability": 0,
                             "pretraining.remap_probability": 0},
    "no random convolutions (GIN)": {"pretraining.gin_probability": 0},
    "no remapping": {"pretraining.remap_probability": 0},
    "no visible term": {"pretraining.visible_weight": 0},
    "no masked term": {"pretraining.patch_weight": 0},
    "no class term": {"pretraining.class_weight": 0},
    "no KoLeo": {"pretraining.koleo_weight": 0},
    "centring instead of Sinkhorn": {"pretraining.centering": "centre"},
}  # fmt: skip
KINDS = ("dino", "dino+mind")


def flags_of(variant: str) -> list[str]:
    """The variant's settings as nnssl_train_dino takes them."""
    flags = []
    for name, value in VARIANTS[variant].items():
        text = ",".join(map(str, value)) if isinstance(value, tuple) else value
        flags += ["--set", f"{name}={text}"]
    return flags


def measure(variant: str, seed: int, pairs: Path, args: argparse.Namespace) -> dict:
    """Train and register. Returns the probe's values at the end, and the mean scores with each kind of features."""
    folder = args.out / f"{variant.replace(' ', '_')}_{seed}"
    script, common = Path(sys.executable).with_name, ["-device", args.device, "--no_pbar"]
    started = ["--continue"] if any(folder.glob("*/*/checkpoint_*.json")) else []
    training = [args.dataset, "3d_fullres", "-preprocessed", args.preprocessed, "-results", folder, "-epochs", args.epochs,
                "--seed", seed, *flags_of(variant), *started, *common]  # fmt: skip
    process([script("nnssl_train_dino"), *training], args.threads)
    model = next(folder.glob("*/*/checkpoint_final.json")).parent
    logged, _ = logged_metrics(model / "training_log.jsonl")
    found = {"variant": variant, "seed": seed, "probe": {k: v for k, v in logged.items() if k.startswith("probe_")}}
    for kind in KINDS:
        out = folder / kind.replace("+", "_")
        registration = ["-i", pairs, "-o", out, "--features", kind, "--model", model, "--no_figures", *common]
        process([script("nnssl_register"), *registration], args.threads)
        found[kind] = read_json(out / "summary.json")["mean"]
    return found


def table(results: list[dict]) -> str:
    """A row for each run: the probe, then Dice, HD95 and SDlogJ with dino, and Dice with dino+mind."""
    columns = ("pretraining", "seed", "recall", "error mm", "dino: Dice", "HD95 mm", "SDlogJ", "dino+mind: Dice")
    rows = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for r in results:
        alone, joined = r["dino"], r["dino+mind"]
        rows.append(f"| {r['variant']} | {r['seed']} | {r['probe']['probe_recall']:.3f} | {r['probe']['probe_error_mm']:.1f} | "
                    f"{alone['dice']:.3f} | {alone['hd95_mm']:.2f} | {alone['sd_log_jacobian']:.3f} | "
                    f"{joined['dice']:.3f} |")  # fmt: skip
    return "\n".join(rows)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, metavar="DATA_ROOT")
    parser.add_argument("preprocessed", type=Path, metavar="PREPROCESSED")
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("--dataset", default="3", metavar="ID")
    parser.add_argument("--pairs", type=int, default=12, metavar="N", help="the first N; default: 12")
    parser.add_argument("--epochs", type=int, default=5, help="planned epochs of each run; default: 5")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], metavar="SEED")
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS, metavar="NAME")
    parser.add_argument("-device", default="cpu")
    parser.add_argument("--threads", type=int, default=2, metavar="N", help="default: 2")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    source = find_dataset(args.root, args.dataset) / "dataset.json"
    chosen = read_pairs(source)[: args.pairs]
    names = ("fixed", "moving", "fixed_label", "moving_label")
    write_json(args.out / "pairs.json", [{name: str(getattr(pair, name).resolve()) for name in names} for pair in chosen])
    results = []
    for seed in args.seeds:
        for variant in args.variants:
            path = args.out / f"{variant.replace(' ', '_')}_{seed}.json"
            if not path.exists():
                write_json(path, measure(variant, seed, args.out / "pairs.json", args))
            results.append(read_json(path))
            print(table(results[-1:]).splitlines()[-1], flush=True)
    print(f"\n{table(results)}")


if __name__ == "__main__":
    main()
