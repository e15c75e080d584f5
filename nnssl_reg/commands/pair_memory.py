"""Whether pairs fit this machine's memory, asked before they are registered, and the spacing at which they would."""

import logging
import math
from collections.abc import Sequence
from dataclasses import replace

import psutil
import torch

from nnssl_reg.commands.machine import free_memory
from nnssl_reg.commands.registration_setup import Setup
from nnssl_reg.geometry.grid import Grid
from nnssl_reg.imageio.images import read_grid
from nnssl_reg.imageio.pairs import Pair
from nnssl_reg.planning.memory import GB, RegistrationMemory, registration_memory

LOADED_LATER = 0.45 * GB  # SimpleITK, matplotlib and compiled kernels, once they are used
CERTAIN = 1.5  # times the free memory that a prediction must be before a pair is refused; from 1 on it is warned of
FIELD_BYTES = 12  # per voxel of the fixed image
COARSER = 1.25  # the next spacing that is tried

log = logging.getLogger("nnssl_reg")


def memory_told(pairs: Sequence[Pair], setup: Setup) -> str:
    """A line for the console: what the largest pair is predicted to take, and what is free."""
    needs, on_gpu = {}, 0.0
    for pair in pairs:
        try:
            grids = read_grid(pair.fixed), read_grid(pair.moving)
        except (ValueError, OSError):
            continue  # reported when it is its turn
        needs[pair.id] = predicted_bytes(grids, setup, len(pairs))
        on_gpu = max(on_gpu, gpu_bytes(grids, setup, len(pairs)))
    if not needs:
        return "Memory: no pair is readable"
    largest = max(needs, key=needs.get)
    of = f" ({largest})" if len(needs) > 1 else ""
    said = f"Memory: about {needs[largest] / GB:.1f} GB at most{of}, {free_memory() / GB:.1f} GB are free"
    if setup.device.type != "cuda":
        return said
    return f"{said}; on {setup.device} about {on_gpu / GB:.1f} GB, {_free_on(setup.device) / GB:.1f} GB are free"


def predicted_bytes(grids: Sequence[Grid], setup: Setup, pairs: int = 1) -> float:
    """What of main memory this process will hold at most while it registers images on two grids, one of several pairs.

    Counted are the process as it is, libraries that are loaded later, images, output, and, unless they are on a GPU, features
    and search.
    """
    return psutil.Process().memory_info().rss + LOADED_LATER + _on_host(_memory(grids, setup), setup).peak(pairs)


def gpu_bytes(grids: Sequence[Grid], setup: Setup, pairs: int = 1) -> float:
    """What a GPU will hold at most: features and search, predicted as for a CPU, and the field on the fixed image's grid."""
    memory = _memory(grids, setup)
    return min(pairs, 2) * memory.maps + memory.search + FIELD_BYTES * math.prod(grids[0].shape)


def check_memory(name: str, grids: Sequence[Grid], setup: Setup) -> None:
    """Raise ValueError, with the spacing that fits, for a pair that needs far more memory than is free; warn of a close one.

    Counted is what predicted_bytes counts, less the process. What a GPU holds (gpu_bytes) is only warned of, for it is
    predicted by what a CPU takes, which was more where both were measured.
    """
    shapes = " and ".join(" x ".join(map(str, grid.shape)) for grid in grids)
    if setup.device.type == "cuda" and (wanted := gpu_bytes(grids, setup)) > (there := _free_on(setup.device)):
        log.warning("%s: registering %s voxels may take %.1f GB of %s, and %.1f GB are free. Where it does not fit: "
                    "-device cpu, or coarser features, --set features.mind_spacing_mm=N.", name, shapes, wanted / GB,
                    setup.device, there / GB)  # fmt: skip
    free = free_memory()
    need = LOADED_LATER + _on_host(_memory(grids, setup), setup).peak()
    if need <= free:
        return
    said = (f"{name}: registering {shapes} voxels takes about {need / GB:.1f} GB, and {free / GB:.1f} GB are free; "
            f"{_way_out(grids, setup, free)}.")  # fmt: skip
    if need > CERTAIN * free:
        raise ValueError(said)
    log.warning("%s", said)


def _memory(grids: Sequence[Grid], setup: Setup) -> RegistrationMemory:
    return registration_memory(*grids, setup.features, setup.registration)


def _on_host(memory: RegistrationMemory, setup: Setup) -> RegistrationMemory:
    """What of a prediction main memory holds: with a GPU all but features and search."""
    return replace(memory, maps=0.0, search=0.0) if setup.device.type == "cuda" else memory


def _free_on(gpu: torch.device) -> float:
    """Bytes of a GPU that can still be had, those that torch keeps for this process included."""
    return torch.cuda.mem_get_info(gpu)[0] + torch.cuda.memory_reserved(gpu)


def _way_out(grids: Sequence[Grid], setup: Setup, free: float) -> str:
    """What fits, as flags: without the refinement at voxels, else the finest coarser features; without any, smaller images."""
    if setup.device.type == "cuda":
        return "the images are too large: crop them or resample them to larger voxels"
    features, registration = setup.features, replace(setup.registration, voxel_iterations=0)
    if LOADED_LATER + registration_memory(*grids, features, registration).peak() <= free:
        return "without the refinement at every voxel it fits: --set registration.voxel_iterations=0"
    registration = setup.registration
    for _ in range(20):
        spacing = tuple(round(COARSER * s, 2) for s in features.mind_spacing_mm)
        factor = math.prod(spacing) ** (1 / 3) / math.prod(features.mind_spacing_mm) ** (1 / 3)
        features = replace(features, mind_spacing_mm=spacing)
        registration = replace(registration, coarse_spacing_mm=round(factor * registration.coarse_spacing_mm, 1))
        if LOADED_LATER + registration_memory(*grids, features, registration).peak() <= free:
            flags = f"--set features.mind_spacing_mm={','.join(f'{s:g}' for s in spacing)}"
            return f"coarser features fit: {flags} --set registration.coarse_spacing_mm={registration.coarse_spacing_mm:g}"
    return "the images alone are too large: crop them or resample them to larger voxels"
