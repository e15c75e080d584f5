"""Samples per second of pretraining, beside a plain loop that changes one crop at a time on the CPU, printed as a table.

    python tests/benchmarks/training.py                           # this machine's GPU if it has one, else its CPU
    python tests/benchmarks/training.py --crop 64 --crop 128 --workers 12 --batch 16

Both train the same network with the same losses and optimiser on the same stored cases, read by as many processes. Ours
reads windows, and turns and changes them on the device, a batch at once. The plain loop does what published loops do: its
reading processes turn, zoom and flip each crop, change it twice (curve, GIN, bias field, gamma, contrast, blur, noise) with
numpy and scipy, and hand over finished views. Every measurement is a process of its own, in turns; medians are printed, with
the time waiting for data and, on a GPU, the model's share of the bfloat16 peak measured there and its largest memory.
"""

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from scipy.ndimage import affine_transform, convolve, gaussian_filter, zoom

from nnssl_reg.geometry.grid import Grid
from nnssl_reg.geometry.image import Image
from nnssl_reg.imageio.case_store import CaseProperties, GridRecord, case_names, write_case
from nnssl_reg.planning.estimates import training_flops
from nnssl_reg.planning.fingerprint import case_fingerprint, merge
from nnssl_reg.planning.memory import GB, training_bytes
from nnssl_reg.planning.planner import plan
from nnssl_reg.planning.plans import Configuration
from nnssl_reg.pretraining.case_groups import CaseGroup
from nnssl_reg.pretraining.crop_loader import WindowRequest, close_loader, open_loader
from nnssl_reg.pretraining.trainer import learn, steps
from nnssl_reg.pretraining.training_state import Run, TrainingState, start
from nnssl_reg.pretraining.views import Views, draw_masks

CASES = 8
ROOM = 1.5  # edge of a case / edge of a crop
WARM_STEPS = 3


