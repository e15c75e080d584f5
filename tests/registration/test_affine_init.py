"""Initial alignment: far shifts and turns are found, the cheapest candidate is taken, and identity is exactly that."""

import numpy as np
import pytest
import torch

from nnssl_reg.evaluation.phantoms import rotation
from nnssl_reg.features.mind import mind_features
from nnssl_reg.geometry.affine import AffineTransform
from nnssl_reg.geometry.image import FeatureMap, Image
from nnssl_reg.geometry.sampling import resample
from nnssl_reg.registration.affine_init import (
    MODES,
    alignment_cost,
    best_translation,
    center_of_mass_mm,
    initial_alignment,
    least_trimmed_squares,
    mutual_information_affine,
    refine_affine,
)

IDENTITY = AffineTransform.identity()
CENTER = (30.0, -10.0, 20.0)


def turned_and_shifted(degrees, shift_mm) -> AffineTransform:
    """A rotation about the body's centre, then a shift."""
    matrix = np.eye(4)
    matrix[:3, :3] = rotation(np.radians(degrees))
    matrix[:3, 3] = np.asarray(CENTER) + shift_mm - matrix[:3, :3] @ CENTER
    return AffineTransform(matrix)


def features_of(image: Image) -> FeatureMap:
    """MIND on the world's axes, as a registration makes them."""
    upright = resample(image, image.grid.world_aligned(), fill=float(image.array.min()))
    grid = upright.grid.with_spacing(3.0)
    return mind_features(torch.from_numpy(resample(upright, grid).array[0]), grid, [(1, 2)], 1.0, (2, 2, 2))


@pytest.fixture
def pair(turned_grid, body_image):
    """pair(transform) -> fixed image, moving image, fixed features, moving features of one body moved by a transform."""

    def make(transform: AffineTransform):
        fixed = turned_grid((40, 34, 36), (3.0, 3.2, 3.1), center_mm=CENTER)
        moving = turned_grid((38, 44, 30), (3.3, 2.9, 3.8), (3, -4, 10), center_mm=transform.apply(CENTER) + (6, -5, 4))
        back = transform.inverse()
        images = body_image(fixed, center_mm=CENTER), body_image(moving, back.apply_dense, center_mm=CENTER)
        return (*images, *map(features_of, images))

    return make


def distance_mm(found: AffineTransform, true: AffineTransform) -> float:
    """Mean over points within the body."""
    points = np.asarray(CENTER) + np.random.default_rng(0).uniform(-25, 25, (200, 3))
    return float(np.linalg.norm(found.apply(points) - true.apply(points), axis=1).mean())


def test_identity_is_exactly_the_identity(pair):
    found = initial_alignment("identity", *pair(turned_and_shifted((0, 0, 0), (4, 0, 0))))
    assert found.transform.is_identity and found.name == "identity" and set(found.costs) == {"identity"}


def test_a_patient_turned_by_15_and_shifted_by_80_mm_is_found(pair):
    truth = turned_and_shifted((4, -5, 15), (60, 45, -28))
    found = initial_alignment("auto", *pair(truth))
    assert distance_mm(found.transform, truth) < 4 and found.name == "affine"
    assert set(found.costs) == {"identity", "center", "moments", "translation", "affine"}
    assert found.costs["affine"] == min(found.costs.values()) < 0.8 * found.costs["identity"]


def test_an_image_and_itself_stay_where_they_are(pair):
    fixed, _, features, _ = pair(turned_and_shifted((0, 0, 0), (4, 0, 0)))
    found = initial_alignment("auto", fixed, fixed, features, features)
    assert found.transform.is_identity and found.costs["identity"] < 1e-6


@pytest.mark.parametrize("shift", [(100.0, 0.0, 0.0), (-60.0, 80.0, 30.0)])
def test_a_shift_by_100_mm_is_found_in_all_overlaps(pair, shift):
    truth = turned_and_shifted((0, 0, 0), shift)
    fixed, moving = pair(truth)[2:]
    found = best_translation(fixed, moving)
    assert np.array_equal(found.matrix[:3, :3], np.eye(3))
    assert distance_mm(found, truth) < max(fixed.grid.spacing_mm)  # the lattice it searches on


