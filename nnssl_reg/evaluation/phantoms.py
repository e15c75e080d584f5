"""Phantom abdomens: CT-like and MR-like volumes with labels, of one anatomy under deformations that are known exactly."""

from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage

from nnssl_reg.evaluation.phantom_anatomy import LANDMARKS_MM, TISSUES, draw_loops, paint
from nnssl_reg.geometry.displacement import DisplacementField
from nnssl_reg.geometry.grid import Grid
from nnssl_reg.geometry.image import Image

WAVES = 8
SHORTEST_WAVE_MM, LONGEST_WAVE_MM = 140.0, 320.0
STEEPEST = 0.6  # bound on the waves' slope; below 1 the map cannot fold and its inverse iteration converges


@dataclass(frozen=True, eq=False)
class KnownDeformation:
    """A smooth invertible map of a patient's world to the atlas: p -> linear p + offset + sum of sine waves, RAS mm.

    linear (3, 3); offset_mm (3,); amplitudes_mm, frequencies (WAVES, 3), cycles per mm; phases (WAVES,).
    """

    linear: np.ndarray
    offset_mm: np.ndarray
    amplitudes_mm: np.ndarray
    frequencies: np.ndarray
    phases: np.ndarray

    def apply(self, points_mm) -> np.ndarray:
        """Patient points (..., 3) -> the atlas points they correspond to."""
        points = np.asarray(points_mm, dtype=np.float64)
        return points @ self.linear.T + self.offset_mm + self._waves(points)

    def inverse(self, points_mm, iterations: int = 60) -> np.ndarray:
        """Atlas points (..., 3) -> the patient points they correspond to, to about 1e-9 mm."""
        points = np.asarray(points_mm, dtype=np.float64)
        back = np.linalg.inv(self.linear).T
        guess = (points - self.offset_mm) @ back
        for _ in range(iterations):
            guess = (points - self.offset_mm - self._waves(guess)) @ back
        return guess

    def _waves(self, points: np.ndarray) -> np.ndarray:
        return np.sin(2 * np.pi * (points @ self.frequencies.T + self.phases)) @ self.amplitudes_mm


@dataclass(frozen=True, eq=False)
class Phantom:
    """One patient: image (1, X, Y, Z) float32, labels (1, X, Y, Z) uint8 on the same grid, and the map to the atlas."""

    image: Image
    labels: Image
    deformation: KnownDeformation

    @property
    def landmarks_mm(self) -> np.ndarray:
        """Anatomical points that correspond between phantoms row by row, (N, 3) RAS mm."""
        return self.deformation.inverse(LANDMARKS_MM)


def random_deformation(rng: np.random.Generator, strength: float = 1.0) -> KnownDeformation:
    """Patient size (+- 8 %), tilt (+- 5 degrees), place (+- 12 mm) and waves of some 10 mm, all times `strength`."""
    angles = np.radians(5 * strength) * rng.uniform(-1, 1, 3)
    linear = rotation(angles) @ np.diag(1 + 0.08 * strength * rng.uniform(-1, 1, 3))
    directions = rng.standard_normal((WAVES, 3))
    lengths = rng.uniform(SHORTEST_WAVE_MM, LONGEST_WAVE_MM, (WAVES, 1))
    frequencies = directions / np.linalg.norm(directions, axis=1, keepdims=True) / lengths
    amplitudes = rng.standard_normal((WAVES, 3))
    slope = 2 * np.pi * (np.linalg.norm(amplitudes, axis=1) / lengths[:, 0]).sum()
    amplitudes *= STEEPEST * min(strength, 1.4) / slope
    return KnownDeformation(linear, 12 * strength * rng.uniform(-1, 1, 3), amplitudes, frequencies, rng.uniform(0, 1, WAVES))


def random_grid(rng: np.random.Generator, shape, spacing_mm) -> Grid:
    """A field of view around the body whose axes run in a random order and direction, tilted by up to 4 degrees.

    shape, spacing_mm: along right, anterior, superior; they travel with their axis.
    """
    order, signs = rng.permutation(3), rng.choice([-1.0, 1.0], 3)
    tilt = rotation(np.radians(4) * rng.uniform(-1, 1, 3))
    axes = tilt @ (np.diag(signs * np.asarray(spacing_mm)))[:, order]
    shape = tuple(int(shape[axis]) for axis in order)
    affine = np.eye(4)
    affine[:3, :3] = axes
    affine[:3, 3] = rng.uniform(-8, 8, 3) - axes @ ((np.array(shape) - 1) / 2)
    return Grid(shape, affine)


