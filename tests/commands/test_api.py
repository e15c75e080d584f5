"""Registration from Python: every kind of image in, the same anatomy out, and the example of the documentation runs."""

import re
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from scipy.spatial.distance import pdist

import nnssl_reg
from nnssl_reg.commands import register_pair
from nnssl_reg.commands.entry import main
from nnssl_reg.features.local_intensity import AGREES
from nnssl_reg.geometry.grid import Grid
from nnssl_reg.geometry.image import Image
from nnssl_reg.imageio.images import read_image, write_image
from nnssl_reg.imageio.memory_images import from_image
from nnssl_reg.imageio.transforms import read_field, read_transform
from nnssl_reg.planning.memory import CONTEXT_VARIATES
from nnssl_reg.registration.cells import feature_scale

PAGE = Path(__file__).parents[2] / "documentation" / "python_api.md"
QUICK = {"device": "cpu", "initial": "identity", "overrides": {"registration.iterations": 10}}


@pytest.fixture(scope="module")
def result(images):
    return nnssl_reg.register(*images, **QUICK)


def label_of(image: Image) -> Image:
    return Image((image.array > 100).astype(np.int16) * 7, image.grid)


def as_kind(image: Image, kind: str, folder: Path):
    if kind == "array":
        return image.array[0], image.grid.affine
    if kind == "path":
        path = folder / f"{id(image)}.nii.gz"
        write_image(path, image)
        return path
    return from_image(image, {"sitk": sitk.Image(), "nibabel": nib.Nifti1Image(np.zeros((2, 2, 2)), np.eye(4))}[kind])


