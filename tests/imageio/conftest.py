"""What the tests of image files share: noise, an oblique affine, and NIfTI files with any header."""

import nibabel as nib
import numpy as np
import pytest


def _noise(shape=(7, 8, 9), seed=0) -> np.ndarray:
    return np.random.default_rng(seed).normal(100, 50, shape).astype(np.float32)


def _save_nifti(path, array, affine=None):
    """Write with nibabel."""
    nib.save(nib.Nifti1Image(array, np.eye(4) if affine is None else affine), path)
    return path


def _patch_header(path, changes):
    """Change fields of an uncompressed NIfTI-1 file's header in place, without nibabel's repairs."""
    raw = bytearray(path.read_bytes())
    header = nib.Nifti1Header(bytes(raw[:348]), check=False)
    for key, value in changes.items():
        header[key] = value
    raw[:348] = header.binaryblock
    path.write_bytes(raw)
    return path


@pytest.fixture
def noise():
    """noise(shape, seed) -> float32 array."""
    return _noise


@pytest.fixture
def save_nifti():
    """save_nifti(path, array, affine) -> path."""
    return _save_nifti


@pytest.fixture
def patch_header():
    """patch_header(path, {field: value}) -> path."""
    return _patch_header


@pytest.fixture
def oblique_affine() -> np.ndarray:
    """Rotated about all three axes, spacing (1.2, 0.8, 3.0) mm."""
    a, b, c = np.radians((20, -10, 35))
    about_x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    about_y = np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
    about_z = np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = about_z @ about_y @ about_x * (1.2, 0.8, 3.0)
    affine[:3, 3] = (-30, 12, 7)
    return affine
