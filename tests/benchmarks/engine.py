"""Time, memory and agreement of ConvexAdam with MIND features, beside the peer convexAdam 0.2.0, printed as a table.

    python tests/benchmarks/engine.py                        # ours alone, 96 to 256 voxels
    python tests/benchmarks/engine.py --peer PYTHON          # and the peer, run by a Python that has convexAdam installed
    python tests/benchmarks/engine.py --roofline             # one Adam step beside what the machine could do at best
    python tests/benchmarks/engine.py --device cuda          # on a GPU, with --peer PYTHON and --shape X Y Z as on the CPU

Every measurement is a process of its own, ours and the peer's take turns, medians are printed. "before" is what the process
held with libraries and volumes loaded and a small volume registered; "peak" the most it ever held.
With --device cuda a process registers the volumes themselves once (compiled code, caches), then for the clock as often as
--repeats says, from arrays in the computer's memory to a field there: ours in pinned memory that the first registration took,
the peer's as it returns it; the clock runs until the GPU has nothing left to do.
"peak" is then the most that torch had allocated on the GPU (max_memory_allocated), and the peer uses its own float16.
Both register the same two volumes: noise smoothed to structures of some voxels, and the same moved by a known smooth field.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

SHAPES = ((96, 96, 96), (128, 128, 128), (192, 160, 192), (256, 256, 256), (384, 384, 384))
AMPLITUDE = 6.0  # voxels, of the known displacement


def volumes(shape, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Fixed and moving volume (X, Y, Z) float32, and the displacement (3, X, Y, Z) in voxels: fixed(x) = moving(x + u(x))."""
    from scipy.ndimage import gaussian_filter, map_coordinates

    rng = np.random.default_rng(seed)
    moving = sum(gaussian_filter(rng.standard_normal(shape, dtype=np.float32), s) * s**1.5 for s in (2.0, 5.0))
    axes = np.meshgrid(*[np.linspace(0, 2 * np.pi, n, dtype=np.float32) for n in shape], indexing="ij")
    field = np.stack([AMPLITUDE * np.sin(axes[(c + 1) % 3] + c) * np.cos(axes[(c + 2) % 3]) for c in range(3)])
    index = np.stack(np.meshgrid(*[np.arange(n, dtype=np.float32) for n in shape], indexing="ij"))
    return map_coordinates(moving, index + field, order=1, mode="nearest"), moving, field


def ours(fixed: np.ndarray, moving: np.ndarray, device: str) -> np.ndarray:
    """The field in voxels (3, X, Y, Z), with convexAdam's default settings."""
    import torch

    from nnssl_reg.features.mind import mind_features
    from nnssl_reg.geometry.affine import AffineTransform
    from nnssl_reg.geometry.grid import Grid
    from nnssl_reg.geometry.host_memory import on_host
    from nnssl_reg.registration.convex_adam import convex_adam

    grid = Grid(fixed.shape, np.eye(4))
    maps = [mind_features(torch.from_numpy(v).to(device), grid, ((1, 2),), 0.0, (2, 2, 2)) for v in (fixed, moving)]
    field = convex_adam(*maps, initial=AffineTransform.identity(), coarse_spacing_mm=6.0, search_radius_mm=24.0, rounds=1,
                        iterations=80, learning_rate=1.0, smoothness=1.25, smoothing_passes=3)  # fmt: skip
    return on_host(field.on(grid).vectors_mm)


def peer(fixed: np.ndarray, moving: np.ndarray, device: str) -> np.ndarray:
    """The field in voxels (3, X, Y, Z) of convexAdam with its defaults."""
    import torch
    from convexAdam.convex_adam_MIND import convex_adam_pt

    settings = {"dtype": torch.float32 if device == "cpu" else torch.float16, "device": torch.device(device)}
    field = convex_adam_pt(torch.from_numpy(fixed), torch.from_numpy(moving), **settings)
    return np.moveaxis(np.asarray(field, dtype=np.float32), -1, 0)


METHODS = {"nnssl_reg": ours, "convexAdam": peer}