def test_importing_the_package_imports_nothing_heavy():
    code = "import sys, nnssl_reg; print([m for m in ('torch', 'numpy', 'nibabel') if m in sys.modules], dir(nnssl_reg))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("[] [") and all(name in done.stdout for name in ("register", "load_model", "read_image"))
    with pytest.raises(AttributeError, match="no attribute 'regster'"):
        nnssl_reg.regster  # noqa: B018


@pytest.mark.parametrize("kind", ["array", "path", "sitk", "nibabel"])
def test_every_kind_of_image_gives_the_same_and_comes_back_as_its_kind(images, result, kind, tmp_path):
    other = nnssl_reg.register(*(as_kind(image, kind, tmp_path) for image in images), **QUICK)
    difference = (other.field.vectors_mm - result.field.vectors_mm).norm(dim=0)
    assert difference.mean() < 0.01 and difference.max() < 0.5  # headers hold float32, which may decide between equal matches
    warped = other.warped
    expected = {"array": np.ndarray, "path": Image, "sitk": sitk.Image, "nibabel": nib.Nifti1Image}[kind]
    assert type(warped) is expected
    if kind == "sitk":
        back = nnssl_reg.register(warped, warped, **QUICK).registered.fixed
        assert back.grid.matches(images[0].grid, 1e-3)
        warped = sitk.GetArrayFromImage(warped).T
    values = {Image: lambda w: w.array[0], nib.Nifti1Image: lambda w: w.get_fdata()}.get(expected, lambda w: w)(warped)
    assert np.abs(values - result.warped.array[0]).max() < 0.01 * np.ptp(values)


def test_the_command_and_the_function_find_the_same_field(images, tmp_path):
    paths = [str(as_kind(image, "path", tmp_path)) for image in images]
    flags = ["-f", paths[0], "-m", paths[1], "-o", str(tmp_path / "out"), "--init", "identity", "-device", "cpu",
             "--no_figures", "--no_pbar", "--set", "registration.iterations=10"]  # fmt: skip
    assert main(flags, "nnssl_register") == 0
    (written,) = (tmp_path / "out").glob("*_field.nii.gz")
    assert torch.allclose(read_field(written).vectors_mm, nnssl_reg.register(*paths, **QUICK).field.vectors_mm, atol=1e-4)


def test_labels_keep_their_type_and_values_and_points_go_to_the_moving_image(images, result):
    label = label_of(images[1])
    for given in (label, label.array[0], (label.array[0].astype(np.float64), label.grid.affine)):
        warped = result.apply(given)
        array = warped.array[0] if isinstance(warped, Image) else warped
        assert np.issubdtype(array.dtype, np.integer) and set(np.unique(array)) == {0, 7}
    linear = result.apply(label.array[0].astype(np.float32), label=False)
    assert linear.dtype == np.float32 and len(np.unique(linear)) > 10
    points = images[0].grid.center_mm + np.array([[0.0, 0.0, 0.0], [10.0, -8.0, 4.0]])
    assert np.allclose(result.apply(points), result.field.apply_to_points(points))
    assert result.apply(points.tolist()).shape == (2, 3)
    assert result.scores(label_of(images[0]), label).dice > result.scores(label_of(images[0]), label).dice_initial


@pytest.mark.parametrize("diffeomorphic", [False, True])
def test_the_inverse_leads_back(images, diffeomorphic):
    done = nnssl_reg.register(*images, **QUICK | {"initial": "center"}, diffeomorphic=diffeomorphic)
    assert done.field.jacobian_determinant().min() > 0
    assert (done.registered.flow is not None) == diffeomorphic
    back = done.inverse()
    assert back.grid.matches(images[1].grid)
    middle = images[0].grid.center_mm + 20 * np.random.default_rng(0).uniform(-1, 1, (200, 3))
    error = np.linalg.norm(back.apply_to_points(done.apply(middle)) - middle, axis=1)
    assert error.mean() < 0.25 and np.linalg.norm(done.apply(middle) - middle, axis=1).mean() > 2


def test_a_given_matrix_is_where_registration_starts(images):
    matrix = np.eye(4)
    matrix[:3, 3] = (5.0, -3.0, 2.0)
    done = nnssl_reg.register(*images, **QUICK | {"initial": matrix, "overrides": {"registration.iterations": 0}})
    assert np.array_equal(done.registered.alignment.transform.matrix, matrix) and done.registered.alignment.name == "given"


def test_what_is_saved_is_what_was_found(result, tmp_path):
    files = result.save(tmp_path / "out", "pair", figure=False)
    assert set(files) == {"sidecar", "warped", "field", "transform"} and all(path.is_file() for path in files.values())
    assert torch.allclose(read_field(files["field"]).vectors_mm, result.field.vectors_mm, atol=1e-4)
    assert np.allclose(read_image(files["warped"]).array, result.warped.array, atol=1e-3)
    for name in ("t.h5", "t.nii.gz"):
        result.save_transform(tmp_path / name)
        read = read_transform(tmp_path / name).on(result.field.grid)
        assert (read.vectors_mm - result.field.vectors_mm).abs().max() < 0.05
    result.save_warped(tmp_path / "w.mha")
    assert read_image(tmp_path / "w.mha").grid.matches(result.field.grid, 1e-2)


def test_a_mask_keeps_what_lies_outside_it_from_pulling(turned_grid, body_image, shrunk):
    grid = turned_grid((36, 32, 30), (2.8, 2.9, 3.0))
    fixed, moving = body_image(grid), body_image(grid, shrunk)
    ruined = fixed.array.copy()
    ruined[:, 22:] = np.roll(ruined[:, 22:], 4, axis=2)
    mask = np.zeros(grid.shape, bool)
    mask[:18] = True
    same, other = ((nnssl_reg.register(fixed, moving, fixed_mask=m, **QUICK).field.vectors_mm
                    - nnssl_reg.register(Image(ruined, grid), moving, fixed_mask=m, **QUICK).field.vectors_mm)
                   .norm(dim=0)[:18].mean() for m in (mask, None))  # fmt: skip
    assert same < 0.5 * other


CUBE = np.random.default_rng(0).standard_normal((12, 12, 12)).astype(np.float32)
HOLED = np.where(np.arange(12) == 3, np.nan, CUBE)


@pytest.mark.parametrize(("given", "choices", "answer"), [
    ((CUBE, CUBE), {}, "the fixed image: an array alone does not say where"),
    (((CUBE, (1, 1, 1)), (HOLED, (1, 1, 1))), {}, r"the moving image: 144 voxels \(8.33 %\) are NaN"),
    (((CUBE, (1, 1, 1)), (CUBE[0], (1, 1, 1))), {}, r"the moving image has the shape \(12, 12\)"),
    (((0 * CUBE, (1, 1, 1)), (CUBE, (1, 1, 1))), {}, "the fixed image is constant"),
    (((CUBE, (1, 1)), (CUBE, (1, 1, 1))), {}, "its spacing"),
    (((CUBE, (1, 1, 1)), {"array": 3}), {}, "the moving image is a dict; give a path"),
    (("nowhere.nii.gz", (CUBE, (1, 1, 1))), {}, "nowhere.nii.gz does not exist"),
    ("same", {"features": "sift"}, "none of dino, mind, dino"), ("same", {"features": "dino"}, "need a model"),
    ("same", {"regularisation": "hard"}, "none of weak, medium, strong"),
    ("same", {"initial": "middle"}, "'middle' is not one of"),
    ("same", {"overrides": {"registration.smothness": 1}}, "registration.smoothness"),
    ("same", {"overrides": {"registration.smoothness": 1}, "regularisation": "weak"}, "not both"),
    ("same", {"fixed_mask": np.zeros((12, 12, 12), bool)}, "the mask of the fixed image: the mask is empty"),
    ("same", {"moving_mask": np.ones((12, 12, 11), bool)}, r"the mask of the moving image has the shape \(12, 12, 11\)"),
    ("same", {"moving_mask": (np.ones((12, 12, 12), bool), (2, 1, 1))}, "mask voxels of the moving image are on another grid"),
    ("same", {"initial": np.zeros((4, 4))}, "invertible"),
])  # fmt: skip
def test_what_cannot_be_used_is_named_with_a_way_out(given, choices, answer):
    pair = ((CUBE, (1.0, 1.0, 1.0)), (CUBE, (1.0, 1.0, 1.0))) if given == "same" else given
    with pytest.raises((ValueError, OSError), match=answer):
        nnssl_reg.register(*pair, device="cpu", **choices)


def test_images_that_share_no_point_are_refused_with_their_distance():
    far = np.eye(4)
    far[0, 3] = 300
    with pytest.raises(ValueError, match="still 289 mm apart"):
        nnssl_reg.register((CUBE, np.eye(4)), (CUBE, far), device="cpu", initial="identity")


def test_a_model_is_loaded_once_and_used(images, model_folder, tmp_path):
    folder = model_folder(tmp_path)
    model = nnssl_reg.load_model(folder, "cpu")
    one, two = (nnssl_reg.register(*images, model=m, **QUICK) for m in (model, folder))
    assert one.settings["features"] == "dino+mind" and torch.equal(one.field.vectors_mm, two.field.vectors_mm)


def test_tokens_are_projected_by_a_first_match_unless_principal_components_are_wanted(images, model_folder, tmp_path):
    model = nnssl_reg.load_model(model_folder(tmp_path), "cpu")
    first = nnssl_reg.register(*images, model=model, features="dino", **QUICK)
    quick = {**QUICK, "overrides": {**QUICK.get("overrides", {}), "features.projection": "pca"}}
    second = nnssl_reg.register(*images, model=model, features="dino", **quick)
    assert "first match" in first.registered.seconds and "first match" not in second.registered.seconds
    assert first.registered.features[0].values.shape == second.registered.features[0].values.shape
    assert not torch.allclose(first.registered.features[0].values, second.registered.features[0].values)
    assert torch.isfinite(first.field.vectors_mm).all()
    quick["overrides"]["features.projection"] = "lda"
    with pytest.raises(ValueError, match="features.projection should be discriminant or pca, got 'lda'"):
        nnssl_reg.register(*images, model=model, features="dino", **quick)


def test_local_intensity_joins_mind_where_both_images_have_one_contrast(images, result):
    fixed, moving = images
    opposite = nnssl_reg.register(fixed, Image(-moving.array, moving.grid), **QUICK)
    without = nnssl_reg.register(fixed, moving, **{**QUICK, "overrides": {"features.intensity_share": 0.0}}).registered
    channels = [len(done.features[0].values) for done in (result.registered, opposite.registered, without)]
    assert channels == [without.features[0].values.shape[0] + 1, channels[2], channels[2]]
    assert result.registered.contrast.agreement > AGREES and result.registered.contrast.used
    assert opposite.registered.contrast.agreement == 0 and not opposite.registered.contrast.used
    assert without.contrast is None and "first match" not in without.seconds
    assert torch.equal(opposite.registered.features[0].values, without.features[0].values)


def test_tissue_context_joins_mind_where_both_images_differ_in_contrast(images):
    fixed, moving = images
    opposite, found = Image(-moving.array, moving.grid), {}
    for share in (0.0, 0.2):
        overrides = {**QUICK["overrides"], "features.mind_stride": (2, 2, 2), "features.context_share": share}
        quick = {**QUICK, "overrides": overrides}
        found[share] = [nnssl_reg.register(fixed, other, **quick).registered for other in (moving, opposite)]
    (alike, unlike), (alike_with, unlike_with) = found.values()
    assert torch.equal(alike.field.vectors_mm, alike_with.field.vectors_mm)  # one contrast: local intensity says it
    assert len(unlike_with.features[0].values) == len(unlike.features[0].values) + CONTEXT_VARIATES
    own, joined = unlike.features[0].values, unlike_with.features[0].values[CONTEXT_VARIATES:]
    assert torch.allclose(own / own.std(), joined / joined.std(), atol=1e-3)
    shares = [feature_scale(*(f.values[part] for f in unlike_with.features)) ** 2
              for part in (slice(0, CONTEXT_VARIATES), slice(CONTEXT_VARIATES, None))]  # fmt: skip
    assert shares[0] / sum(shares) == pytest.approx(0.2, abs=1e-3)


def test_where_contrasts_hardly_agree_the_registration_whose_directions_lie_closer_is_kept(images, monkeypatch):
    found = {}
    for least in (-1.0, 1e9):  # local intensity taken for granted; on trial
        monkeypatch.setattr(register_pair, "AGREES", least)
        found[least] = nnssl_reg.register(*images, **QUICK).registered
    without = nnssl_reg.register(
        *images, **{**QUICK, "overrides": {"features.intensity_share": 0.0, **QUICK["overrides"]}}
    ).registered
    better = bool(found[-1.0].apart_mm.median() < without.apart_mm.median())
    tried, kept = found[1e9], found[-1.0] if better else without
    assert tried.contrast.used == better and found[-1.0].contrast.used
    assert torch.equal(tried.field.vectors_mm, kept.field.vectors_mm)


def test_stronger_regularisation_gives_a_smoother_field(images):
    choices = {"device": "cpu", "initial": "identity", "overrides": {"registration.iterations": 40}}
    fields = [nnssl_reg.register(*images, **choices, regularisation=r).field for r in ("weak", "medium", None, "strong")]
    spread = [float(field.jacobian_determinant().std()) for field in fields]
    assert spread[0] > spread[1] == spread[2] > spread[3]


def test_the_example_of_the_documentation_runs(images, tmp_path, monkeypatch, capsys):
    for name, image in zip(("fixed", "moving"), images):
        write_image(tmp_path / f"{name}.nii.gz", image)
        write_image(tmp_path / f"{name}_label.nii.gz", label_of(image))
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert len(blocks) >= 2
    names: dict = {}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)
    assert "Dice" in capsys.readouterr().out and (tmp_path / "out" / "pair_field.nii.gz").is_file()
    assert isinstance(names["result"].registered.fixed.grid, Grid)


def test_a_rigid_mask_given_as_an_array_keeps_distances_and_one_of_another_image_is_refused(images):
    mask = np.zeros(images[0].grid.shape, bool)
    mask[12:18, 10:16, 8:13] = True
    result = nnssl_reg.register(*images, rigid_mask=mask, **QUICK)
    points = images[0].grid.index_to_world(np.argwhere(mask))
    assert np.abs(pdist(result.apply(points)) - pdist(points)).max() < 1e-3
    other = Image(mask[None, 1:].astype(np.uint8), images[0].grid.cropped([[1, 30], [0, 26], [0, 22]]))
    with pytest.raises(ValueError, match="rigid mask's voxels of the fixed image are on another grid"):
        nnssl_reg.register(*images, rigid_mask=other, **QUICK)
