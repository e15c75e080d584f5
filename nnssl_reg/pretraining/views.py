"""Two views of each crop that share their geometry, token for token, and differ in intensities, and the student's masks."""

from dataclasses import dataclass

import numpy as np
import torch

from nnssl_reg.geometry.sampling import resample_batch
from nnssl_reg.planning.plans import PretrainingPlan
from nnssl_reg.pretraining.intensity import apply_change, draw_change
from nnssl_reg.pretraining.masking import block_mask
from nnssl_reg.pretraining.processes import ALONE, Processes


@dataclass(frozen=True)
class Views:
    """teacher, student: (B, 1, X, Y, Z), the same places in other intensities; mask: (B, X', Y', Z') bool over tokens.

    The first samples are masked, the others are not: iBOT's loss needs masks, the class loss needs whole images.
    all_masks: those of the whole batch, of which this process may have a part only. further: for the class loss alone, parts
    of the same places, (n * B, 1, ...) each, the first part of all samples, then the second.
    """

    teacher: torch.Tensor
    student: torch.Tensor
    mask: torch.Tensor
    all_masks: torch.Tensor
    further: tuple[torch.Tensor, ...] = ()


def make_views(windows: torch.Tensor, plan: PretrainingPlan, patch_size: tuple[int, int, int],
               spacing_mm: tuple[float, float, float], generator: torch.Generator,
               processes: Processes = ALONE) -> Views:  # fmt: skip
    """Views of windows (B, 1, X, Y, Z) float32, which are larger than the crop as `window_size` says.

    generator: on the CPU, draws the parameters: those of the whole batch, whichever part of it the windows are.
    """
    count = windows.shape[0]
    whole = count * processes.size
    matrices = draw_geometry(whole, windows.shape[2:], plan, spacing_mm, generator)
    crops = resample_batch(windows, processes.own(matrices), plan.crop_size)
    both = changed(torch.cat((crops, crops)), 2, plan, generator, processes)
    masks = draw_masks(whole, plan, patch_size, generator).to(windows.device)
    kinds = ((plan.global_crops, plan.crop_size, plan.global_scale), (plan.local_crops, plan.local_crop_size, plan.local_scale))
    further = tuple(draw_parts(windows, matrices, plan, *kind, generator, processes) for kind in kinds if kind[0] > 0)
    return Views(both[:count], both[count:], processes.own(masks), masks, further)


def changed(images: torch.Tensor, times: int, plan: PretrainingPlan, generator: torch.Generator,
            processes: Processes) -> torch.Tensor:  # fmt: skip
    """Images (times * B, 1, X, Y, Z), `times` views of the own samples one after the other, each with other intensities."""
    whole = len(images) * processes.size
    change = draw_change(whole, plan.intensity_strength, generator, remap_probability=plan.remap_probability,
                         gin_probability=plan.gin_probability, window_probability=plan.window_probability,
                         low_resolution_probability=plan.low_resolution_probability)  # fmt: skip
    own = torch.cat([processes.own(view) for view in torch.arange(whole).chunk(times)])
    return apply_change(images, change.of(own))


def draw_parts(windows: torch.Tensor, matrices: torch.Tensor, plan: PretrainingPlan, times: int, size, scale,
               generator: torch.Generator, processes: Processes) -> torch.Tensor:  # fmt: skip
    """Parts of the crops, (times * B, 1, *size) with intensities of their own.

    matrices: of the whole batch's crops, (W, 3, 4); scale: least and largest edge of a part, relative to the crop's.
    """
    parts = []
    for _ in range(times):
        inner = part_geometry(len(matrices), plan.crop_size, size, scale, generator)
        linear, shift = matrices[:, :, :3] @ inner[:, :, :3], matrices[:, :, :3] @ inner[:, :, 3:] + matrices[:, :, 3:]
        parts.append(resample_batch(windows, processes.own(torch.cat((linear, shift), dim=2)), size))
    return changed(torch.cat(parts), times, plan, generator, processes)


def part_geometry(count: int, crop_size, size, scale, generator: torch.Generator) -> torch.Tensor:
    """Random parts of a crop: (B, 3, 4), voxel index in the part -> voxel index in the crop, inside of which all of it lies."""
    low, high = scale
    edge = low + (high - low) * torch.rand(count, 1, generator=generator, dtype=torch.float64)
    flips = 1.0 - 2.0 * torch.randint(2, (count, 3), generator=generator)
    places = 2 * torch.rand(count, 3, generator=generator, dtype=torch.float64) - 1
    outer, inner = (torch.tensor(n, dtype=torch.float64) for n in (crop_size, size))
    step = edge * outer / inner * flips  # (B, 3) voxels of the crop
    middle = (outer - 1) / 2 + places * (1 - edge) * outer / 2
    return torch.cat((torch.diag_embed(step), (middle - step * (inner - 1) / 2)[:, :, None]), dim=2)


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
    """Voxels to read so that the most rotated and zoomed-out crop is inside."""
    signs = torch.cartesian_prod(*[torch.linspace(-1, 1, 5, dtype=torch.float64)] * 3)
    spacing = torch.tensor(spacing_mm, dtype=torch.float64)
    linear = rotations(torch.deg2rad(plan.rotation_degrees * signs)) * (spacing[None, :] / spacing[:, None])
    half = plan.zoom[1] * linear.abs() @ ((torch.tensor(plan.crop_size, dtype=torch.float64) - 1) / 2)  # (125, 3)
    return tuple(int(n) for n in (torch.ceil(half.max(dim=0).values * 2) + 1).tolist())
