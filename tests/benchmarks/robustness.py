"""How Dice holds when the moving image is worse than in the data sets: noise, bias, thick slices, a turned header, a part.

    python tests/benchmarks/robustness.py DATA_ROOT OUT                              # data sets 1, 2 and 4, 3 pairs each
    python tests/benchmarks/robustness.py DATA_ROOT OUT --datasets 2 --pairs 6 --flags "--features dino+mind"

DATA_ROOT holds folders Dataset001_Name with a dataset.json; pairs are the first of its registration_val. The fixed image
stays as it is. The moving one is changed, written to a file, and registered by nnssl_register in a process of its own,
which knows nothing of the change. Dice is that of the whole field on the fixed image's grid with the untouched label of the
moving image (turned with it, where it is turned); of a part, the labels that lie in it to nine tenths count. A rerun does
what is missing.
"""

import argparse
import shlex
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from accuracy import process

from nnssl_reg.evaluation.metrics import mean_of
from nnssl_reg.evaluation.summary import judge
from nnssl_reg.geometry.displacement import DisplacementField
from nnssl_reg.geometry.grid import Grid
from nnssl_reg.geometry.image import Image
from nnssl_reg.geometry.sampling import resample
from nnssl_reg.imageio.images import read_image, read_labels, write_image
from nnssl_reg.imageio.json_files import read_json, write_json
from nnssl_reg.imageio.pairs import Pair, read_pairs
from nnssl_reg.imageio.raw_dataset import find_dataset
from nnssl_reg.imageio.transforms import read_field

INSIDE = 0.9  # of a label's voxels, for it to count where a part of the image is missing
THIN_MM = 4.0  # slices up to this become three times as thick, thicker ones twice


def noisy(share: float) -> Callable[[Image, np.random.Generator], Image]:
    """Noise whose standard deviation is a share of the range between the 1st and the 99th percentile: Gaussian, or, where no
    value is below 0, Rician, as magnitudes have it (MR)."""

    def change(image: Image, rng: np.random.Generator) -> Image:
        low, high = np.percentile(image.array, (1, 99))
        real, imaginary = (rng.normal(0, share * (high - low), image.array.shape).astype(np.float32) for _ in range(2))
        changed = image.array + real
        return Image(changed if image.array.min() < 0 else np.hypot(changed, imaginary), image.grid)

    return change


def biased(strength: float) -> Callable[[Image, np.random.Generator], Image]:
    """Multiply by exp(strength * b); b is smooth, from -1 to 1, and the lowest value stays (air of a CT is air)."""

    def change(image: Image, rng: np.random.Generator) -> Image:
        control = torch.from_numpy(rng.normal(size=(1, 1, 3, 3, 3)))
        smooth = torch.nn.functional.interpolate(control, image.grid.shape, mode="trilinear", align_corners=True)[0].numpy()
        low = image.array.min()
        factor = np.exp(strength * (2 * (smooth - smooth.min()) / np.ptp(smooth) - 1))
        return Image(((image.array - low) * factor + low).astype(np.float32), image.grid)

    return change


