"""Models trained on several data sets: shared with the names and licences of all."""

from nnssl_reg.commands.entry import main
from nnssl_reg.imageio.json_files import write_json
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
