"""nnssl_transform_info: known transforms are told with their true numbers, and what is no transform is named."""

import numpy as np
import pytest
import torch

from nnssl_reg.commands.entry import main
from nnssl_reg.evaluation.phantoms import rotation
from nnssl_reg.geometry.affine import AffineTransform
from nnssl_reg.geometry.displacement import DisplacementField
from nnssl_reg.imageio.json_files import write_json
from nnssl_reg.imageio.learn2reg import write_learn2reg
from nnssl_reg.imageio.transforms import write_affine, write_composite, write_field


@pytest.fixture
def grid(turned_grid):
    return turned_grid((20, 18, 16), (2.0, 2.5, 3.0), (0, 0, 0), (40, -70, 100))


def constant(grid, shift_mm) -> DisplacementField:
    return DisplacementField(torch.tensor(shift_mm).float().view(3, 1, 1, 1).expand(3, *grid.shape).clone(), grid)


def turning(grid) -> AffineTransform:
    """30 degrees about z and 10 % larger, about the grid's centre, which moves by (1, 2, -2)."""
    matrix = np.eye(4)
    matrix[:3, :3] = 1.1 * rotation((0, 0, np.radians(30)))
    matrix[:3, 3] = grid.center_mm + (1, 2, -2) - matrix[:3, :3] @ grid.center_mm
    return AffineTransform(matrix)


def told(capsys, *paths) -> str:
    assert main([str(path) for path in paths], name="nnssl_transform_info") == 0
    return " ".join(capsys.readouterr().out.split())


def test_a_field_is_told_with_grid_displacement_and_folding(tmp_path, grid, capsys):
    write_field(tmp_path / "a_field.nii.gz", constant(grid, (3.0, -4.0, 0.0)))
    text = told(capsys, tmp_path / "a_field.nii.gz")
    assert "points of the fixed image to points of the moving image" in text and "warps the moving image onto" in text
    assert "mm along LPS" in text and "20 x 18 x 16 voxels of 2 x 2.5 x 3 mm" in text
    assert "mean 5.00 mm, largest 5.00 mm" in text and "0 % of voxels fold" in text and "J from 1 to 1" in text
    assert "rotation 0.00 degrees, scales 1.000 x 1.000 x 1.000, shift of the grid's centre (3.00, -4.00, 0.00) mm" in text


def test_folds_are_counted(tmp_path, grid, capsys):
    vectors = torch.zeros(3, *grid.shape)
    vectors[0, 10:] = -10.0  # a jump back over five voxels: two of sixteen inner planes fold
    write_field(tmp_path / "a.nii.gz", DisplacementField(vectors, grid))
    assert "12.5 % of voxels fold (J <= 0), J from -1.5 to 1" in told(capsys, tmp_path / "a.nii.gz")


def test_the_affine_of_a_composite_is_told_by_angle_scale_and_shift(tmp_path, grid, capsys):
    write_composite(tmp_path / "a.h5", turning(grid), constant(grid, (0.0, 0.0, 2.0)))
    text = told(capsys, tmp_path / "a.h5")
    assert "rotation 30.00 degrees, scales 1.100 x 1.100 x 1.100, shift of the grid's centre (1.00, 2.00, -2.00) mm" in text
    assert "without it mean 2.20 mm" in text and "composite" in text


@pytest.mark.parametrize("name", ["a.mat", "a.tfm"])
def test_an_affine_alone_is_told(tmp_path, grid, capsys, name):
    write_affine(tmp_path / name, turning(grid))
    text = told(capsys, tmp_path / name)
    assert "ITK affine, LPS mm" in text and "rotation 30.00 degrees" in text and "shift of the world origin" in text


def test_a_learn2reg_field_counts_voxels(tmp_path, grid, capsys):
    write_learn2reg(tmp_path / "disp_0001_0000_0002_0000.nii.gz", constant(grid, (6.0, 0.0, 0.0)), grid)
    text = told(capsys, tmp_path / "disp_0001_0000_0002_0000.nii.gz")
    assert "mean 3.00 voxels" in text and "mean 6.00 mm, largest 6.00 mm if both images have this grid" in text


@pytest.mark.parametrize(("kind", "words"), [("field", "points of the fixed image to points of the moving image"),
                                             ("inverse_field", "points of the moving image to points of the fixed image"),
                                             ("ants_warp", "the warp, then the affine"),
                                             ("ants_inverse_warp", "a step of the way back")])  # fmt: skip
def test_the_sidecar_tells_the_direction_and_the_images(tmp_path, grid, capsys, kind, words):
    write_field(tmp_path / "p_1.nii.gz", constant(grid, (1.0, 0.0, 0.0)))
    write_json(tmp_path / "p.json", {"fixed": "f.nii.gz", "moving": "m.nii.gz", "files": {kind: "p_1.nii.gz"}})
    text = told(capsys, tmp_path / "p_1.nii.gz")
    assert words in text and ("fixed f.nii.gz, moving m.nii.gz" in text) == ("field" in kind)


def test_what_cannot_be_told_is_named_and_the_others_are_told(tmp_path, grid, capsys):
    write_field(tmp_path / "good.nii.gz", constant(grid, (1.0, 0.0, 0.0)))
    write_field(tmp_path / "cut.nii.gz", DisplacementField(torch.randn(3, *grid.shape), grid))
    whole = (tmp_path / "cut.nii.gz").read_bytes()
    (tmp_path / "cut.nii.gz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.h5").write_text("no transform")
    (tmp_path / "a.png").write_text("")
    files = [tmp_path / name for name in ("cut.nii.gz", "text.h5", "a.png", "missing.mat", "good.nii.gz")]
    assert main([str(path) for path in files], name="nnssl_transform_info") == 1
    out = capsys.readouterr().out
    for said in ("is truncated", "is no readable ITK transform", "the ending of", "does not exist", "mean 1.00 mm"):
        assert said in out
