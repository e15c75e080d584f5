"""A label-free probe: deform volumes by known fields, change their intensities, and ask how well tokens find their places.

What is compared is what the registration compares: features of both images after a common projection, by the sum of their
squared differences.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from nnssl_reg.geometry.displacement import DisplacementField
from nnssl_reg.geometry.grid import Grid
from nnssl_reg.geometry.image import FeatureMap, Image
from nnssl_reg.geometry.sampling import inside, sample_points, to_voxels
from nnssl_reg.pretraining.intensity import apply_change, draw_change

STRENGTH = 1.0  # of the intensity changes, whatever the plan trains with, so that runs can be compared
WAVES = 3  # of a field, one to two extents of the crop long
STEEPEST = 0.6  # bound of the field's slope: below 1 nothing folds
SHIFT_SHARE = 0.2  # largest translation along an axis, of the crop, and ...
SHIFT_TOKENS = 2.0  # ... in tokens
PLAIN = 0.02  # a token whose voxels deviate by less (of -1..1) shows nothing that could be found
TOKENS_ASKED = 1024  # of a pair
ROWS_AT_ONCE = 128
SECONDS_BETWEEN = 180.0
TIME_SHARE = 0.03  # of a run that probing may take


@dataclass(frozen=True, eq=False)
class ProbePair:
    """fixed: moving after a known deformation, in other intensities.

    asked: (n,) flat indices of the fixed tokens whose place is asked for; truth: (3, n), where these are in moving tokens;
    shift_mm: (n,), how far they have moved.
    """

    fixed: Image
    moving: Image
    asked: torch.Tensor
    truth: torch.Tensor
    shift_mm: torch.Tensor


@dataclass(frozen=True)
class ProbeResult:
    """error_mm: median distance of a token's match from its true place; recall: share of matches within one token of it.

    unmoved_mm: what the error would be without matching, at every token's own place. dice: see Probe.
    """

    error_mm: float
    recall: float
    unmoved_mm: float
    dice: float | None = None

    def row(self) -> dict[str, float]:
        """As columns of the log."""
        dice = {} if self.dice is None else {"probe_dice": self.dice}
        return {"probe_error_mm": self.error_mm, "probe_recall": self.recall, **dice}

    def __str__(self) -> str:
        dice = "" if self.dice is None else f"; zero-shot Dice {self.dice:.3f}"
        return (f"tokens find their place with a median error of {self.error_mm:.1f} mm ({self.unmoved_mm:.1f} mm without "
                f"matching); {self.recall:.1%} within one token{dice}")  # fmt: skip


Encode = Callable[[Image, nn.Module], FeatureMap]
Project = Callable[[FeatureMap, FeatureMap], tuple[FeatureMap, FeatureMap]]


@dataclass(frozen=True, eq=False)
class Probe:
    """The same pairs all along. encode: an image's tokens; project: both images' tokens, as the registration does it.

    dice: what an encoder's features reach on labelled pairs, if there are any. It is told, and chooses nothing.
    """

    pairs: Sequence[ProbePair]
    encode: Encode
    project: Project
    dice: Callable[[nn.Module], float] | None = None

    def __call__(self, encoder: nn.Module) -> ProbeResult:
        """Over the tokens of all pairs."""
        found = []
        for pair in self.pairs:
            fixed, moving = self.project(self.encode(pair.fixed, encoder), self.encode(pair.moving, encoder))
            found.append((*match_errors(pair, fixed, moving), pair.shift_mm))
        mm, tokens, unmoved = (torch.cat(values) for values in zip(*found))
        dice = None if self.dice is None else self.dice(encoder)
        return ProbeResult(float(mm.median()), float((tokens <= 1).float().mean()), float(unmoved.median()), dice)


def make_pair(source: Image, deformed: Image, start_vox, crop_size, patch_size, seed: Sequence[int]) -> ProbePair:
    """A pair of crops of whole tokens; the moving one is `source` from voxel start_vox on. seed: decides everything else.

    deformed: what the fixed one is made of: `source` itself, or another contrast of the same patient, the same places in it.
    Asked are tokens that show something and whose true place is in the moving crop, evenly spread where they are many.
    """
    box = [[s, s + n] for s, n in zip(start_vox, crop_size)]
    grid = source.grid.cropped(box)
    moving = DisplacementField(torch.zeros(3, *grid.shape), grid).warp(source)
    field = smooth_field(grid, patch_size, np.random.default_rng(list(seed)))
    fixed = field.warp(deformed)
    values = torch.from_numpy(fixed.array)
    tokens = grid.coarsened(patch_size)
    centres = tokens.points_mm()  # (3, X', Y', Z')
    shift = sample_points(field.vectors_mm, grid, centres)
    truth = to_voxels(centres + shift, tokens)
    shows = deviation(values[0], patch_size) > PLAIN
    asked = torch.nonzero((shows & inside(truth, tokens.shape)).flatten()).flatten()
    asked = asked[:: max(1, -(-len(asked) // TOKENS_ASKED))]
    generator = torch.Generator().manual_seed(int(np.random.SeedSequence(list(seed)).generate_state(1)[0]))
    changed = apply_change(values[None], draw_change(1, STRENGTH, generator))[0]
    return ProbePair(Image(changed.numpy(), grid), moving, asked, truth.flatten(1)[:, asked],
                     shift.flatten(1)[:, asked].norm(dim=0))  # fmt: skip


def smooth_field(grid: Grid, patch_size, rng: np.random.Generator) -> DisplacementField:
    """A translation by up to two tokens and a few long waves, so that it folds nowhere."""
    token_mm = np.array(grid.spacing_mm) * patch_size
    limit = np.minimum(SHIFT_TOKENS * token_mm, SHIFT_SHARE * np.array(grid.extent_mm))
    shift = np.linalg.norm(limit) / math.sqrt(3) * rng.uniform(-1, 1, 3)
    points = grid.points_mm().double() - torch.as_tensor(grid.center_mm).view(3, 1, 1, 1)
    vectors = torch.as_tensor(shift).view(3, 1, 1, 1).expand(3, *grid.shape).clone()
    for _ in range(WAVES):
        along, towards = (v / np.linalg.norm(v) for v in rng.standard_normal((2, 3)))
        length = np.mean(grid.extent_mm) * rng.uniform(1, 2)
        phase = 2 * math.pi * (torch.einsum("i,ixyz->xyz", torch.as_tensor(along / length), points) + rng.random())
        height = STEEPEST / WAVES * length / (2 * math.pi)
        vectors += height * torch.as_tensor(towards).view(3, 1, 1, 1) * torch.sin(phase)
    return DisplacementField(vectors.float(), grid)


def deviation(values: torch.Tensor, patch_size) -> torch.Tensor:
    """Standard deviation of the voxels (X, Y, Z) of each whole token, (X', Y', Z')."""
    stride = tuple(patch_size)
    mean, square = (F.avg_pool3d(v[None, None].double(), stride)[0, 0] for v in (values, values**2))
    return (square - mean**2).clamp(min=0).sqrt()


def match_errors(pair: ProbePair, fixed: FeatureMap, moving: FeatureMap) -> tuple[torch.Tensor, torch.Tensor]:
    """The distance of each asked token's match from its true place, in mm and in tokens, (n,) each."""
    queries = fixed.values.flatten(1).T[pair.asked.to(fixed.values.device)]
    best = nearest(queries, moving.values.flatten(1).T).cpu()
    off = torch.stack(torch.unravel_index(best, moving.grid.shape)) - pair.truth  # (3, n) tokens
    linear = torch.as_tensor(moving.grid.affine[:3, :3].copy(), dtype=off.dtype)
    return (linear @ off).norm(dim=0), off.norm(dim=0)


def nearest(queries: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """The row of keys (N, F) with the least sum of squared differences from each row of queries (n, F); (n,)."""
    found = [torch.cdist(part, keys, compute_mode="donot_use_mm_for_euclid_dist").argmin(dim=1)
             for part in queries.float().split(ROWS_AT_ONCE)]  # fmt: skip
    return torch.cat(found) if found else torch.zeros(0, dtype=torch.long)


class ProbeClock:
    """When to probe: every few minutes, and more seldom where that would take more than a small share of the time."""

    def __init__(self, now: Callable[[], float] = time.monotonic):
        self.now, self.next = now, now() + SECONDS_BETWEEN

    def due(self) -> bool:
        """Whether it is time."""
        return self.now() >= self.next

    def took(self, seconds: float) -> None:
        """A probe that took so long has just ended."""
        self.next = self.now() + max(SECONDS_BETWEEN, seconds / TIME_SHARE)
