"""What a shared model tells of its origin: all data sets it was trained on, their licences, and the source."""

import re
import subprocess

import pytest

from nnssl_reg.commands.entry import main
from nnssl_reg.commands.export_model import source_commit
from nnssl_reg.imageio.json_files import read_json, write_json
from nnssl_reg.pretraining.model_card import read_card


def test_a_model_of_two_data_sets_names_both_and_can_be_imported(model_folder, tmp_path, monkeypatch):
    for name in ("raw", "preprocessed", "results"):
        monkeypatch.delenv(f"nnssl_{name}", raising=False)
    for name, licence in (("Dataset007_Bodies", "CC0"), ("Dataset008_More", "CC BY")):
        (tmp_path / "raw" / name).mkdir(parents=True)
        write_json(tmp_path / "raw" / name / "dataset.json", {"channel_names": {"0": "MR"}, "licence": licence})
    model = model_folder(tmp_path / "trained", "Dataset007_Bodies+008")
    packed = tmp_path / "both.zip"
    export = ["--model", str(model), "-o", str(packed), "-raw", str(tmp_path / "raw")]
    assert main(export, name="nnssl_export_model") == 0
    assert main([str(packed), "-results", str(tmp_path / "results")], name="nnssl_import_model") == 0
    card = read_card(tmp_path / "results" / "Dataset007_Bodies+008" / model.name)
    assert [(source.dataset, source.licence) for source in card.data] == [
        ("Dataset007_Bodies", "CC0"), ("Dataset008_More", "CC BY")]  # fmt: skip


def test_a_card_tells_the_source_and_older_ones_without_it_still_load(model_folder, tmp_path):
    assert main(["--model", str(model_folder(tmp_path)), "-o", str(tmp_path / "m")], name="nnssl_export_model") == 0
    assert read_card(tmp_path / "m").source_commit == source_commit()
    assert f"source {source_commit()}." in (tmp_path / "m" / "MODEL_CARD.md").read_text()
    told = read_json(tmp_path / "m" / "model_card.json")
    del told["source_commit"]
    write_json(tmp_path / "m" / "model_card.json", told)
    assert read_card(tmp_path / "m").source_commit == "unknown"


def test_the_source_is_the_commit_of_a_checkout_else_the_installed_version(tmp_path):
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b.c"]
    try:
        subprocess.run([*git, "init", "-q"], check=True)
    except OSError:
        pytest.skip("no git here")
    package = tmp_path / "nnssl_reg"
    (package / "deeper" / "nnssl_reg").mkdir(parents=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "first"], check=True)
    assert re.fullmatch("[0-9a-f]{40}", source_commit(package))
    assert source_commit(package / "deeper" / "nnssl_reg").startswith("nnssl_reg ")
