"""How far points are off where the answer is known: an image and itself, deformed smoothly and given fresh noise.

    python tests/benchmarks/known_deformations.py IMAGE ...                                  # 5,000 points of the body
    python tests/benchmarks/known_deformations.py CHEST_CT ... --breathing 25                # 3,000 points on lung vessels
    python tests/benchmarks/known_deformations.py IMAGE ... --peer PYTHON --peers greedy     # and other programs

The deformation is random_deformation, in proportion to the field of view. With --breathing the diaphragm also moves by so
many millimetres, and lungs become a quarter denser. Errors are in millimetres, seconds those of the processor.
"""

import argparse
import json
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage

from nnssl_reg import register
from nnssl_reg.evaluation.known_pairs import PHANTOM_DIAGONAL_MM, PlacedDeformation, known_points
from nnssl_reg.evaluation.phantoms import random_deformation
from nnssl_reg.geometry.image import Image
from nnssl_reg.geometry.sampling import sample_points, slabs
from nnssl_reg.imageio.images import read_image, write_image
from nnssl_reg.imageio.modality import guess_modality
from nnssl_reg.imageio.transforms import read_field
from nnssl_reg.planning.foreground import foreground_mask

HERE = Path(__file__).parent
SMALL_MM = 250.0  # fields of view below are resampled to 1 mm for the peers, larger ones to 2 mm
BREATH_MM = 80.0  # standard deviation along the body of what breathing moves
LUNG_HU, VESSEL_HU = (-970, -550), -650
AIR_HU, NOISE_HU = -1024, 25
Warp = Callable[[np.ndarray], np.ndarray]


def lungs(image: np.ndarray) -> np.ndarray:
    """The two largest airy regions within the body (X, Y, Z) bool, their vessels included."""
    body, count = ndimage.label(ndimage.binary_opening(image > -300))
    body = body == 1 + np.argmax(ndimage.sum_labels(body > 0, body, range(1, count + 1)))
    planes = [ndimage.binary_fill_holes(ndimage.binary_closing(plane, iterations=2)) for plane in np.moveaxis(body, 2, 0)]
    airy = ndimage.binary_opening(np.stack(planes, 2) & (image > LUNG_HU[0]) & (image < LUNG_HU[1]))
    regions, count = ndimage.label(airy)
    sizes = ndimage.sum_labels(airy, regions, range(1, count + 1))
    mask = np.isin(regions, 1 + np.argsort(sizes)[-2:])
    return ndimage.binary_closing(np.pad(mask, 4), iterations=3)[4:-4, 4:-4, 4:-4]


def breath(mask: np.ndarray, grid, amplitude_mm: float) -> Warp:
    """How far breathing moves points (N, 3): most at the lowest tenth of the lungs, down and a fifth as far to the front."""
    points = grid.index_to_world(np.argwhere(mask))
    middle, half, low = points.mean(0), np.ptp(points, axis=0) / 2, np.percentile(points[:, 2], 10)

    def moved(p: np.ndarray) -> np.ndarray:
        across = ((p[..., 0] - middle[0]) / (1.2 * half[0])) ** 4 + ((p[..., 1] - middle[1]) / (1.3 * half[1])) ** 4
        share = np.exp(-(((p[..., 2] - low) / BREATH_MM) ** 2) / 2 - across)
        return amplitude_mm * np.stack([0 * share, 0.2 * share, -share], axis=-1)

    return moved


