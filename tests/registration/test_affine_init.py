"""Initial alignment: far, cut and smaller patients are found, the cheapest candidate is taken, and identity is exactly that."""

import numpy as np
import pytest
import torch

from nnssl_reg.evaluation.phantoms import make_phantom, rotation
from nnssl_reg.features.mind import mind_features
from nnssl_reg.geometry.affine import AffineTransform
from nnssl_reg.geometry.grid import Grid
from nnssl_reg.geometry.image import FeatureMap, Image
from nnssl_reg.geometry.sampling import resample
from nnssl_reg.registration.affine_init import MODES, center_of_mass_mm, initial_alignment

CENTER = (30.0, -10.0, 20.0)


def turned_and_shifted(degrees, shift_mm) -> AffineTransform:
    """A rotation about the body's centre, then a shift."""
    matrix = np.eye(4)
    matrix[:3, :3] = rotation(np.radians(degrees))
    matrix[:3, 3] = np.asarray(CENTER) + shift_mm - matrix[:3, :3] @ CENTER
    return AffineTransform(matrix)


def features_of(image: Image, spacing_mm: float = 3.0) -> FeatureMap:
    """MIND on the world's axes, as a registration makes them for the initial alignment."""
    upright = resample(image, image.grid.world_aligned(), fill=float(image.array.min()))
    grid = upright.grid.with_spacing(spacing_mm)
    return mind_features(torch.from_numpy(resample(upright, grid).array[0]), grid, [(1, 2)], 0.0, (2, 2, 2))


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


@pytest.fixture(scope="module")
def patient():
    """A CT-like phantom abdomen of 352 x 256 x 256 mm."""
    affine = np.diag([4.0, 4.0, 4.0, 1.0])
    affine[:3, 3] = (-174.0, -126.0, -126.0)
    return make_phantom(np.random.default_rng(3), Grid((88, 64, 64), affine), "CT")


def seen_elsewhere(image: Image, transform: AffineTransform, box) -> Image:
    """The part `box` (in voxels of 3.7 mm) of an image, of which the header says that it lies where `transform` takes it."""
    part = resample(image, image.grid.with_spacing(3.7).cropped(box))
    return Image(part.array, Grid(part.grid.shape, transform.matrix @ part.grid.affine))


def distance_mm(found: AffineTransform, true: AffineTransform, points=None) -> float:
    """Mean over points (of the body, if none are given)."""
    points = np.asarray(CENTER) + np.random.default_rng(0).uniform(-25, 25, (200, 3)) if points is None else points
    return float(np.linalg.norm(found.apply(points) - true.apply(points), axis=1).mean())


def test_identity_is_exactly_the_identity(pair):
    found = initial_alignment("identity", *pair(turned_and_shifted((0, 0, 0), (4, 0, 0))))
    assert found.transform.is_identity and found.name == "identity" and set(found.costs) == {"identity"}


def test_a_patient_turned_by_15_and_shifted_by_80_mm_is_found(pair):
    truth = turned_and_shifted((4, -5, 15), (60, 45, -28))
    found = initial_alignment("auto", *pair(truth))
    assert distance_mm(found.transform, truth) < 6 and found.name == "affine"  # a cell
    assert set(found.costs) == {"identity", "center", "moments", "translation", "affine"}
    assert found.costs["affine"] == min(found.costs.values()) < 0.8 * found.costs["identity"]


def test_an_image_and_itself_stay_where_they_are(pair):
    fixed, _, features, _ = pair(turned_and_shifted((0, 0, 0), (4, 0, 0)))
    found = initial_alignment("auto", fixed, fixed, features, features)
    assert found.transform.is_identity and found.costs["identity"] < 1e-6
    affine = initial_alignment("affine", fixed, fixed, features, features).transform
    assert distance_mm(affine, AffineTransform.identity(), fixed.grid.corners_mm()) < 0.1 * min(fixed.grid.spacing_mm)


SMALLER_AND_AWAY = AffineTransform(np.array([[0.85, 0, 0, 60], [0, 0.85, 0, -50], [0, 0, 0.85, 60], [0, 0, 0, 1.0]]))
HALVES = ([[0, 95], [0, 69], [0, 35]], [[0, 95], [0, 69], [34, 69]], [[0, 48], [0, 69], [0, 69]])


def landmarks_within(patient, seen: Image) -> np.ndarray:
    """Those landmarks of the patient that the image shows of which the header says SMALLER_AND_AWAY."""
    index = seen.grid.world_to_index(SMALLER_AND_AWAY.apply(patient.landmarks_mm))
    return patient.landmarks_mm[((index >= 0) & (index <= np.array(seen.grid.shape) - 1)).all(axis=1)]


@pytest.mark.parametrize("half", HALVES)
def test_half_a_patient_of_085_of_the_size_is_found_100_mm_away(patient, half):
    moving = seen_elsewhere(patient.image, SMALLER_AND_AWAY, half)
    maps = [features_of(image, 4.0) for image in (patient.image, moving)]
    found = initial_alignment("auto", patient.image, moving, *maps)
    points = landmarks_within(patient, moving)
    assert len(points) > 10 and distance_mm(found.transform, SMALLER_AND_AWAY, points) < 6
    again = initial_alignment("auto", patient.image, moving, *maps)
    assert np.array_equal(found.transform.matrix, again.transform.matrix) and found.costs == again.costs


def test_the_whole_is_found_from_half_of_it(patient):
    half = seen_elsewhere(patient.image, SMALLER_AND_AWAY, HALVES[0])
    found = initial_alignment("auto", half, patient.image, features_of(half, 4.0), features_of(patient.image, 4.0))
    points = SMALLER_AND_AWAY.apply(landmarks_within(patient, half))
    assert distance_mm(found.transform, SMALLER_AND_AWAY.inverse(), points) < 6


def test_images_of_one_value_keep_their_headers(turned_grid):
    grid = turned_grid((20, 20, 20), 4.0)
    image = Image(np.full((1, 20, 20, 20), 7, np.float32), grid)
    features = features_of(image, 4.0)
    found = initial_alignment("auto", image, image, features, features)
    assert found.transform.is_identity


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


def test_an_unknown_mode_is_answered_with_the_known_ones(pair):
    with pytest.raises(ValueError, match=", ".join(MODES)):
        initial_alignment("best", *pair(turned_and_shifted((0, 0, 0), (4, 0, 0))))
