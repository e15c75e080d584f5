"""nnssl_evaluate: known fields written as nnssl_register writes them are judged right, and what is missing is said."""

import csv
import json

import numpy as np
import pytest
import torch

from nnssl_reg.commands.entry import main
from nnssl_reg.geometry.affine import AffineTransform
from nnssl_reg.geometry.displacement import DisplacementField
from nnssl_reg.geometry.grid import Grid
from nnssl_reg.geometry.image import Image
from nnssl_reg.imageio.images import write_image
from nnssl_reg.imageio.json_files import write_json
from nnssl_reg.imageio.transforms import write_composite, write_field

GRID = Grid((16, 12, 12), np.diag([2.0, 1.0, 3.0, 1.0]))


def labels(shift_vox: int) -> Image:
    array = np.zeros((1, *GRID.shape), dtype=np.uint8)
    array[0, 4 + shift_vox : 8 + shift_vox, 2:6, 2:6], array[0, 4 + shift_vox : 8 + shift_vox, 7:10, 2:9] = 3, 9
    return Image(array, GRID)


def field(shift_mm: float) -> DisplacementField:
    vectors = torch.zeros(3, *GRID.shape)
    vectors[0] = shift_mm
    return DisplacementField(vectors, GRID)


@pytest.fixture
def study(tmp_path):
    """Three pairs: the true field, a composite with half of the shift, and one without labels."""
    rng = np.random.default_rng(0)
    for name, shift in (("f", 0), ("m", 2)):
        write_image(tmp_path / f"{name}.nii.gz", Image(rng.standard_normal((1, *GRID.shape)).astype(np.float32), GRID))
        write_image(tmp_path / f"{name}_label.nii.gz", labels(shift))
    files = {"fixed": "f.nii.gz", "moving": "m.nii.gz"}
    copies = {"fixed": "f.nii.gz", "moving": "m2.nii.gz"}, {"fixed": "m.nii.gz", "moving": "f.nii.gz"}
    (tmp_path / "m2.nii.gz").write_bytes((tmp_path / "m.nii.gz").read_bytes())
    with_labels = {"fixed_label": "f_label.nii.gz", "moving_label": "m_label.nii.gz"}
    write_json(tmp_path / "pairs.json", [
        files | with_labels | {"id": "true"}, copies[0] | with_labels | {"id": "half"}, copies[1] | {"id": "plain"},
    ])  # fmt: skip
    out = tmp_path / "out"
    write_field(out / "true_field.nii.gz", field(4))
    write_image(out / "true_warped_label.nii.gz", labels(0))
    write_json(out / "true.json", {"seconds": 12.5})
    write_composite(out / "half_transform.h5", AffineTransform.translation((1, 0, 0)), field(1))
    write_field(out / "plain_field.nii.gz", field(0))
    return tmp_path


def evaluate(folder) -> int:
    return main(["-i", str(folder / "pairs.json"), "-o", str(folder / "out"), "--no_pbar"], name="nnssl_evaluate")


def test_the_stored_fields_are_judged_anew(study, capsys):
    write_json(study / "out" / "summary.json", {"settings": {"features": "mind"}})
    assert evaluate(study) == 0
    rows = {r["id"]: r for r in csv.DictReader((study / "out" / "metrics.csv").read_text().splitlines())}
    assert (rows["true"]["dice_initial"], rows["true"]["dice"], rows["true"]["hd95_mm"]) == ("0.5", "1", "0")
    assert rows["true"]["seconds"] == "12.5" and rows["true"]["dice_9"] == "1"
    assert rows["half"]["dice"] == "0.75" and rows["half"]["hd95_mm_initial"] == "4"
    assert rows["plain"]["dice"] == "" and rows["plain"]["folding_percent"] == "0"
    told = json.loads((study / "out" / "summary.json").read_text())
    assert told["mean"]["dice"] == 0.875 and told["with_labels"] == 2 and told["settings"] == {"features": "mind"}
    assert "0.500 -> 1.000" in capsys.readouterr().out


def test_a_pair_that_was_not_registered_is_named_and_the_others_are_judged(study, capsys):
    (study / "out" / "half_transform.h5").unlink()
    assert evaluate(study) == 1
    out = capsys.readouterr().out
    assert "failed: half: neither half_field.nii.gz nor half_transform.h5" in out and "0.500 -> 1.000" in out
    assert json.loads((study / "out" / "summary.json").read_text())["registered"] == 2


def test_a_field_of_another_image_is_refused(study, capsys):
    other = Grid(GRID.shape, np.diag([2.0, 1.0, 3.5, 1.0]))
    write_field(study / "out" / "true_field.nii.gz", DisplacementField(torch.zeros(3, *GRID.shape), other))
    assert evaluate(study) == 1
    assert "was it written for another image?" in capsys.readouterr().out


def test_a_stored_label_that_the_field_does_not_give_is_warned_about(study, capsys):
    write_image(study / "out" / "true_warped_label.nii.gz", labels(1))
    assert evaluate(study) == 0
    assert "disagree in" in capsys.readouterr().err


def test_a_missing_output_folder_is_answered_in_one_line(study, capsys):
    (study / "out").rename(study / "elsewhere")
    assert evaluate(study) == 1
    assert "is no folder; -o is the folder that nnssl_register wrote" in capsys.readouterr().err