def measure(method: str, data: Path, out: Path) -> None:
    """Register once on a small volume (imports, compiled code), then once for the clock; the figures to standard output."""
    loaded = np.load(data)
    METHODS[method](*(loaded[k][:48, :48, :48].copy() for k in ("fixed", "moving")), "cpu")
    fixed, moving = loaded["fixed"], loaded["moving"]
    before = _peak_gb()
    started = time.perf_counter()
    field = METHODS[method](fixed, moving, "cpu")
    seconds = time.perf_counter() - started
    np.save(out, field.astype(np.float16))
    print(json.dumps([{"seconds": seconds, "before_gb": before, "peak_gb": _peak_gb()}]))


def measure_on_gpu(method: str, data: Path, out: Path, repeats: int) -> None:
    """Register once, then `repeats` times for the clock; the figures of each to standard output."""
    import torch

    loaded, rows, field = np.load(data), [], None
    fixed, moving = loaded["fixed"], loaded["moving"]
    METHODS[method](fixed, moving, "cuda")
    for _ in range(repeats):
        field = None  # its memory may serve the next
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated() / 2**30
        started = time.perf_counter()
        field = METHODS[method](fixed, moving, "cuda")
        torch.cuda.synchronize()
        seconds = time.perf_counter() - started
        rows.append({"seconds": seconds, "before_gb": before, "peak_gb": torch.cuda.max_memory_allocated() / 2**30})
    np.save(out, field.astype(np.float16))
    print(json.dumps(rows))


