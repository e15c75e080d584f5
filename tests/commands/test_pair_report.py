"""The report that nnssl_register leaves: made from the files beside it, so a later run can make it again."""

import csv
import json
import logging

import pytest

from nnssl_reg.commands.entry import main
from nnssl_reg.commands.pair_report import write_report
from nnssl_reg.evaluation.phantoms import rotation
from nnssl_reg.evaluation.summary import PairResult, Scores
from nnssl_reg.geometry.grid import Grid
from nnssl_reg.imageio.images import write_image
from nnssl_reg.imageio.json_files import write_json

PAIRS = [{"fixed": "fixed.nii.gz", "moving": "fixed.nii.gz", "id": "same"},
         {"fixed": "fixed.nii.gz", "moving": "other.nii.gz", "id": "other <body>"},
         {"fixed": "fixed.nii.gz", "moving": "broken.nii.gz", "id": "broken"}]  # fmt: skip


@pytest.fixture(scope="module")
def study(tmp_path_factory, turned_grid, body_image):
    """Registered: an image to itself, to one that shows something else, and to a file that is no image."""
    folder = tmp_path_factory.mktemp("study")
    grid = turned_grid((28, 26, 22), (3.4, 3.5, 4.5), (12, -15, 20))
    write_image(folder / "fixed.nii.gz", body_image(grid))
    turn = Grid(grid.shape, _turned(grid.affine))
    write_image(folder / "other.nii.gz", body_image(turn, radii_mm=(20.0, 40.0, 30.0), shortest_mm=7.0))
    (folder / "broken.nii.gz").write_text("no image")
    write_json(folder / "pairs.json", PAIRS)
    flags = ["-i", folder / "pairs.json", "-o", folder / "out", "--init", "identity", "--features", "mind", "--no_pbar"]
    assert main([*map(str, flags), "-device", "cpu"], name="nnssl_register") == 1
    return folder


def _turned(affine):
    out = affine.copy()
    out[:3] = rotation((0.5, 0.3, 1.2)) @ affine[:3]
    return out


def rows(study) -> dict[str, dict[str, str]]:
    return {row["id"]: row for row in csv.DictReader((study / "out" / "metrics.csv").read_text().splitlines())}


def test_an_image_registered_to_itself_is_trusted_and_to_something_else_is_not(study):
    same, other = rows(study)["same"], rows(study)["other <body>"]
    assert same["confidence_flag"] == "high" and float(same["confidence"]) > 0.99 and float(same["inconsistency_mm"]) == 0
    assert float(same["feature_cost"]) < 1e-9 and float(same["overlap_percent"]) == 100
    assert other["confidence_flag"] in ("medium", "low") and "differ by" in other["confidence_reason"]
    assert float(other["feature_cost"]) < float(other["feature_cost_initial"]) <= 1.2


def test_sidecar_table_and_report_tell_the_same_confidence(study):
    for name in ("same", "other <body>"):
        told, row = json.loads((study / "out" / f"{name}.json").read_text()), rows(study)[name]
        assert told["scores"]["confidence"] == pytest.approx(float(row["confidence"]), rel=1e-5)
        assert told["scores"]["confidence_reason"] == row["confidence_reason"]
    page = (study / "out" / "report.html").read_text()
    assert "high 1.00" in page and "other &lt;body&gt;" in page and "<body>&" not in page and "broken.nii.gz" in page
    assert page.count('type="application/json"') == 2


def test_the_report_is_made_again_from_the_files_alone(study):
    results = [PairResult(name, "f", "m", Scores(confidence=0.5, confidence_flag="medium"), 1.0) for name in ("same", "gone")]
    folder = study / "again"
    folder.mkdir()
    for file in (study / "out").glob("same*.json"):
        (folder / file.name).write_bytes(file.read_bytes())
    page = write_report(folder, results).read_text()
    assert page.count('type="application/json"') == 1 and "convex adam" in page and ">gone<" in page


def test_a_damaged_pictures_file_costs_its_pictures_only(study, caplog):
    folder = study / "damaged"
    folder.mkdir()
    (folder / "same.json").write_bytes((study / "out" / "same.json").read_bytes())
    (folder / "same_pictures.json").write_text('{"planes": [')
    with caplog.at_level(logging.WARNING, logger="nnssl_reg"):
        page = write_report(folder, [PairResult("same", "f", "m", seconds=1.0)]).read_text()
    assert "same_pictures.json" in caplog.text and "convex adam" in page and 'type="application/json"' not in page


def test_evaluating_again_keeps_the_confidence(study):
    before = rows(study)
    flags = ["-i", str(study / "pairs.json"), "-o", str(study / "out"), "--no_pbar"]
    main(flags, name="nnssl_evaluate")
    for name in ("same", "other <body>"):
        assert float(rows(study)[name]["confidence"]) == pytest.approx(float(before[name]["confidence"]), rel=1e-3)
        assert rows(study)[name]["confidence_flag"] == before[name]["confidence_flag"]
