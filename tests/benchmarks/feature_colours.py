"""Whether an organ's learned features are the same in every patient and modality: as colours of one common PCA, and counted.

    python tests/benchmarks/feature_colours.py PICTURE DATASET_FOLDER DATASET_FOLDER

Two patients of each data set, those of its first registration_val pair, through the encoder that comes with the package (or
--model FOLDER), planned for all of them as a registration is. PICTURE: a row for each patient, planes through the organs that
all have, the first three principal components of all patients' features together as red, green and blue. The table: of the
cells of one patient's organs, the share whose nearest organ mean in another patient (distance of the features) is their own.
"""

import argparse
from pathlib import Path

import numpy as np
import torch

from nnssl_reg.commands.model_choice import load_model, packaged_model
from nnssl_reg.commands.pair_features import Look
from nnssl_reg.commands.registration_setup import make_setup
from nnssl_reg.evaluation.figures import feature_figure
from nnssl_reg.evaluation.metrics import mean_of
from nnssl_reg.evaluation.planes import sampled_on
from nnssl_reg.geometry.image import FeatureMap, Image
from nnssl_reg.imageio.images import file_stem, read_grid, read_labels
from nnssl_reg.imageio.json_files import read_json
from nnssl_reg.imageio.pairs import read_pairs


def patients(folder: Path) -> list[tuple[str, Path, str | None, Image]]:
    """Name, file, channel and label of both images of a data set's first pair; labels by the names of their organs."""
    pair = read_pairs(folder / "dataset.json")[0]
    sides = ((pair.fixed, pair.fixed_channel, pair.fixed_label), (pair.moving, pair.moving_channel, pair.moving_label))
    return [(f"{folder.name}: {file_stem(path)}", path, channel, read_labels(label)) for path, channel, label in sides]


def organs_in_all(folders: list[Path]) -> list[str]:
    """Names of the organs that every data set tells."""
    told = [read_json(folder / "dataset.json")["labels"] for folder in folders]
    return [name for name, value in told[0].items() if value and all(name in labels for labels in told)]


def renumbered(label: Image, labels: dict[str, int], organs: list[str]) -> Image:
    """Organ k of `organs` as k + 1, all else 0."""
    array = np.zeros_like(label.array)
    for number, name in enumerate(organs, 1):
        array[label.array == labels[name]] = number
    return Image(array, label.grid)


def cells_of(tokens: FeatureMap, label: Image) -> tuple[np.ndarray, np.ndarray]:
    """Features (N, F) and organ (N,) of the cells whose centre lies in an organ."""
    organ = sampled_on(tokens.grid, label)[0].ravel()
    values = tokens.values.float().cpu().flatten(1).numpy().T
    return values[organ > 0], organ[organ > 0]


def share_found(own: tuple[np.ndarray, np.ndarray], other: tuple[np.ndarray, np.ndarray]) -> tuple[float, float]:
    """Mean over organs of the share of own cells that the other patient's nearest organ mean names rightly; a guess's."""
    organs = np.intersect1d(own[1], other[1])
    means = np.stack([other[0][other[1] == organ].mean(0) for organ in organs])
    nearest = organs[np.linalg.norm(own[0][:, None] - means[None], axis=2).argmin(1)]
    return float(np.mean([(nearest[own[1] == organ] == organ).mean() for organ in organs])), 1 / len(organs)


def table(sets: list[int], cells: list[tuple[np.ndarray, np.ndarray]]) -> str:
    """Means over ordered pairs of patients, of one data set and of different ones."""
    pairs = [(a, b) for a in range(len(sets)) for b in range(len(sets)) if a != b]
    rows = ["| patients | pairs | share found | by a guess |", "|---|---|---|---|"]
    for title, chosen in (("of one data set", [p for p in pairs if sets[p[0]] == sets[p[1]]]),
                          ("of different data sets", [p for p in pairs if sets[p[0]] != sets[p[1]]])):  # fmt: skip
        shares, guesses = zip(*[share_found(cells[a], cells[b]) for a, b in chosen]) if chosen else ((), ())
        rows += [f"| {title} | {len(shares)} | {mean_of(shares):.3f} | {mean_of(guesses):.3f} |"] if shares else []
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("picture", type=Path, metavar="PICTURE")
    parser.add_argument("folders", type=Path, nargs="+", metavar="DATASET_FOLDER")
    parser.add_argument("--features", choices=("dino", "mind"), default="dino", help="mind: hand-made ones, to compare")
    parser.add_argument("--model", type=Path, metavar="FOLDER", help="default: the one that comes with the package")
    args = parser.parse_args()
    device = torch.device("cpu")
    model = packaged_model("dino", device) if args.model is None else load_model(args.model, device)
    organs, told = organs_in_all(args.folders), [read_json(folder / "dataset.json")["labels"] for folder in args.folders]
    listed = [(number, *patient) for number, folder in enumerate(args.folders) for patient in patients(folder)]
    store = make_setup([read_grid(path) for _, _, path, _, _ in listed], device, kind="dino", model=model).store()
    look = Look(args.features, store.plan.mind_noise)
    found = [store.of(path, channel, look, aligns=False) for _, _, path, channel, _ in listed]
    maps = [f.tokens if args.features == "dino" else f.mind for f in found]
    labels = [renumbered(label, told[number], organs) for number, *_, label in listed]
    whose = model.folder.name if args.features == "dino" else "MIND"
    title = f"{whose}: first three principal components of all patients' features together"
    feature_figure(args.picture, [f.image for f in found], maps, [name for _, name, *_ in listed], title, labels)
    cells = [cells_of(t, label) for t, label in zip(maps, labels)]
    print(f"organs: {', '.join(organs)}", table([number for number, *_ in listed], cells), sep="\n\n")


if __name__ == "__main__":
    main()