def known(fixed: Image, strength: float, breathing_mm: float, seed: int) -> tuple[Image, np.ndarray, np.ndarray]:
    """The moving image, points of the fixed body (or its lung vessels), and where they are in it, (N, 3) RAS mm."""
    grid, rng, voxels = fixed.grid, np.random.default_rng(seed), fixed.array[0]
    scale = float(np.linalg.norm(grid.extent_mm)) / PHANTOM_DIAGONAL_MM
    placed, source, low = (
        PlacedDeformation(random_deformation(rng, strength), grid.center_mm, scale),
        voxels.copy(),
        voxels.min(),
    )
    if breathing_mm:
        mask, low = lungs(voxels), AIR_HU
        moved = breath(mask, grid, breathing_mm)
        source[mask] = np.minimum(1.25 * (source[mask] - AIR_HU) + AIR_HU, 100)
        deviation = NOISE_HU
    else:
        mask, moved = foreground_mask(voxels, guess_modality(fixed)), np.zeros_like
        deviation = 0.02 * np.subtract(*np.percentile(voxels, (99, 1)))
    values = np.empty(fixed.array.shape, np.float32)
    for start, stop in slabs(grid.shape, 2**19):
        led = placed.apply(np.moveaxis(grid.points_mm(start, stop).double().numpy(), 0, -1))
        led = torch.from_numpy(np.moveaxis(led + moved(led), -1, 0).astype(np.float32))
        values[:, start:stop] = sample_points(torch.from_numpy(source[None].astype(np.float32)), grid, led, fill=float(low))
    values += rng.normal(0, deviation, values.shape).astype(np.float32)
    values = np.maximum(values, low) if breathing_mm else np.abs(values) if np.percentile(voxels, 1) >= 0 else values
    if not breathing_mm:
        return Image(values, grid), *known_points(mask, grid, placed, rng)
    vessels = np.argwhere(ndimage.binary_erosion(mask, iterations=2) & (ndimage.gaussian_filter(voxels, 1) > VESSEL_HU))
    points = grid.index_to_world(vessels[rng.integers(0, len(vessels), 3000)].astype(float))
    before = points
    for _ in range(60):  # undo the breath, then the rest
        before = points - moved(before)
    there = placed.inverse(before)
    shown = ((grid.world_to_index(there) >= 0) & (grid.world_to_index(there) <= np.array(grid.shape) - 1)).all(1)
    return Image(values, grid), points[shown], there[shown]


def row(name: str, errors: np.ndarray, seconds: float | None = None) -> str:
    told = f"mean {errors.mean():.2f}, median {np.median(errors):.2f}, 95 % {np.percentile(errors, 95):.2f} mm"
    return f"  {name}: {told}" + (f", {seconds:.1f} s" if seconds is not None else "")


def by_peer(args: argparse.Namespace, method: str, fixed: Image, moving: Image, points: np.ndarray) -> tuple[np.ndarray, float]:
    """Where another program has the points, and its seconds."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [str(Path(folder) / name) for name in ("fixed.nii.gz", "moving.nii.gz", "field.nii.gz")]
        write_image(paths[0], fixed)
        write_image(paths[1], moving)
        mm = "1" if max(fixed.grid.extent_mm) < SMALL_MM else "2"
        told = subprocess.run([args.peer, HERE / "peers.py", method, mm, *paths], capture_output=True, text=True, check=True)
        return read_field(paths[2]).apply_to_points(points), json.loads(told.stdout)["cpu_seconds"]


def main() -> None:
    """Print a few lines for each image."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="+", metavar="IMAGE")
    parser.add_argument("--strength", type=float, default=0.4, help="of the deformation; 1: as two patients differ")
    parser.add_argument("--breathing", type=float, default=0.0, metavar="MM")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--peer", metavar="PYTHON", help="a Python in which the other programs are installed")
    parser.add_argument("--peers", nargs="*", default=["greedy"], metavar="METHOD")
    args = parser.parse_args()
    for path in args.images:
        fixed = read_image(path)
        moving, points, there = known(fixed, args.strength, args.breathing, args.seed)
        print(Path(path).name, row("before", np.linalg.norm(points - there, axis=1)), flush=True)
        began = time.process_time()
        found = register(fixed, moving, features="mind").apply(points)
        print(row("nnssl_reg, mind", np.linalg.norm(found - there, axis=1), time.process_time() - began), flush=True)
        for method in args.peers if args.peer else ():
            found, seconds = by_peer(args, method, fixed, moving, points)
            print(row(method, np.linalg.norm(found - there, axis=1), seconds), flush=True)


if __name__ == "__main__":
    main()
