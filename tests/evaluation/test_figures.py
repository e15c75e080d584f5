"""Pictures: they show the right plane and side, are written whole, and survive odd input."""

import matplotlib.image
import numpy as np
import pytest
import torch

from nnssl_reg.evaluation import figures, planes
from nnssl_reg.geometry.displacement import DisplacementField
from nnssl_reg.geometry.grid import Grid
from nnssl_reg.geometry.image import FeatureMap, Image

GRID = Grid((20, 16, 12), np.diag([2.0, 2.5, 4.0, 1.0]))


def scene(grid: Grid = GRID) -> tuple[Image, Image]:
    """An image with a bright block to the right, anterior, superior, and its label."""
    array = np.zeros((1, *grid.shape), dtype=np.float32)
    array += np.random.default_rng(0).uniform(0, 5, array.shape).astype(np.float32)
    array[0, 11:18, 8:15, 6:11] += 100
    labels = np.zeros((1, *grid.shape), dtype=np.uint8)
    labels[0, 11:18, 8:15, 6:11] = 4
    return Image(array, grid), Image(labels, grid)


def still(grid: Grid) -> DisplacementField:
    return DisplacementField(torch.zeros(3, *grid.shape), grid)


def test_the_middle_is_that_of_the_labels_or_of_the_foreground():
    image, label = scene()
    middle = GRID.index_to_world((14, 11, 8))
    np.testing.assert_allclose(planes.middle_mm(label), middle)
    np.testing.assert_allclose(planes.middle_mm(image), middle, atol=0.5)
    np.testing.assert_allclose(planes.middle_mm(Image(np.zeros_like(label.array), GRID)), GRID.center_mm)


def test_a_plane_shows_the_same_values_whatever_grid_an_image_is_on():
    image, _ = scene()
    turned = Image(np.ascontiguousarray(image.array.transpose(0, 3, 1, 2)[:, :, ::-1]), turned_grid())
    for view in planes.VIEWS:
        plane = planes.plane_grid(GRID, view, (14, 11, 8))
        for stored in (image, turned):
            np.testing.assert_allclose(planes.values_on(plane, stored, view), planes.cut(image, view, (14, 11, 8)), atol=1e-3)


def test_the_patients_right_and_front_are_on_the_left_and_the_head_on_top(tmp_path):
    image, _ = scene()
    for view in planes.VIEWS:
        figure = planes.new_figure(2, 2)
        axes = planes.add_panel(figure, 0, 0, 2, 2)
        planes.show(axes, planes.cut(image, view, (14, 11, 8))[0], view, GRID.spacing_mm, cmap="gray")
        planes.save(figure, tmp_path / "plane.png")
        grey = matplotlib.image.imread(tmp_path / "plane.png")[..., 0]
        grey = np.where(grey == 1, 0, grey) if (grey[0] == 1).all() else grey  # white margin
        rows, columns = np.nonzero((grey > 0.8) & (grey <= 1))
        assert columns.mean() < grey.shape[1] / 2 and rows.mean() < grey.shape[0] / 2


def test_a_registration_figure_is_the_same_however_the_images_are_stored(tmp_path):
    image, label = scene()
    turned = [Image(np.ascontiguousarray(i.array.transpose(0, 3, 1, 2)[:, :, ::-1]), turned_grid()) for i in (image, label)]
    pictures = []
    for name, (im, lb) in {"a": (image, label), "b": turned}.items():
        figures.registration_figure(tmp_path / f"{name}.png", im, im, im, still(im.grid), "pair", lb, lb, lb)
        pictures.append(matplotlib.image.imread(tmp_path / f"{name}.png"))
    np.testing.assert_allclose(pictures[0], pictures[1], atol=0.02)


def turned_grid() -> Grid:
    """GRID for arrays with the axes z, x reversed, y."""
    affine = np.zeros((4, 4))
    affine[2, 0], affine[0, 1], affine[1, 2], affine[3, 3], affine[0, 3] = 4, -2, 2.5, 1, 38
    return Grid((12, 20, 16), affine)


@pytest.mark.parametrize("shape", [(20, 16, 12), (40, 40, 3), (5, 6, 60)])
def test_every_shape_wild_fields_and_other_moving_grids_give_a_picture(tmp_path, shape):
    grid = Grid(shape, np.diag([1.0, 1.0, 5.0, 1.0]))
    image = Image(np.random.default_rng(1).uniform(0, 9, (1, *shape)).astype(np.float32), grid)
    labels = Image(np.ones((1, *shape), dtype=np.int32) * 70000, grid)
    wild = DisplacementField(1e4 * torch.randn(3, *shape, generator=torch.Generator().manual_seed(0)), grid)
    other, other_label = scene()
    path = tmp_path / "new" / "pair.png"
    figures.registration_figure(path, image, other, image, wild, "a\nb $x", labels, other_label, labels)
    assert matplotlib.image.imread(path).shape[1] > 1000
    assert [p.name for p in path.parent.iterdir()] == ["pair.png"]