def test_center_and_moments_bring_those_together(pair):
    fixed, moving, *features = pair(turned_and_shifted((0, 0, 0), (40, -70, 10)))
    center = initial_alignment("center", fixed, moving, *features).transform
    assert np.allclose(center.apply(fixed.grid.center_mm), moving.grid.center_mm)
    moments = initial_alignment("moments", fixed, moving, *features).transform
    assert np.allclose(moments.apply(CENTER), np.add(CENTER, (40, -70, 10)), atol=4)


def test_the_center_of_mass_is_that_of_what_is_bright(turned_grid):
    grid = turned_grid((20, 21, 22), (1, 2, 3), (10, 20, 30), (100, 0, 0))
    array = np.full((1, *grid.shape), -1000, np.float32)
    array[0, 3:12, 4:12, 8:14] = 50
    assert np.allclose(center_of_mass_mm(Image(array, grid)), grid.index_to_world((7, 7.5, 10.5)), atol=1e-3)
    assert np.allclose(center_of_mass_mm(Image(0 * array, grid)), grid.center_mm)


def test_the_cost_is_0_for_equal_1_for_unrelated_and_grows_with_the_distance(pair, turned_grid):
    features = pair(turned_and_shifted((0, 0, 0), (4, 0, 0)))[2]
    costs = [alignment_cost(features, features, AffineTransform.translation((x, 0, 0))) for x in (0, 3, 6, 12)]
    assert costs[0] < 1e-6 and costs == sorted(costs)
    generator = torch.Generator().manual_seed(0)
    noise = [FeatureMap(torch.randn(8, 15, 15, 15, generator=generator), turned_grid((15,) * 3, 2.0)) for _ in range(2)]
    assert abs(alignment_cost(*noise, IDENTITY) - 1) < 0.05
    assert alignment_cost(*noise, AffineTransform.translation((900, 0, 0))) >= 1


def test_block_matches_lead_to_within_half_a_block_of_the_true_affine(textured_features, turned_grid):
    matrix = np.array([[1.06, 0.03, 0, 0], [-0.05, 0.95, 0.02, 0], [0, 0.04, 1.03, 0], [0, 0, 0, 1.0]])
    matrix[:3, 3] = np.asarray(CENTER) + (15, -12, 8) - matrix[:3, :3] @ CENTER
    truth = AffineTransform(matrix)
    fixed = textured_features(turned_grid((24, 20, 22), 4.0, (0, 5, 10), CENTER), shortest_mm=24)
    moving = textured_features(turned_grid((26, 24, 28), 4.2, (20, 0, 5), CENTER), truth.inverse().apply_dense, shortest_mm=24)
    found = refine_affine(fixed, moving, IDENTITY, 8.0, 3, iterations=4)
    assert distance_mm(found, truth) < 4.0 < 0.25 * distance_mm(IDENTITY, truth)


def test_mutual_information_leads_there_with_other_intensities(pair):
    truth = turned_and_shifted((0, 3, -5), (8, -6, 5))
    fixed, moving = pair(truth)[:2]
    inverted = Image(-3 * moving.array + 500, moving.grid)
    assert distance_mm(mutual_information_affine(fixed, inverted, IDENTITY), truth) < 0.5 * distance_mm(IDENTITY, truth)


def test_mutual_information_without_overlap_gives_back_the_start(pair):
    fixed, moving = pair(turned_and_shifted((0, 0, 0), (4, 0, 0)))[:2]
    away = AffineTransform.translation((5000, 0, 0))
    assert mutual_information_affine(fixed, moving, away) is away


def test_an_affine_fit_ignores_a_third_of_wild_matches():
    rng = np.random.default_rng(0)
    truth = turned_and_shifted((5, 10, -7), (3, 50, -20))
    points = rng.uniform(-80, 80, (120, 3))
    moved = truth.apply(points)
    moved[:36] += rng.normal(0, 30, (36, 3))
    assert np.allclose(least_trimmed_squares(points, moved).matrix, truth.matrix, atol=1e-6)


def test_an_unknown_mode_is_answered_with_the_known_ones(pair):
    with pytest.raises(ValueError, match=", ".join(MODES)):
        initial_alignment("best", *pair(turned_and_shifted((0, 0, 0), (4, 0, 0))))