def configuration_of(args: argparse.Namespace, crop: int) -> Configuration:
    """The planner's small network with the asked crop and batch."""
    shape = (round(ROOM * crop),) * 3
    image = Image(np.random.default_rng(0).uniform(0, 100, (1, 16, 16, 16)).astype(np.float32), Grid((16, 16, 16), np.eye(4)))
    measured = {f"Case_{i:04d}": case_fingerprint(image, "0", "MR") for i in range(CASES)}
    planned = plan(merge("Dataset999_Noise", measured, {"0": "MR"}), 8).configurations["3d_fullres"]
    tokens = (crop // args.patch) ** 3
    network = replace(
        planned.network, embed_dim=args.width, depth=args.depth, num_heads=args.heads, patch_size=(args.patch,) * 3
    )
    pretraining = replace(planned.pretraining, crop_size=(crop,) * 3, batch_size=args.batch,
                          workers=args.workers, loss_tokens=max(1, min(1024, tokens // 2)),
                          prototypes=args.prototypes)  # fmt: skip
    image_plan = replace(planned.image, spacing_mm=(1.0, 1.0, 1.0), median_shape=shape)
    return replace(planned, image=image_plan, network=network, pretraining=pretraining)


def store(folder: Path, crop: int) -> None:
    """Cases of smooth noise."""
    shape, rng = (round(ROOM * crop),) * 3, np.random.default_rng(0)
    folder.mkdir(parents=True)
    record, box = GridRecord.of(Grid(shape, np.eye(4))), [[0, n] for n in shape]
    for i in range(CASES):
        array = np.clip(gaussian_filter(rng.standard_normal(shape, dtype=np.float32), 2) * 8, -1, 1)[None]
        points = rng.integers(0, shape, (100, 3)).tolist()
        properties = CaseProperties(f"Case_{i:04d}_0000", "0", "MR", "x", "raw", "plans", record, box, record, {}, points)
        write_case(folder, array, properties, (crop,) * 3)


class PlainViews(torch.utils.data.IterableDataset):
    """Finished pairs of views (teacher, student), (1, X, Y, Z) each, one after the other."""

    def __init__(self, request: WindowRequest, settings):
        self.request, self.settings = request, settings

    def __iter__(self):
        worker = torch.utils.data.get_worker_info()
        number, count = (0, 1) if worker is None else (worker.id, worker.num_workers)
        sample = number
        while True:
            window, rng = self.request.read(sample)[0][0], np.random.default_rng(sample)
            crop = turned(window, self.settings, rng)
            yield tuple(torch.from_numpy(changed(crop, self.settings, rng)[None]) for _ in range(2))
            sample += count


def turned(window: np.ndarray, settings, rng: np.random.Generator) -> np.ndarray:
    """A crop out of a window (X, Y, Z): zoomed, turned about each axis, flipped."""
    linear = np.eye(3) * np.exp(rng.uniform(*np.log(settings.zoom)))
    for i, j in ((1, 2), (2, 0), (0, 1)):
        angle, turn = np.deg2rad(settings.rotation_degrees * rng.uniform(-1, 1)), np.eye(3)
        turn[i, i] = turn[j, j] = math.cos(angle)
        turn[j, i], turn[i, j] = math.sin(angle), -math.sin(angle)
        linear = turn @ linear
    linear = linear * rng.choice([-1.0, 1.0], 3)
    middle_out, middle_in = (np.array(settings.crop_size) - 1) / 2, (np.array(window.shape) - 1) / 2
    return affine_transform(window, linear, middle_in - linear @ middle_out, settings.crop_size, order=1, mode="nearest")


def changed(crop: np.ndarray, settings, rng: np.random.Generator) -> np.ndarray:
    """One view of a crop (X, Y, Z): the changes of nnssl_reg.pretraining.intensity, in the usual way for one image."""
    x, strength = crop.astype(np.float32), settings.intensity_strength
    if rng.random() < settings.remap_probability:
        knots = np.linspace(-1, 1, 8)
        x = np.interp(x, knots, knots + strength * (np.sort(rng.uniform(-1, 1, 8)) - knots))
    if rng.random() < settings.gin_probability:
        x = shallow_convolutions(x, rng.uniform(0, min(strength, 1.0)), rng)
    if rng.random() < 0.5:
        gain = zoom(rng.normal(0, 0.3 * strength, (3, 3, 3)), np.array(x.shape) / 3, order=1)
        x = (x + 1) * np.exp(gain) - 1
    if rng.random() < 0.5:
        low, spread, mean, deviation = x.min(), np.ptp(x) + 1e-6, x.mean(), x.std()
        x = ((x - low) / spread) ** np.exp(strength * rng.uniform(-0.5, 0.5))
        x = (x - x.mean()) / (x.std() + 1e-6) * deviation + mean
    if rng.random() < 0.5:
        x = (x - x.mean()) * np.exp(strength * rng.uniform(-0.4, 0.4)) + x.mean() + strength * rng.uniform(-0.3, 0.3)
    if rng.random() < 0.3:
        x = gaussian_filter(x, strength * rng.uniform(0.4, 1.2))
    if rng.random() < 0.5:
        x = x + rng.normal(0, strength * rng.uniform(0, 0.1) + 1e-6, x.shape)
    return np.ascontiguousarray(x, dtype=np.float32)


def shallow_convolutions(x: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """GIN of one image: 1, 2, 2, 1 channels, kernels of 1 or 3 voxels, leaky ReLU between, blended, energy kept."""
    mean = x.mean()
    inputs, layers = x - mean, (1, 2, 2, 1)
    channels = [inputs]
    for layer, width in enumerate(layers[1:]):
        if layer:
            channels = [np.where(c > 0, c, 0.01 * c) for c in channels]
        edge = int(rng.choice([1, 3]))
        kernels = rng.normal(0, 1 / math.sqrt(edge**3 * len(channels)), (width, len(channels), edge, edge, edge))
        channels = [sum(convolve(c, k, mode="nearest") for c, k in zip(channels, row)) for row in kernels]
    mixed = share * channels[0] + (1 - share) * inputs
    return mixed * np.linalg.norm(inputs) / max(float(np.linalg.norm(mixed)), 1e-5) + mean


def our_steps(run: Run, state: TrainingState):
    """Train without end; yields the seconds that each step waited for its data."""
    loader = open_loader(run.window_request, 0, run.configuration.pretraining.workers, run.device)
    try:
        for _, _, waited in steps(run, state, loader):
            state.step += 1
            yield waited
    finally:
        close_loader(loader)


def plain_steps(run: Run, state: TrainingState):
    """The same with finished views from reading processes."""
    settings, patch = run.configuration.pretraining, run.configuration.network.patch_size
    data = PlainViews(run.window_request, settings)
    # one sample at a time, so that the processes work on one batch together and finish in turns
    ahead = {"prefetch_factor": 1} if settings.workers else {}
    loader = iter(torch.utils.data.DataLoader(data, None, num_workers=settings.workers, **ahead))
    generator = torch.Generator().manual_seed(0)
    while True:
        began = time.perf_counter()
        pairs = [next(loader) for _ in range(settings.batch_size)]
        teacher, student = (torch.stack(views) for views in zip(*pairs))
        waited = time.perf_counter() - began
        masks = draw_masks(settings.batch_size, settings, patch, generator).to(run.device)
        values, _ = learn(run, state, Views(teacher.to(run.device), student.to(run.device), masks, masks))
        torch.stack(list(values.values())).tolist()  # as loops do that print their losses
        state.step += 1
        yield waited


LOOPS = {"nnssl_reg": our_steps, "plain loop": plain_steps}


def peak_flops(device: torch.device) -> float:
    """bfloat16 operations per second of a large matrix product on a GPU."""
    a = torch.randn(8192, 8192, device=device, dtype=torch.bfloat16)
    for repeat in (3, 30):
        torch.cuda.synchronize(device)
        began = time.perf_counter()
        for _ in range(repeat):
            a @ a
        torch.cuda.synchronize(device)
    return 30 * 2 * 8192**3 / (time.perf_counter() - began)


def measure(args: argparse.Namespace, loop: str, crop: int, folder: Path) -> dict:
    """Some steps that do not count, then steps for args.seconds, at least three."""
    configuration, device = configuration_of(args, crop), torch.device(args.device)
    groups = (CaseGroup(folder, tuple(case_names(folder))),)
    run = Run(configuration, "3d_fullres", "Dataset999_Noise", groups, 0, device)
    state = start(run)
    trained = LOOPS[loop](run, state)
    for _ in range(WARM_STEPS):
        next(trained)
    waited, began = [], time.perf_counter()
    while len(waited) < 3 or time.perf_counter() - began < args.seconds:
        waited.append(next(trained))
    seconds = time.perf_counter() - began
    trained.close()
    one_step = replace(configuration, pretraining=replace(configuration.pretraining, steps=1))
    gpu = device.type == "cuda"
    return {
        "samples_per_second": len(waited) * args.batch / seconds,
        "waiting": sum(waited) / seconds,
        "of_peak": training_flops(one_step) * len(waited) / seconds / peak_flops(device) if gpu else math.nan,
        "gb": torch.cuda.max_memory_allocated(device) / GB if gpu else math.nan,
        "predicted": training_bytes(configuration.network, configuration.pretraining, "bfloat16") / GB if gpu else math.nan,
    }


def measured_apart(loop: str, crop: int, folder: Path) -> dict:
    """One measurement in a process of its own."""
    command = [sys.executable, __file__, *sys.argv[1:], "--measure", loop, str(crop), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{loop} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def compare(args: argparse.Namespace, crop: int) -> None:
    """Measure both loops in turns and print a row for each."""
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / "cases"
        store(folder, crop)
        rows = {loop: [] for loop in args.only or LOOPS}
        for _ in range(args.repeats):
            for loop in rows:
                rows[loop].append(measured_apart(loop, crop, folder))
    middle = {loop: {key: statistics.median(row[key] for row in found) for key in found[0]} for loop, found in rows.items()}
    for loop, row in middle.items():
        print(f"| {crop}^3 | {loop} | {row['samples_per_second']:.3g} | {row['waiting']:.0%} | {row['of_peak']:.0%} | "
              f"{row['gb']:.1f} | {row['predicted']:.1f} |".replace("nan%", "-").replace("nan", "-"), flush=True)  # fmt: skip
    if len(middle) < len(LOOPS):
        return
    ratio = middle["nnssl_reg"]["samples_per_second"] / middle["plain loop"]["samples_per_second"]
    print(f"|  | {ratio:.2f} times the plain loop's samples/s | | | | | |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--crop", type=int, action="append", metavar="N", help="voxels an edge; default: 64 and 128, CPU: 32")
    parser.add_argument("--patch", type=int, default=4)
    parser.add_argument("--width", type=int, default=192)
    parser.add_argument("--depth", type=int, default=8)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--prototypes", type=int, default=1024)
    parser.add_argument("--workers", type=int, default=None, help="reading processes; default: 8, on a CPU 1, as planned")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seconds", type=float, default=60.0, help="of each measurement")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=LOOPS, metavar="LOOP", help="not the other loop")
    parser.add_argument("--measure", nargs=3, metavar=("LOOP", "CROP", "FOLDER"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    gpu = args.device != "cpu"
    args.workers = (8 if gpu else 1) if args.workers is None else args.workers
    if args.measure:
        print(json.dumps(measure(args, args.measure[0], int(args.measure[1]), Path(args.measure[2]))))
        return
    columns = ("crop", "loop", "samples/s", "waiting for data", "of the bf16 peak", "GPU memory, GB", "predicted")
    print(f"| {' | '.join(columns)} |", "|---" * len(columns) + "|", sep="\n")
    for crop in args.crop or ([64, 128] if gpu else [32]):
        compare(args, crop)


if __name__ == "__main__":
    main()
