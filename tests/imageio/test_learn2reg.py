"""Learn2Reg files: the challenge's own way of warping gives our image, and names and shapes are checked against its json."""

import json
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy import ndimage

from nnssl_reg.geometry.displacement import DisplacementField
from nnssl_reg.geometry.image import Image
from nnssl_reg.imageio.images import write_image
from nnssl_reg.imageio.learn2reg import (
    displacement_name,
    read_learn2reg,
    submission_problems,
    write_learn2reg,
    write_submission,
)
from nnssl_reg.imageio.pairs import Pair


def pair_of(folder, fixed="A_0001_0000.nii.gz", moving="A_0012_0001.nii.gz", name="p") -> Pair:
    return Pair(name, Path(folder, fixed), Path(folder, moving))


@pytest.mark.parametrize(("turn", "spacing_mm"), [((0, 0, 0), (2.0, 2.0, 2.0)), ((20, -10, 30), (1.5, 2.0, 3.0))])
def test_the_array_warped_as_the_challenge_does_is_our_warped_image(tmp_path, turned_grid, textured_image, turn, spacing_mm):
    grid = turned_grid((26, 22, 20), spacing_mm, turn, (5, -10, 15))
    moving_grid = turned_grid((26, 22, 20), spacing_mm, (-5, 0, 4), (3, -12, 15))
    moving = textured_image(moving_grid)
    field = DisplacementField(2 * torch.sin(grid.points_mm() / 11), grid)
    write_learn2reg(tmp_path / "d.nii.gz", field, moving_grid)
    stored = nib.load(tmp_path / "d.nii.gz")
    assert stored.shape == (26, 22, 20, 3) and stored.get_data_dtype() == np.float32
    index = np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij")) + np.moveaxis(np.asarray(stored.dataobj), -1, 0)
    theirs = ndimage.map_coordinates(moving.array[0], index, order=1, mode="nearest")
    inner = ((index >= 0) & (index <= np.array(grid.shape).reshape(3, 1, 1, 1) - 1)).all(axis=0)
    assert inner.mean() > 0.5
    np.testing.assert_allclose(theirs[inner], field.warp(moving).array[0][inner], atol=1e-2)
    assert np.array_equal(read_learn2reg(tmp_path / "d.nii.gz"), field.in_voxels(moving_grid).numpy())


def test_names_are_those_of_the_challenge_with_subject_and_channel():
    assert displacement_name(pair_of("imagesTr")) == "disp_0001_0000_0012_0001.nii.gz"
    with pytest.raises(ValueError, match=r"^scan.nii.gz and b_1.mha cannot be named .* TASK_0001_0000"):
        displacement_name(pair_of("", "scan.nii.gz", "b_1.mha"))


def write(folder, name: str, shape, turned_grid) -> None:
    write_image(folder / name, Image(np.random.default_rng(0).random((1, *shape), dtype=np.float32), turned_grid(shape, 2.0)))


@pytest.mark.parametrize("stated", [{"0": [6, 5, 4], "1": [6, 5, 4]}, [6, 5, 4], None])
def test_right_names_and_shapes_are_no_problem_and_wrong_ones_are_all_told(tmp_path, turned_grid, stated):
    write(tmp_path, "A_0001_0000.nii.gz", (6, 5, 4), turned_grid)
    write(tmp_path, "A_0012_0001.nii.gz", (6, 5, 4), turned_grid)
    dataset = {} if stated is None else {"tensorImageShape": stated}
    assert submission_problems([pair_of(tmp_path)], dataset) == []
    write(tmp_path, "A_0002_0000.nii.gz", (6, 5, 7), turned_grid)
    (tmp_path / "B_0001_0000.nii.gz").write_bytes((tmp_path / "A_0001_0000.nii.gz").read_bytes())
    pairs = [pair_of(tmp_path, name="p"), pair_of(tmp_path, "A_0002_0000.nii.gz", name="q"),
             pair_of(tmp_path, "B_0001_0000.nii.gz", name="r"), pair_of(tmp_path, "C.nii.gz", name="s")]  # fmt: skip
    found = "\n".join(submission_problems(pairs, dataset))
    assert "(6, 5, 7)" in found and "s: C.nii.gz cannot be named" in found
    assert "p and r would both be disp_0001_0000_0012_0001.nii.gz" in found
    assert ("tensorImageShape of the json says (6, 5, 4)" in found) == (stated is not None)


def test_the_zip_holds_the_fields_at_its_top_and_the_missing_ones_are_named(tmp_path):
    (tmp_path / "disp_a.nii.gz").write_bytes(b"abc")
    (tmp_path / "other.txt").write_text(json.dumps({}))
    assert write_submission(tmp_path, ["disp_a.nii.gz", "disp_b.nii.gz"]) == ["disp_b.nii.gz"]
    with zipfile.ZipFile(tmp_path / "submission.zip") as archive:
        assert archive.namelist() == ["disp_a.nii.gz"] and archive.read("disp_a.nii.gz") == b"abc"