def _peak_gb() -> float:
    """The most this program ever held; Linux's ru_maxrss would start at what the program that started it held."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 2**20


def run(python: str, method: str, data: Path, out: Path, device: str, repeats: int) -> list[dict]:
    """Measurements in a process of its own: one on the CPU, `repeats` on a GPU."""
    command = [python, __file__, "--measure", method, str(data), str(out), "--device", device, "--repeats", str(repeats)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{method} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def kept_volumes(shape, folder: Path) -> Path:
    """The file of `volumes` in a folder, made where it is not there yet."""
    data = folder / f"volumes_{'x'.join(map(str, shape))}.npz"
    if not data.exists():
        fixed, moving, truth = volumes(shape)
        part = data.with_suffix(".part.npz")
        np.savez(part, fixed=fixed, moving=moving, truth=truth)
        part.rename(data)
    return data


def compare(shape, pythons: dict[str, str], repeats: int, device: str, kept: Path | None) -> None:
    """Measure all methods on one volume, on the CPU in turns, and print a row for each."""
    with tempfile.TemporaryDirectory() as folder:
        data = kept_volumes(shape, kept or Path(folder))
        truth, rows = np.load(data)["truth"], {method: [] for method in pythons}
        for _ in range(repeats if device == "cpu" else 1):
            for method, python in pythons.items():
                rows[method] += run(python, method, data, Path(folder) / f"{method}.npy", device, repeats)
        fields = {method: np.load(Path(folder) / f"{method}.npy").astype(np.float32) for method in pythons}
    inner = (slice(None), *(slice(n // 8, -n // 8) for n in shape))
    for method, measured in rows.items():
        seconds = statistics.median(r["seconds"] for r in measured)
        before, peak = (statistics.median(r[key] for r in measured) for key in ("before_gb", "peak_gb"))
        error = np.linalg.norm((fields[method] - truth)[inner], axis=0)
        print(f"| {' x '.join(map(str, shape))} | {method} | {seconds:.2f} | {before:.2f} | {peak:.2f} | {error.mean():.3f} | "
              f"{np.percentile(error, 95):.3f} |", flush=True)  # fmt: skip
    if len(rows) == 2:
        a, b = (np.linalg.norm((fields["nnssl_reg"] - fields["convexAdam"])[inner], axis=0), rows)
        ratio = statistics.median(q["seconds"] / p["seconds"] for p, q in zip(b["nnssl_reg"], b["convexAdam"]))
        print(f"|  | ratio of times {ratio:.1f}; fields differ by {a.mean():.3f} voxels (mean) | | | | | |", flush=True)


def roofline(shape=(96, 80, 96), channels: int = 12, repeats: int = 21) -> None:
    """Time of the parts of one Adam step on a lattice of cells, beside the least bytes and operations they need.

    Least bytes: both maps once in 16 bits, and of the field's vectors and moments what each part reads and writes once.
    Operations: those of trilinear interpolation with its derivative, of three separable filters, and of Adam's formula.
    """
    import torch

    from nnssl_reg.registration import kernels_cpu
    from nnssl_reg.registration.cells import Cells

    generator = torch.Generator().manual_seed(0)
    features = [2 * torch.randn(channels, *shape, generator=generator) for _ in range(2)]
    maps = [Cells(kernels_cpu.packed(f, torch.zeros(channels), 1 / 3000, None), 1 / 3000) for f in features]
    field = kernels_cpu.smooth(torch.randn(3, *shape, generator=generator), 3)
    parameter, moments, weights = field.clone(), torch.zeros(2, *field.shape), torch.ones(3, 3)
    bandwidth, operations = _ceilings()
    print(f"measured ceilings: {bandwidth:.1f} GB/s (triad), {operations:.0f} GFLOP/s (multiply-add, float32)")
    print("| part | ms | least MB | MFLOP | least ms by bytes | by operations |\n|---|---|---|---|---|---|")
    parts = {
        "gradient": (
            lambda: kernels_cpu.energy_gradient(*maps, field, np.eye(4)[:3], weights),
            4 * channels + 24,
            39 * channels + 110,
        ),
        "smoothing": (lambda: kernels_cpu.smooth(field, 3), 24, 126),
        "smoothing and update": (lambda: kernels_cpu.smooth_adam_step(parameter, field, moments, 3, 1.0, 2), 84, 171),
    }
    cells = shape[0] * shape[1] * shape[2]
    for name, (function, size, flops) in parts.items():
        ms = 1e3 * _median_seconds(function, repeats)
        mb, mflop = cells * size / 1e6, cells * flops / 1e6
        print(f"| {name} | {ms:.1f} | {mb:.0f} | {mflop:.0f} | {mb / bandwidth:.1f} | {mflop / operations:.1f} |", flush=True)


def _ceilings() -> tuple[float, float]:
    """Bandwidth of a = b + s c in GB/s, and multiply-adds on registers in GFLOP/s, both on all cores."""
    import numba

    @numba.njit(parallel=True, fastmath=True)
    def triad(a, b, c):
        for i in numba.prange(a.shape[0]):
            a[i] = b[i] + np.float32(0.5) * c[i]

    @numba.njit(parallel=True, fastmath=True)
    def multiply_add(out, rounds):
        for job in numba.prange(out.shape[0]):
            sums = np.zeros(256, np.float32)
            for _ in range(rounds):
                for i in range(256):
                    sums[i] = sums[i] * np.float32(0.999) + np.float32(0.5)
            out[job] = sums.sum()

    a, b, c = (np.ones(2**26, np.float32) for _ in range(3))
    jobs, rounds = np.zeros(64), 200_000
    bandwidth = 12 * 2**26 / _median_seconds(lambda: triad(a, b, c), 7) / 1e9
    return bandwidth, 2 * 256 * rounds * len(jobs) / _median_seconds(lambda: multiply_add(jobs, rounds), 3) / 1e9


def _median_seconds(function, repeats: int) -> float:
    function()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        function()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", metavar="PYTHON", help="a Python that has convexAdam 0.2.0 installed")
    parser.add_argument("--shape", nargs=3, type=int, action="append", metavar="N", help="may be given several times")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--roofline", action="store_true", help="only the parts of an Adam step and the machine's ceilings")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--volumes", type=Path, metavar="FOLDER", help="keep the volumes there, and use those already there")
    parser.add_argument("--measure", nargs=3, metavar=("METHOD", "DATA", "OUT"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        method, *paths = args.measure[0], *map(Path, args.measure[1:])
        measure(method, *paths) if args.device == "cpu" else measure_on_gpu(method, *paths, args.repeats)
        return
    if args.roofline:
        roofline()
        return
    pythons = {"nnssl_reg": sys.executable} | ({"convexAdam": args.peer} if args.peer else {})
    print(
        "| voxels | method | s | before GB | peak GB | error mean, voxels | error 95 %, voxels |\n|---|---|---|---|---|---|---|"
    )
    for shape in args.shape or SHAPES:
        compare(tuple(shape), pythons, args.repeats, args.device, args.volumes)


if __name__ == "__main__":
    main()
