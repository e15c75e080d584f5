"""Phantoms: the deformation is known exactly, labels and intensities follow it, and a seed repeats a patient."""

import numpy as np
import pytest

from nnssl_reg.evaluation import phantoms
from nnssl_reg.evaluation.metrics import tre_mm
from nnssl_reg.evaluation.phantom_anatomy import LABELS
from nnssl_reg.evaluation.summary import judge

SHAPE, SPACING_MM = (52, 40, 40), (7.0, 7.0, 8.0)


def phantom(seed: int, modality: str = "CT", strength: float = 1.0) -> phantoms.Phantom:
    rng = np.random.default_rng(seed)
    return phantoms.make_phantom(rng, phantoms.random_grid(rng, SHAPE, SPACING_MM), modality, strength)


@pytest.mark.parametrize("seed", range(5))
def test_the_inverse_of_a_deformation_undoes_it(seed):
    deformation = phantoms.random_deformation(np.random.default_rng(seed), strength=1.4)
    points = np.random.default_rng(0).uniform(-200, 200, (500, 3))
    np.testing.assert_allclose(deformation.inverse(deformation.apply(points)), points, atol=1e-6)


def test_a_seed_gives_the_same_patient_and_another_seed_another():
    a, b, c = phantom(1), phantom(1), phantom(2)
    np.testing.assert_array_equal(a.image.array, b.image.array)
    assert a.image.grid == b.image.grid and a.image.grid != c.image.grid


def test_the_known_field_brings_the_organs_of_two_patients_together_and_folds_nowhere():
    fixed, moving = phantom(3, "CT"), phantom(4, "MR")
    scores = judge(phantoms.known_field(fixed, moving), fixed.labels, moving.labels)
    assert set(scores.label_dice) == {str(label) for label in LABELS.values()}
    assert scores.dice > 0.85 > 0.7 > scores.dice_initial > 0.1  # voxels of 7 x 7 x 8 mm cost the small organs some overlap
    assert scores.folding_percent == 0 and 0.05 < scores.sd_log_jacobian < 0.4


def test_landmarks_correspond_through_the_known_field():
    fixed, moving = phantom(3), phantom(4)
    error = tre_mm(fixed.landmarks_mm, moving.landmarks_mm, phantoms.known_field(fixed, moving))
    apart = np.linalg.norm(fixed.landmarks_mm - moving.landmarks_mm, axis=1)
    assert error.max() < 0.5 and apart.mean() > 8


def test_without_deformation_all_patients_are_the_atlas():
    still = phantoms.random_deformation(np.random.default_rng(0), strength=0)
    points = np.random.default_rng(0).uniform(-200, 200, (50, 3))
    np.testing.assert_allclose(still.apply(points), points, atol=1e-9)


def test_ct_has_hounsfield_units_and_mr_positive_magnitudes_of_any_contrast():
    ct, mr = phantom(5, "CT"), phantom(5, "MR")
    organ = ct.labels.array == LABELS["liver"]
    assert 40 < ct.image.array[organ].mean() < 140
    assert -1024 <= ct.image.array.min() < -900 and ct.image.array.max() > 300
    np.testing.assert_array_equal(ct.labels.array, mr.labels.array)
    assert mr.image.array.min() >= 0
    others = [phantom(seed, "MR") for seed in range(6, 12)]
    ratios = [p.image.array[p.labels.array == 1].mean() / p.image.array[p.labels.array == 2].mean() for p in others]
    assert max(ratios) / min(ratios) > 1.2


def test_organs_have_a_size_of_life():
    p = phantom(6)
    millilitres = np.bincount(p.labels.array.ravel(), minlength=8) * np.prod(p.labels.grid.spacing_mm) / 1000
    assert 700 < millilitres[LABELS["liver"]] < 2500
    assert all(50 < millilitres[LABELS[name]] < 350 for name in ("spleen", "kidney_left", "kidney_right"))


def test_grids_come_in_all_orders_and_directions_with_the_spacing_along_the_body():
    found = set()
    for seed in range(20):
        grid = phantoms.random_grid(np.random.default_rng(seed), SHAPE, SPACING_MM)
        found.add(grid.canonical_axes())
        canonical = grid.canonical()
        assert canonical.shape == SHAPE
        np.testing.assert_allclose(canonical.spacing_mm, SPACING_MM)
        assert np.abs(canonical.center_mm).max() < 8
    assert len(found) > 10