def thick(image: Image, rng: np.random.Generator) -> Image:
    """Slices along the body's axis averaged: three in one, or two where they are thick."""
    image = image.canonical()
    n = 3 if image.grid.spacing_mm[2] <= THIN_MM else 2
    depth = image.grid.shape[2] // n * n
    image = image.cropped([[0, image.grid.shape[0]], [0, image.grid.shape[1]], [0, depth]])
    means = image.array.reshape(*image.array.shape[:3], depth // n, n).mean(-1)
    return Image(means.astype(np.float32), image.grid.coarsened((1, 1, n)))


def turned(degrees: float) -> Callable[[Image, np.random.Generator], Image]:
    """The header turned about the body's axis through the image's centre: the anatomy lies otherwise in the world."""

    def change(image: Image, rng: np.random.Generator) -> Image:
        cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
        turn = np.eye(4)
        turn[:2, :2] = [[cos, -sin], [sin, cos]]
        centre = image.grid.center_mm
        turn[:3, 3] = centre - turn[:3, :3] @ centre
        return Image(image.array, Grid(image.grid.shape, turn @ image.grid.affine))

    return change


def part(share: float) -> Callable[[Image, np.random.Generator], Image]:
    """The upper (positive) or lower (negative) share of the body's axis; what is outside does not exist."""

    def change(image: Image, rng: np.random.Generator) -> Image:
        image = image.canonical()
        depth = image.grid.shape[2]
        kept = round(abs(share) * depth)
        along = [depth - kept, depth] if share > 0 else [0, kept]
        return image.cropped([[0, image.grid.shape[0]], [0, image.grid.shape[1]], along])

    return change


CHANGES = {
    "none": lambda image, rng: image,
    "noise 5 %": noisy(0.05),
    "noise 15 %": noisy(0.15),
    "bias 0.67 to 1.5": biased(0.4),
    "thick slices": thick,
    "turned by 90 degrees": turned(90),
    "turned by 180 degrees": turned(180),
    "upper 60 %": part(0.6),
    "lower 60 %": part(-0.6),
}


def registered(pair: Pair, moving: Image, args: argparse.Namespace) -> tuple[DisplacementField, str]:
    """The field of nnssl_register for the pair's fixed image and another moving one, and the flag of its confidence."""
    with tempfile.TemporaryDirectory(dir=args.out) as name:
        path = Path(name) / "moving.nii.gz"
        write_image(path, moving)
        flags = ["-device", "cpu", "--no_figures", "--no_pbar", *shlex.split(args.flags)]
        command = Path(sys.executable).with_name("nnssl_register")
        process([command, "-f", pair.fixed, "-m", path, "-o", Path(name) / "out", *flags], args.threads)
        field = next((Path(name) / "out").glob("*_field.nii.gz"))
        told = read_json(field.with_name(field.name.replace("_field.nii.gz", ".json")))
        return read_field(field), told["scores"]["confidence_flag"]


def measure(change: str, pair: Pair, args: argparse.Namespace) -> dict:
    """Dice by label, folding in percent, and the labels that the changed image still holds."""
    rng = np.random.default_rng(0)
    moving = CHANGES[change](read_image(pair.moving), rng)
    label, fixed_label = read_labels(pair.moving_label), read_labels(pair.fixed_label)
    if change.startswith("turned"):
        label = CHANGES[change](label, rng)
    held = resample(Image(np.ones((1, *moving.grid.shape), np.uint8), moving.grid), label.grid).array > 0
    ids = [int(i) for i in np.intersect1d(np.unique(label.array), np.unique(fixed_label.array)) if i]
    inside = [i for i in ids if held[label.array == i].mean() >= INSIDE]
    field, flag = registered(pair, moving, args)
    scores = judge(field, fixed_label, label)
    return {"pair": pair.id, "change": change, "dice": scores.label_dice, "inside": inside, "flag": flag,
            "folding_percent": scores.folding_percent}  # fmt: skip


def table(name: str, results: list[dict]) -> str:
    """Rows of changes: mean Dice over pairs, the same labels' unchanged, the worst pair's difference, folding, flags."""
    plain = {r["pair"]: r["dice"] for r in results if r["change"] == "none"}
    columns = ("moving image", "pairs", "Dice", "Dice unchanged", "worst difference of a pair", "folding %", "flagged low")
    rows = [f"### {name}", "", f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for change in CHANGES:
        own = [r for r in results if r["change"] == change and r["inside"] and r["pair"] in plain]
        if not own:
            continue
        now, before = ([mean_of(values(r)[str(i)] for i in r["inside"]) for r in own]
                       for values in (lambda r: r["dice"], lambda r: plain[r["pair"]]))  # fmt: skip
        worst = min(a - b for a, b in zip(now, before))
        folding = mean_of(r["folding_percent"] for r in own)
        means = f"{mean_of(now):.3f} | {mean_of(before):.3f} | {worst:+.3f} | {folding:.3f}"
        rows.append(f"| {change} | {len(own)} | {means} | {sum(r['flag'] == 'low' for r in own)} |")
    return "\n".join(rows)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, metavar="DATA_ROOT")
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("--datasets", nargs="+", default=["1", "2", "4"], metavar="ID")
    parser.add_argument("--pairs", type=int, default=3, metavar="N", help="the first N of each; default: 3")
    parser.add_argument("--flags", default="--features mind", help="of nnssl_register; default: --features mind")
    parser.add_argument("--threads", type=int, default=2, metavar="N", help="default: 2")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    for dataset in args.datasets:
        folder, results = find_dataset(args.root, dataset), []
        for change in CHANGES:
            for pair in read_pairs(folder / "dataset.json")[: args.pairs]:
                path = args.out / folder.name / f"{change.replace(' ', '_')}__{pair.id}.json"
                if not path.exists():
                    write_json(path, measure(change, pair, args))
                results.append(read_json(path))
        print(table(folder.name, results), end="\n\n", flush=True)


if __name__ == "__main__":
    main()
