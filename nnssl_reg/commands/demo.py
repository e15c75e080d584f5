"""Registration of phantoms with the model in the package, or with one trained on them: Dice before and after."""

import shlex
import time
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from nnssl_reg.commands.entry import main
from nnssl_reg.commands.found_models import packaged_models
from nnssl_reg.commands.phantom_dataset import write_phantom_dataset
from nnssl_reg.evaluation.metrics import mean_of, tre_mm
from nnssl_reg.imageio.json_files import read_json
from nnssl_reg.imageio.landmarks import read_landmarks
from nnssl_reg.imageio.pairs import Pair, read_pairs
from nnssl_reg.imageio.transforms import read_field

DATASET_ID = 900
N_CT, N_MR = 8, 8
TRAINING = {  # small, and eager to leave ln K within minutes on a CPU; the plans are made for hours
    "network.embed_dim": 96,
    "network.depth": 4,
    "network.num_heads": 4,
    "pretraining.crop_size": 24,
    "pretraining.batch_size": 16,
    "pretraining.prototypes": 512,
    "pretraining.head_hidden_dim": 256,
    "pretraining.loss_tokens": 64,
    "pretraining.learning_rate": 0.002,
    "pretraining.teacher_momentum": 0.9,
    "pretraining.teacher_temperature": 0.03,
    "pretraining.final_teacher_temperature": 0.03,
    "pretraining.class_weight": 0.1,
    "pretraining.visible_weight": 1,
    "pretraining.intensity_strength": 0.5,
    "features.window_size": 24,
}
LINE = 100  # characters, about, of a shown command
INIT = "identity"  # phantoms share their world; for patients the default looks for the best start


@dataclass(frozen=True)
class Demo:
    """Where the demo keeps what, and how it was asked for."""

    root: Path
    minutes: float
    seed: int
    device: str | None

    @property
    def raw(self) -> Path:
        return self.root / "nnssl_raw"

    @property
    def preprocessed(self) -> Path:
        return self.root / "nnssl_preprocessed"

    @property
    def results(self) -> Path:
        return self.root / "nnssl_results"

    @property
    def dataset(self) -> str:
        return f"Dataset{DATASET_ID}_Phantom"

    @property
    def pairs(self) -> Path:
        return self.raw / self.dataset / "dataset.json"

    @property
    def trains(self) -> bool:
        """Whether an encoder is trained on the phantoms; else the one in the package serves."""
        return self.minutes > 0

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of features that are compared."""
        return ("mind", "dino", "dino+mind") if self.trains else ("mind", "dino+mind")

    @property
    def trained(self) -> Path:
        """Folder of the model that is trained here."""
        return self.results / self.dataset / "DINO__nnsslPlans__3d_fullres"

    @property
    def model(self) -> Path:
        """Folder of the model in use."""
        return self.trained if self.trains else packaged_models()[0]

    def registered(self, kind: str) -> Path:
        """Folder of the registrations with one kind of features."""
        by = "_trained" if self.trains and kind != "mind" else ""
        return self.root / f"registered_{kind.replace('+', '_')}{by}"

    @property
    def device_flag(self) -> list[str]:
        return ["-device", self.device] if self.device else []


def run(args: Namespace) -> int:
    """Everything that is not done yet, then the table. The exit code is that of a command that failed, else 0."""
    demo = Demo(Path(args.o), args.minutes, args.seed, args.device)
    steps = _steps(demo)
    began = time.monotonic()
    for number, (what, step) in enumerate(steps, 1):
        print(f"\n[{number}/{len(steps)}] {what}", flush=True)
        code = step()
        if code:
            print(f"\nThe demo stopped here; the same command goes on from what is done in {demo.root}.")
            return code
    print(f"\nDone in {(time.monotonic() - began) / 60:.1f} minutes.\n\n{comparison(demo)}\n\n{_what_next(demo)}")
    return 0


def _steps(demo: Demo) -> list[tuple[str, Callable[[], int]]]:
    """What is done, in words, and the function that does it and returns an exit code."""
    training = [
        ("Fingerprint, plans with a reason for every number, preprocessed cases", partial(_plan_and_preprocess, demo)),
        (f"Pretraining without labels, about {demo.minutes:g} minutes; for patients take hours", partial(_train, demo)),
    ]
    phantoms = f"{N_CT} CT-like and {N_MR} MR-like phantoms in {demo.raw}, and pairs of them"
    return [
        (phantoms, partial(_write_phantoms, demo)),
        *(training if demo.trains else ()),
        *((f"Registration with {kind} features", partial(_register, demo, kind)) for kind in demo.kinds),
    ]


def _write_phantoms(demo: Demo) -> int:
    write_phantom_dataset(demo.raw, DATASET_ID, N_CT, N_MR, demo.seed)
    return 0


def _plan_and_preprocess(demo: Demo) -> int:
    if any(demo.preprocessed.glob(f"{demo.dataset}/nnsslPlans_3d_fullres/*.json")) and demo.model.is_dir():
        print("done before")  # the model was made from them
        return 0
    return _command("nnssl_plan_and_preprocess", "-d", DATASET_ID, "-raw", demo.raw, "-preprocessed", demo.preprocessed,
                    "-gpu_memory_target", 8, "--no_pbar")  # fmt: skip


def _train(demo: Demo) -> int:
    if any(demo.model.glob("checkpoint_final*")):
        print("done before")
        return 0
    flags = ["--continue"] if any(demo.model.glob("checkpoint_*")) else []
    flags += [part for name, value in TRAINING.items() for part in ("--set", f"{name}={value}")]
    folders = ["-preprocessed", demo.preprocessed, "-results", demo.results]
    return _command("nnssl_train_dino", DATASET_ID, "3d_fullres", *folders, "-fit_minutes", demo.minutes,
                    "--seed", demo.seed, "--no_pbar", *flags, *demo.device_flag)  # fmt: skip


def _register(demo: Demo, kind: str) -> int:
    if _is_registered(demo, kind):
        print("done before")
        return 0
    model = [] if kind == "mind" else ["--model", demo.model if demo.trains else demo.model.name]
    return _command("nnssl_register", "-i", demo.pairs, "-o", demo.registered(kind), "--features", kind, *model,
                    "--init", INIT, "--no_pbar", *demo.device_flag)  # fmt: skip


def _is_registered(demo: Demo, kind: str) -> bool:
    """Whether all pairs are registered, with the model that is there now."""
    summary = demo.registered(kind) / "summary.json"
    if not summary.is_file() or read_json(summary)["registered"] != len(read_pairs(demo.pairs)):
        return False
    newest = max((path.stat().st_mtime for path in demo.trained.glob("checkpoint_final*")), default=0.0)
    return kind == "mind" or not demo.trains or summary.stat().st_mtime > newest


def comparison(demo: Demo) -> str:
    """A table: Dice by kind of pair and landmark error, before and after, for each kind of features."""
    pairs = read_pairs(demo.pairs)
    groups = {pair.id: f"{pair.moving_channel} -> {pair.fixed_channel}" for pair in pairs}
    names = list(dict.fromkeys(groups.values()))
    rows = [["", *(f"Dice {name}" for name in names), "Dice all", "landmarks off", "folding", "per pair"]]
    for kind in ("before", *demo.kinds):
        scores = {pair.id: _scores(demo, kind, pair) for pair in pairs}
        by_group = [mean_of(s["dice"] for i, s in scores.items() if groups[i] == name) for name in names]
        means = {key: mean_of(s[key] for s in scores.values()) for key in ("dice", "landmarks_mm", "folding", "seconds")}
        cells = [kind, *(f"{value:.3f}" for value in (*by_group, means["dice"])), f"{means['landmarks_mm']:.1f} mm"]
        rows.append(cells + (["", ""] if kind == "before" else [f"{means['folding']:.3f} %", f"{means['seconds']:.1f} s"]))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [[row[0].ljust(widths[0])] + [cell.rjust(w) for cell, w in zip(row[1:], widths[1:])] for row in rows]
    return "\n".join("   ".join(line).rstrip() for line in lines)


def _scores(demo: Demo, kind: str, pair: Pair) -> dict[str, float]:
    """What a pair's files tell: Dice, landmark error in mm, folding in percent, seconds."""
    folder = demo.registered("mind" if kind == "before" else kind)
    told = read_json(folder / f"{pair.id}.json")
    fixed, moving = (read_landmarks(_landmarks(label), "ras") for label in (pair.fixed_label, pair.moving_label))
    if kind == "before":
        apart = np.linalg.norm(fixed - moving, axis=1)
        return {"dice": told["scores"]["dice_initial"], "landmarks_mm": mean_of(apart), "folding": 0.0, "seconds": 0.0}
    error = tre_mm(fixed, moving, read_field(folder / f"{pair.id}_field.nii.gz"))
    return {"dice": told["scores"]["dice"], "landmarks_mm": mean_of(error), "folding": told["scores"]["folding_percent"],
            "seconds": told["seconds"]}  # fmt: skip