def test_constant_images_and_empty_labels_give_a_picture(tmp_path):
    image = Image(np.zeros((1, *GRID.shape), dtype=np.float32), GRID)
    empty = Image(np.zeros((1, *GRID.shape), dtype=np.uint8), GRID)
    figures.registration_figure(tmp_path / "p.png", image, image, image, still(GRID), "", empty, empty, empty)
    assert (tmp_path / "p.png").stat().st_size > 1000


def test_same_features_have_the_same_colour_in_every_image():
    image, _ = scene()
    rng = np.random.default_rng(0)
    coarse = GRID.coarsened((2, 2, 2))
    kinds = rng.standard_normal((5, 7)).astype(np.float32)
    which = [rng.integers(0, 5, coarse.shape) for _ in range(2)]
    maps = [FeatureMap(torch.from_numpy(np.moveaxis(kinds[w], -1, 0).copy()), coarse) for w in which]
    colours = figures.component_colours([image, image], maps)
    for kind in range(5):
        seen = np.concatenate([c.array[:, w == kind] for c, w in zip(colours, which)], axis=1)
        assert np.ptp(seen, axis=1).max() < 1e-5


def test_the_components_are_those_of_a_plain_singular_value_decomposition():
    rng = np.random.default_rng(2)
    coarse = GRID.coarsened((2, 2, 2))
    values = (rng.standard_normal((6, 6)) @ rng.standard_normal((6, np.prod(coarse.shape)))).astype(np.float32)
    bright = Image(np.linspace(0, 1, int(np.prod(GRID.shape)), dtype=np.float32).reshape(1, *GRID.shape), GRID)
    (ours,) = figures.component_colours([bright], [FeatureMap(torch.from_numpy(values).reshape(6, *coarse.shape), coarse)])
    x, y, z = (np.minimum(coarse_index, n - 1) for coarse_index, n in zip(np.indices(coarse.shape), coarse.shape))
    centres = np.rint(GRID.world_to_index(coarse.index_to_world(np.stack([x, y, z], -1)))).astype(int)
    inside = planes.foreground(bright.array[0][tuple(np.moveaxis(centres, -1, 0))]).ravel()
    centred = values - values[:, inside].mean(axis=1, keepdims=True)
    u, _, _ = np.linalg.svd(centred[:, inside], full_matrices=False)
    for k in range(3):
        correlation = np.corrcoef(np.clip(u[:, k] @ centred, *np.percentile(u[:, k] @ centred[:, inside], (2, 98))),
                                  ours.array[k].ravel())[0, 1]  # fmt: skip
        assert abs(correlation) > 0.98


@pytest.mark.parametrize("channels", [1, 2, 12])
def test_feature_figures_of_one_and_several_images_are_written(tmp_path, channels):
    image, _ = scene()
    features = FeatureMap(torch.rand(channels, 5, 4, 3), GRID.coarsened(4))
    figures.feature_figure(tmp_path / "one.png", image, features, title="tokens")
    figures.feature_figure(tmp_path / "two.png", [image, image], [features, features], ["CT", "MR"], "tokens")
    one, two = (matplotlib.image.imread(tmp_path / f"{name}.png") for name in ("one", "two"))
    assert two.shape[0] > 1.7 * one.shape[0]
    label = Image(np.zeros(image.array.shape, np.uint8), image.grid)
    label.array[0, :5, :5, :5] = 1
    figures.feature_figure(tmp_path / "organ.png", image, features, title="tokens", labels=[label])
    organ = matplotlib.image.imread(tmp_path / "organ.png")
    assert organ.shape == one.shape and not np.array_equal(organ, one)  # planes through the organ's middle, not the body's
    with pytest.raises(ValueError, match="2 images and 1 feature maps"):
        figures.feature_figure(tmp_path / "x.png", [image, image], [features])


def log_row(step: int) -> dict[str, float]:
    return {"step": step, "loss_class": 7.0 - step, "loss_masked": 6.5, "learning_rate": 1e-3, "teacher_temperature": 0.04,
            "teacher_momentum": 0.99, "spread_within": 0.5, "effective_rank": 20.0, "samples_per_second": 9.0}  # fmt: skip


@pytest.mark.parametrize("rows", [[], [log_row(1)], [log_row(1), log_row(2) | {"loss_masked": None}, {"step": 3}]])
@pytest.mark.filterwarnings("error")
def test_progress_is_drawn_from_the_first_line_of_the_log_on(tmp_path, rows):
    figures.progress_figure(tmp_path / "progress.png", rows, ln_k=6.93, title="run")
    assert matplotlib.image.imread(tmp_path / "progress.png").shape[:2] == (704, 1870)
