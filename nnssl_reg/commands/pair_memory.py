"""Whether pairs fit this machine's memory, asked before they are registered, and the spacing at which they would."""

import logging
import math
from collections.abc import Sequence
from dataclasses import replace

import psutil

from nnssl_reg.commands.machine import free_memory
from nnssl_reg.commands.registration_setup import Setup
from nnssl_reg.geometry.grid import Grid
from nnssl_reg.imageio.images import read_grid
from nnssl_reg.imageio.pairs import Pair
from nnssl_reg.planning.memory import GB, RegistrationMemory, registration_memory

LOADED_LATER = 0.45 * GB  # SimpleITK, matplotlib and compiled kernels, once they are used
CERTAIN = 1.5  # times the free memory that a prediction must be before a pair is refused; from 1 on it is warned of
COARSER = 1.25  # the next spacing that is tried

log = logging.getLogger("nnssl_reg")


def memory_told(pairs: Sequence[Pair], setup: Setup) -> str:
    """A line for the console: what the largest pair is predicted to take, and what is free."""
    needs = {}
    for pair in pairs:
        try:
            grids = read_grid(pair.fixed), read_grid(pair.moving)
        except (ValueError, OSError):
            continue  # reported when it is its turn
        needs[pair.id] = predicted_bytes(grids, setup, len(pairs))
    if not needs:
        return "Memory: no pair is readable"
    largest = max(needs, key=needs.get)
    of = f" ({largest})" if len(needs) > 1 else ""
    return f"Memory: about {needs[largest] / GB:.1f} GB at most{of}, {free_memory() / GB:.1f} GB are free"


def predicted_bytes(grids: Sequence[Grid], setup: Setup, pairs: int = 1) -> float:
    """What this process will hold at most while it registers images on two grids, one of several pairs if so told."""
    return psutil.Process().memory_info().rss + LOADED_LATER + _memory(grids, setup).peak(pairs)


def check_memory(name: str, grids: Sequence[Grid], setup: Setup) -> None:
    """Raise ValueError, with the spacing that fits, for a pair that needs far more memory than is free; warn of a close one."""
    free = free_memory()
    need = LOADED_LATER + _memory(grids, setup).peak()
    if need <= free:
        return
    shapes = " and ".join(" x ".join(map(str, grid.shape)) for grid in grids)
    said = (f"{name}: registering {shapes} voxels takes about {need / GB:.1f} GB, and {free / GB:.1f} GB are free; "
            f"{_way_out(grids, setup, free)}.")  # fmt: skip
    if need > CERTAIN * free:
        raise ValueError(said)
    log.warning("%s", said)


def _memory(grids: Sequence[Grid], setup: Setup) -> RegistrationMemory:
    return registration_memory(*grids, setup.features, setup.registration)


def _way_out(grids: Sequence[Grid], setup: Setup, free: float) -> str:
    """What fits, as flags: without the refinement at voxels, else the finest coarser features; without any, smaller images."""
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
