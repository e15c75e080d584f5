"""Two views of each crop that differ in intensities and a little in geometry, which places correspond, and the masks."""

from dataclasses import dataclass

import numpy as np
import torch

from nnssl_reg.geometry.sampling import resample_batch
from nnssl_reg.planning.plans import PretrainingPlan
from nnssl_reg.pretraining.intensity import apply_change, draw_change
from nnssl_reg.pretraining.masking import block_mask
from nnssl_reg.pretraining.processes import ALONE, Processes

# at a jitter of 1, at most
JITTER_SHIFT = 0.3  # of the crop along each axis
JITTER_DEGREES = 5.0  # about each axis
JITTER_ZOOM = 0.05  # of the logarithm of the size along each axis


@dataclass(frozen=True)
class Views:
    """teacher, student: (B, 1, X, Y, Z), the same places in other intensities; mask: (B, X', Y', Z') bool over tokens.

    places: (B, 3, 4), index of a student's token -> where it lies among the teacher's; None: at the same. The first samples are
    masked, the others are not: iBOT's loss needs masks, the class loss needs whole images.
    all_masks: those of the whole batch, of which this process may have a part only.
    """

    teacher: torch.Tensor
    student: torch.Tensor
    mask: torch.Tensor
    all_masks: torch.Tensor
    places: torch.Tensor | None = None


def make_views(windows: torch.Tensor, plan: PretrainingPlan, patch_size: tuple[int, int, int],
               spacing_mm: tuple[float, float, float], generator: torch.Generator,
               processes: Processes = ALONE) -> Views:  # fmt: skip
    """Views of windows (B, 1, X, Y, Z) float32, which are larger than the crop as `window_size` says.

    Where the jitter turns a student's view out of its window, it sees edge values.

    generator: on the CPU, draws the parameters: those of the whole batch, whichever part of it the windows are.
    """
    count = windows.shape[0]
    whole = count * processes.size
    matrices = draw_geometry(whole, windows.shape[2:], plan, spacing_mm, generator)
    crops = resample_batch(windows, processes.own(matrices), plan.crop_size)
    moved, places = crops, None
    if plan.jitter > 0:
        jitter = draw_jitter(whole, plan, spacing_mm, generator)
        moved = resample_batch(windows, processes.own(_joined(matrices, jitter)), plan.crop_size)
        places = processes.own(_of_tokens(jitter, patch_size))
    teacher, student = torch.arange(2 * whole).chunk(2)
    change = draw_change(2 * whole, plan.intensity_strength, generator, remap_probability=plan.remap_probability,
                         gin_probability=plan.gin_probability,
                         low_resolution_probability=plan.low_resolution_probability)  # fmt: skip
    change = change.of(torch.cat((processes.own(teacher), processes.own(student))))
    both = apply_change(torch.cat((crops, moved)), change)
    masks = draw_masks(whole, plan, patch_size, generator).to(windows.device)
    return Views(both[:count], both[count:], processes.own(masks), masks, places)