def make_phantom(rng: np.random.Generator, grid: Grid, modality: str, strength: float = 1.0) -> Phantom:
    """A random patient on a grid. modality: "CT" (HU, contrast phase varies) or "MR" (random contrast, bias field)."""
    deformation = random_deformation(rng, strength)
    points = deformation.apply(np.moveaxis(grid.points_mm().double().numpy(), 0, -1))
    tissue, labels = paint(np.moveaxis(points, -1, 0).astype(np.float32), draw_loops(rng))
    image = {"CT": _ct_intensities, "MR": _mr_intensities}[modality](rng, tissue, grid.spacing_mm)
    return Phantom(Image(image[None].astype(np.float32), grid), Image(labels[None], grid), deformation)


def known_field(fixed: Phantom, moving: Phantom) -> DisplacementField:
    """The true field from the fixed phantom's grid to the moving phantom: fixed point p <-> moving point p + u(p)."""
    points = np.moveaxis(fixed.image.grid.points_mm().double().numpy(), 0, -1)
    vectors = moving.deformation.inverse(fixed.deformation.apply(points)) - points
    return DisplacementField(torch.from_numpy(np.moveaxis(vectors, -1, 0).astype(np.float32)), fixed.image.grid)


def rotation(angles) -> np.ndarray:
    """Rotation about x, then y, then z by three angles in radians, (3, 3)."""
    out = np.eye(3)
    for axis, angle in enumerate(angles):
        i, j = [a for a in range(3) if a != axis]
        turn = np.eye(3)
        turn[[i, i, j, j], [i, j, i, j]] = np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)
        out = turn @ out
    return out


def _ct_intensities(rng: np.random.Generator, tissue: np.ndarray, spacing_mm) -> np.ndarray:
    """HU: the tissue's own, more or less contrast agent, texture and noise."""
    enhancement = rng.uniform(0.4, 1.2)
    table = np.array([t.hu + enhancement * t.contrast + rng.normal(0, 6) for t in TISSUES])
    texture = np.array([t.texture for t in TISSUES])[tissue] * _smooth_noise(rng, tissue.shape, spacing_mm, 9.0)
    image = _blurred(table[tissue], spacing_mm) + 25 * texture
    image += rng.uniform(8, 18) * rng.standard_normal(tissue.shape)
    return np.clip(np.round(image), -1024, 3000)


def _mr_intensities(rng: np.random.Generator, tissue: np.ndarray, spacing_mm) -> np.ndarray:
    """Magnitudes: tissues at random around fat-suppressed T1, texture, bias field, Rician noise, any scale."""
    table = np.array([t.mr * np.exp(0.25 * rng.standard_normal()) for t in TISSUES])
    texture = np.array([t.texture for t in TISSUES])[tissue] * _smooth_noise(rng, tissue.shape, spacing_mm, 9.0)
    signal = _blurred(table[tissue], spacing_mm) * (1 + 0.15 * texture)
    signal *= np.exp(rng.uniform(0.15, 0.35) * _smooth_noise(rng, tissue.shape, spacing_mm, 110.0))
    noise = rng.uniform(0.01, 0.03) * rng.standard_normal((2, *tissue.shape))
    return rng.uniform(300, 1500) * np.hypot(signal + noise[0], noise[1])


def _smooth_noise(rng: np.random.Generator, shape, spacing_mm, length_mm: float) -> np.ndarray:
    """Gaussian noise of mean 0 and standard deviation 1 that changes over about length_mm."""
    noise = ndimage.gaussian_filter(rng.standard_normal(shape), [length_mm / s for s in spacing_mm], mode="reflect")
    return (noise - noise.mean()) / noise.std()


def _blurred(image: np.ndarray, spacing_mm) -> np.ndarray:
    """Softened edges, in place of partial volume: as if each voxel had seen its surroundings over some 4 mm."""
    return ndimage.gaussian_filter(image, [min(0.5, 2.0 / s) for s in spacing_mm])
