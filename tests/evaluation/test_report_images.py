"""Pictures of the report: the right side is where it should be, coded values come back, and the size is bounded."""

import base64
import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image as Pixels

from nnssl_reg.evaluation.report import MAX_PICTURE_BYTES
from nnssl_reg.evaluation.report_images import COLUMNS, MAX_PAIR_BYTES, PairImages, body_box, pair_pictures, size_of
from nnssl_reg.geometry.displacement import DisplacementField
from nnssl_reg.geometry.grid import Grid
from nnssl_reg.geometry.image import Image


def still(grid: Grid) -> DisplacementField:
    return DisplacementField(torch.zeros(3, *grid.shape), grid)


def tiles(plane, name: str) -> np.ndarray:
    """The slices of a sheet, (N, rows, columns, 3)."""
    sheet = plane.sheets[name]
    kind, data = sheet.data.split(";base64,")
    assert kind in ("data:image/webp", "data:image/png", "data:image/jpeg")
    pixels = np.asarray(Pixels.open(io.BytesIO(base64.b64decode(data))).convert("RGB"))
    place = [(i // COLUMNS * sheet.height, i % COLUMNS * sheet.width) for i in range(len(plane.positions_mm))]
    return np.stack([pixels[top : top + sheet.height, left : left + sheet.width] for top, left in place])


@pytest.fixture(scope="module")
def pictures(report_scene):
    return pair_pictures(report_scene.images())


def test_the_patients_right_and_front_are_on_the_left_and_the_head_on_top(pictures):
    for plane in pictures.planes:
        middle = tiles(plane, "fixed")[..., 0].max(axis=0) > 200
        rows, columns = np.nonzero(middle)
        assert rows.mean() < middle.shape[0] / 2 and columns.mean() < middle.shape[1] / 2, plane.name


def test_pictures_are_the_same_however_the_image_is_stored(report_scene):
    images = report_scene.images()
    turned = Grid(
        (24, 40, 32), report_scene.grid.affine @ np.array([[0, -1, 0, 39], [0, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 1.0]])
    )

    def stored(image):
        return Image(np.ascontiguousarray(image.array[:, ::-1].transpose(0, 3, 1, 2)), turned)

    other = replace(images, fixed=stored(images.fixed), warped=stored(images.warped), fixed_label=stored(images.fixed_label))
    one, two = pair_pictures(images), pair_pictures(other)
    for a, b in zip(one.planes, two.planes):
        assert a.positions_mm == b.positions_mm
        for name in ("fixed", "warped", "fixed_label"):
            assert np.array_equal(tiles(a, name), tiles(b, name))


def test_labels_come_back_exactly(pictures, report_scene):
    assert pictures.label_ids == (7, 300)
    axial = pictures.planes[0]
    found = tiles(axial, "fixed_label")[..., 0]
    positions = np.array(axial.positions_mm) / report_scene.grid.spacing_mm[2]
    assert set(np.unique(found)) == {0, 1, 2}
    for slice_, z in zip(found, positions):
        assert (slice_ == 1).any() == (12 <= z < 22) and (slice_ == 2).any() == (6 <= z < 12)
    inside = found[np.argmax((positions >= 12) & (positions < 22))] == 1
    pixel_mm2 = axial.width_mm * axial.height_mm / inside.size
    assert inside.sum() * pixel_mm2 == pytest.approx(14 * 2.0 * 14 * 2.5, rel=0.15)


def test_displacement_and_jacobian_are_coded_as_the_page_reads_them(pictures, report_scene):
    right, anterior, superior = report_scene.shift_mm
    seen = {"axial": (-right, anterior), "coronal": (-right, superior), "sagittal": (-anterior, superior)}
    for plane in pictures.planes:
        coded = tiles(plane, "field").astype(float)
        moved = (coded[..., :2] - 128) / 127 * pictures.displacement_mm
        np.testing.assert_allclose(moved, np.broadcast_to(seen[plane.name], moved.shape), atol=pictures.displacement_mm / 250)
        assert (coded[..., 2] == 128).all()  # J = 1


def test_folds_and_changes_of_volume_are_told_apart(report_scene):
    images = report_scene.images()
    vectors = images.field.vectors_mm.clone()
    vectors[0] = -1.5 * images.field.grid.points_mm()[0]  # x -> -0.5 x
    folded = pair_pictures(replace(images, field=DisplacementField(vectors, report_scene.grid)))
    assert all((tiles(plane, "field")[..., 2] == 0).all() for plane in folded.planes)
    vectors[0] = images.field.grid.points_mm()[0]  # x -> 2 x, J = 2
    doubled = pair_pictures(replace(images, field=DisplacementField(vectors, report_scene.grid)))
    coded = tiles(doubled.planes[0], "field")[..., 2].astype(float)
    np.testing.assert_allclose((coded - 128) / 127 * doubled.jacobian_log2, 1, atol=0.02)


def test_what_is_not_there_is_left_out(report_scene):
    images = report_scene.images()
    bare = replace(images, fixed_label=None, before_label=None, warped_label=None, features=(), apart_mm=None)
    assert set(pair_pictures(bare).planes[0].sheets) == {"fixed", "before", "warped", "field"}


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 3, 1), (40, 3, 2)])
def test_tiny_images_have_pictures(shape):
    grid = Grid(shape, np.diag([2.0, 2.0, 5.0, 1.0]))
    image = Image(np.random.default_rng(0).uniform(0, 1, (1, *shape)).astype(np.float32), grid)
    pictures = pair_pictures(PairImages(image, image, image, still(grid)))
    for plane, count in zip(pictures.planes, (shape[2], shape[1], shape[0])):
        assert min(count, 7) <= len(plane.positions_mm) <= 12
        assert len(set(np.diff(plane.positions_mm).round(1))) <= 1


@pytest.mark.parametrize("bound", [700_000, 120_000])
def test_even_noise_stays_within_the_bound(bound):
    grid = Grid((110, 100, 30), np.diag([2.0, 2.0, 8.0, 1.0]))
    image = Image(np.random.default_rng(0).integers(0, 255, (1, *grid.shape)).astype(np.float32), grid)
    pictures = pair_pictures(PairImages(image, image, image, still(grid)), bound)
    assert bound / 10 < size_of(pictures) <= bound and max(plane.sheets["fixed"].width for plane in pictures.planes) <= 256


def test_forty_pairs_fit_into_one_page():
    assert 40 * MAX_PAIR_BYTES <= MAX_PICTURE_BYTES == 30_000_000


def test_the_box_leaves_air_and_specks_out(report_scene):
    array = np.zeros((1, 60, 50, 40), dtype=np.float32)
    array[0, 20:40, 10:40, 5:35] = 100
    array[0, 58, 48, 38] = 100
    box = body_box(Image(array, Grid((60, 50, 40), np.eye(4))))
    assert np.array_equal(box, [[19, 41], [8, 42], [3, 37]])