def draw_masks(count: int, plan: PretrainingPlan, patch_size: tuple[int, int, int], generator: torch.Generator) -> torch.Tensor:
    """Masks (B, X', Y', Z'): the larger half of the samples has one random share of its tokens masked, the others none."""
    grid_shape = tuple(n // p for n, p in zip(plan.crop_size, patch_size))
    low, high = plan.mask_ratio
    ratio = low + (high - low) * float(torch.rand(1, generator=generator))
    masked = count - count // 2
    mask = torch.zeros(count, *grid_shape, dtype=torch.bool)
    mask[:masked] = block_mask(masked, grid_shape, ratio, generator)
    return mask


def draw_geometry(count: int, window_size, plan: PretrainingPlan, spacing_mm, generator: torch.Generator) -> torch.Tensor:
    """Random zoom, rotation and flips about the middle: (B, 3, 4), voxel index in the crop -> voxel index in the window."""
    low, high = np.log(plan.zoom)
    zoom = torch.exp(low + (high - low) * torch.rand(count, 1, 1, generator=generator, dtype=torch.float64))
    angles = torch.deg2rad(plan.rotation_degrees * (2 * torch.rand(count, 3, generator=generator, dtype=torch.float64) - 1))
    flips = 1.0 - 2.0 * torch.randint(2, (count, 1, 3), generator=generator)
    spacing = torch.tensor(spacing_mm, dtype=torch.float64)
    linear = zoom * rotations(angles) * (spacing[None, :] / spacing[:, None]) * flips  # a rotation of mm, in voxels
    middle_in = (torch.tensor(window_size, dtype=torch.float64) - 1)[:, None] / 2
    middle_out = (torch.tensor(plan.crop_size, dtype=torch.float64) - 1)[:, None] / 2
    return torch.cat((linear, middle_in - linear @ middle_out), dim=2)


def draw_jitter(count: int, plan: PretrainingPlan, spacing_mm, generator: torch.Generator) -> torch.Tensor:
    """Small random affine maps about the middle, (B, 3, 4), voxel of the student's crop -> voxel of the teacher's.

    plan.jitter: as a share of JITTER_SHIFT, JITTER_DEGREES and JITTER_ZOOM.
    """

    def draw(*shape: int) -> torch.Tensor:
        return plan.jitter * (2 * torch.rand(*shape, generator=generator, dtype=torch.float64) - 1)

    spacing = torch.tensor(spacing_mm, dtype=torch.float64)
    angles, zoom = torch.deg2rad(JITTER_DEGREES * draw(count, 3)), torch.exp(JITTER_ZOOM * draw(count, 1, 3))
    linear = rotations(angles) * (spacing[None, :] / spacing[:, None]) * zoom
    middle = (torch.tensor(plan.crop_size, dtype=torch.float64) - 1)[:, None] / 2
    shift = JITTER_SHIFT * draw(count, 3, 1) * torch.tensor(plan.crop_size, dtype=torch.float64)[:, None]
    return torch.cat((linear, middle + shift - linear @ middle), dim=2)


def _joined(outer: torch.Tensor, inner: torch.Tensor) -> torch.Tensor:
    """x -> outer(inner(x)), (B, 3, 4) each."""
    return torch.cat((outer[..., :3] @ inner[..., :3], outer[..., :3] @ inner[..., 3:] + outer[..., 3:]), dim=2)


def _of_tokens(maps: torch.Tensor, patch_size) -> torch.Tensor:
    """Maps of voxels (B, 3, 4) as maps of tokens, whose centres are those of patch_size voxels."""
    patch = torch.tensor(patch_size, dtype=torch.float64)
    first = (patch - 1)[:, None] / 2
    offset = (maps[..., :3] @ first + maps[..., 3:] - first) / patch[:, None]
    return torch.cat((maps[..., :3] * patch[None, :] / patch[:, None], offset), dim=2)


def rotations(angles: torch.Tensor) -> torch.Tensor:
    """Rotation matrices (B, 3, 3) about the three axes in turn, angles (B, 3) in radians."""
    out = torch.eye(3, dtype=angles.dtype).expand(len(angles), 3, 3)
    for axis, (i, j) in enumerate(((1, 2), (2, 0), (0, 1))):
        one = torch.eye(3, dtype=angles.dtype).repeat(len(angles), 1, 1)
        one[:, i, i] = one[:, j, j] = torch.cos(angles[:, axis])
        one[:, j, i] = torch.sin(angles[:, axis])
        one[:, i, j] = -torch.sin(angles[:, axis])
        out = one @ out
    return out


def window_size(plan: PretrainingPlan, spacing_mm: tuple[float, float, float]) -> tuple[int, int, int]:
    """Voxels to read so that the most rotated, zoomed-out and shifted crop is inside."""
    signs = torch.cartesian_prod(*[torch.linspace(-1, 1, 5, dtype=torch.float64)] * 3)
    spacing = torch.tensor(spacing_mm, dtype=torch.float64)
    linear = rotations(torch.deg2rad(plan.rotation_degrees * signs)) * (spacing[None, :] / spacing[:, None])
    crop = (1 + 2 * JITTER_SHIFT * plan.jitter) * torch.tensor(plan.crop_size, dtype=torch.float64)
    half = plan.zoom[1] * linear.abs() @ ((crop - 1) / 2)  # (125, 3)
    return tuple(int(n) for n in (torch.ceil(half.max(dim=0).values * 2) + 1).tolist())