def _landmarks(label: Path) -> Path:
    return label.parent.parent / "landmarksTr" / label.name.replace(".nii.gz", ".csv")


def _command(name: str, *arguments) -> int:
    """Run a command of this package here, and show how to type it."""
    words = [str(argument) for argument in arguments]
    lines = [f"$ {name}"]
    for word in map(shlex.quote, words):
        if len(lines[-1]) + len(word) > LINE and word.startswith("-"):  # a flag stays with its values
            lines.append("   ")
        lines[-1] += f" {word}"
    print(" \\\n".join(lines), flush=True)
    return main(words, name=name)


def _what_next(demo: Demo) -> str:
    pair = read_pairs(demo.pairs)[-1].id
    seen = demo.registered("dino+mind")
    training = (
        f"""
  {demo.trained / "progress.png"}, pca_*.png
  {demo.preprocessed / demo.dataset / "nnsslPlans.json"}   (every number with its reason)"""
        if demo.trains
        else ""
    )
    return f"""Look at
  {seen / "report.html"}   (all pairs in one page, for a browser)
  {seen / pair}.png   (a picture for every pair beside it; the .nii.gz and .h5 open in 3D Slicer){training}

Your own two files, CT or MR (many: -i pairs.json):
  nnssl_register -f FIXED.nii.gz -m MOVING.nii.gz -o OUT

Features learned from your own scans, in /data/nnssl_raw/Dataset001_Name/imagesTr/CASE_0000.nii.gz:
  export nnssl_raw=/data/nnssl_raw nnssl_preprocessed=/data/nnssl_preprocessed nnssl_results=/data/nnssl_results
  nnssl_plan_and_preprocess -d 1
  nnssl_train_dino 1 3d_fullres
  nnssl_register -f FIXED.nii.gz -m MOVING.nii.gz -o OUT --features dino+mind
The same on these phantoms, in some minutes: nnssl_demo -minutes 3"""
