"""Models to share: exported, imported and packaged they encode as they did, and what cannot be trusted leaves nothing."""

import json
import os
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from nnssl_reg import load_model
from nnssl_reg import register as register_in_python
from nnssl_reg.commands.entry import main
from nnssl_reg.commands.registration_setup import make_setup
from nnssl_reg.geometry.grid import Grid
from nnssl_reg.imageio.images import write_image
from nnssl_reg.imageio.json_files import read_json, write_json
from nnssl_reg.imageio.model_folder import FILES, write_checksums
from nnssl_reg.imageio.model_zip import write_model_zip
from nnssl_reg.planning.rules_image import MAX_TOKENS
from nnssl_reg.planning.rules_shared import SMALL_TOKENS
from nnssl_reg.pretraining.checkpoint import load_encoder
from nnssl_reg.pretraining.model_card import logged_metrics, read_card
from nnssl_reg.pretraining.shared_model import load_shared_model

NAME = "DINO__nnsslPlans__3d_fullres"
QUICK = ("--init", "identity", "--no_figures", "--no_pbar", "-device", "cpu", "--set", "registration.iterations=5",
         "--set", "registration.symmetric=false")  # fmt: skip


@pytest.fixture
def trained(model_folder, tmp_path, monkeypatch):
    """A trained model with a log, its raw data set beside it; no environment variable is set."""
    for name in ("raw", "preprocessed", "results"):
        monkeypatch.delenv(f"nnssl_{name}", raising=False)
    folder = model_folder(tmp_path / "trained")
    rows = [
        {"step": 1, "loss": 2.0, "probe_dice": 0.25},
        {"step": 2, "loss": 1.5},
        {"step": 3, "loss": None, "probe_dice": 0.5},
    ]
    (folder / "training_log.jsonl").write_text("\n".join(map(json.dumps, rows)) + '\n{"step": 4, "lo')
    raw = tmp_path / "raw" / "Dataset007_Bodies"
    (raw / "imagesTr").mkdir(parents=True)
    (raw / "imagesTr" / "a_0000.nii.gz").touch()
    write_json(raw / "dataset.json", {"channel_names": {"0": "MR"}, "licence": "CC0", "description": "Ellipsoids"})
    return folder


def export(folder, out, *flags) -> int:
    return main(["--model", str(folder), "-o", str(out), *map(str, flags)], name="nnssl_export_model")


def imported(path, results, *flags) -> int:
    return main([str(path), "-results", str(results), *flags], name="nnssl_import_model")


def tokens_of(encoder) -> torch.Tensor:
    return encoder(torch.linspace(-1, 1, 8 * 12 * 8).reshape(1, 1, 8, 12, 8).sin()).patch_tokens


def test_a_model_that_went_through_a_zip_is_found_by_name_and_encodes_exactly_as_before(trained, tmp_path, capsys):
    assert export(trained, tmp_path / "m.zip", "-raw", tmp_path / "raw", "--notes", "Only bodies.") == 0
    assert imported(tmp_path / "m.zip", tmp_path / "results") == 0
    folder = tmp_path / "results" / "Dataset007_Bodies" / NAME
    assert {path.name for path in folder.iterdir()} == set(FILES)
    assert [path.name for path in (tmp_path / "results").iterdir()] == ["Dataset007_Bodies"]
    before, (configuration, encoder, card) = load_encoder(trained, "cpu"), load_shared_model(folder, "cpu")
    assert torch.equal(tokens_of(encoder), tokens_of(before[1])) and configuration == before[0]
    assert (
        card == read_card(folder) and card.notes == "Only bodies." and card.steps == 3 and card.recipe == before[0].pretraining
    )
    assert [(s.dataset, s.licence, s.description, s.cases) for s in card.data] == [
        ("Dataset007_Bodies", "CC0", "Ellipsoids", 1)
    ]
    assert card.metrics == {"step": 3.0, "loss": 1.5, "probe_dice": 0.5} and [r["step"] for r in card.probe] == [1.0, 3.0]
    text = (folder / "MODEL_CARD.md").read_text()
    assert "Licence: CC0" in text and "Only bodies." in text and "| 3 | 0.5 |" in text
    assert "nnssl_register -f FIXED -m MOVING -d Dataset007_Bodies" in capsys.readouterr().out


def test_half_precision_halves_the_file_and_moves_tokens_by_a_thousandth(trained, tmp_path):
    export(trained, tmp_path / "whole", "--licence", "CC0")
    export(trained, tmp_path / "half", "--half", "--licence", "CC0")
    sizes = [(tmp_path / name / "encoder.safetensors").stat().st_size for name in ("whole", "half")]
    assert sizes[1] < 0.6 * sizes[0]
    whole, half = (load_shared_model(tmp_path / name, "cpu")[1] for name in ("whole", "half"))
    assert next(half.parameters()).dtype == torch.float32
    a, b = tokens_of(whole), tokens_of(half)
    assert 0 < (a - b).norm() < 2e-3 * a.norm()


def test_weights_beyond_half_precision_are_refused_and_nothing_is_left(trained, tmp_path, monkeypatch, capsys):
    real = load_encoder

    def huge(*args):
        configuration, encoder = real(*args)
        encoder.mask_token.fill_(1e6)
        return configuration, encoder

    monkeypatch.setattr("nnssl_reg.commands.export_model.load_encoder", huge)
    assert export(trained, tmp_path / "out" / "half", "--half") == 1
    assert "mask_token hold numbers that are not finite" in capsys.readouterr().err
    assert list((tmp_path / "out").iterdir()) == []
    assert export(trained, tmp_path / "out" / "half") == 0


def test_a_licence_that_is_not_known_is_warned_of(trained, tmp_path, capsys):
    export(trained, tmp_path / "m.zip")
    out, err = capsys.readouterr()
    assert "The licence of Dataset007_Bodies is not known; give --licence" in err and "data: Dataset007_Bodies: not" in out


@pytest.mark.parametrize("what", ["m.zip", "folder"])
def test_nothing_is_overwritten_unasked(trained, tmp_path, capsys, what):
    assert export(trained, tmp_path / what) == 0 and export(trained, tmp_path / what) == 1
    assert "--overwrite" in capsys.readouterr().err
    assert export(trained, tmp_path / what, "--overwrite") == 0
    export(trained, tmp_path / "n.zip")
    assert imported(tmp_path / "n.zip", tmp_path / "r") == 0 and imported(tmp_path / "n.zip", tmp_path / "r") == 1
    assert imported(tmp_path / "n.zip", tmp_path / "r", "--overwrite") == 0
    capsys.readouterr()
    assert imported(tmp_path / "n.zip", tmp_path / "trained", "--overwrite") == 1  # a training run lies there
    assert "holds no shared model, so it is not replaced" in capsys.readouterr().err
    assert imported(tmp_path / "n.zip", tmp_path / "trained", "-name", "Dataset008_Guest") == 0
    assert (tmp_path / "trained" / "Dataset008_Guest" / NAME / "encoder.safetensors").is_file()


def spoilt(trained, tmp_path, change):
    """A zip with right checksums of a model changed by change(folder)."""
    export(trained, tmp_path / "spoilt", "--licence", "CC0")
    change(tmp_path / "spoilt")
    write_checksums(tmp_path / "spoilt")
    write_model_zip(tmp_path / "spoilt.zip", tmp_path / "spoilt")
    return tmp_path / "spoilt.zip"


def edited(name, **values):
    """A change of the plans (of the network, if name is one of its fields) that checksums do not show."""

    def change(folder):
        told = read_json(folder / "nnsslPlans.json")
        told[name] = values[name] if name in told else told.get(name)
        for configuration in told["configurations"].values():
            configuration["network"] |= {key: value for key, value in values.items() if key in configuration["network"]}
        write_json(folder / "nnsslPlans.json", {key: value for key, value in told.items() if value is not None})

    return change


SPOILT = {
    "names that lead away": (edited("dataset_name", dataset_name="../../elsewhere"), "names the data set '../../elsewhere'"),
    "plans with a path": (edited("plans_name", plans_name="../x"), "plans called '../x'"),
    "a network too large": (edited("depth", depth=10**6), "describe a network of some 6,9"),
    "endless registers": (edited("register_tokens", register_tokens=10**12), "do not belong together"),
    "another network": (edited("depth", depth=2), "does not fit|do not belong together"),
    "no heads": (edited("num_heads", num_heads=0), "do not belong together"),
    "odd heads": (edited("num_heads", num_heads=5), "cannot be built"),
    "a pickle for weights": (lambda f: torch.save({"a": 1}, f / "encoder.safetensors"), "damaged or no safetensors file"),
    "weights cut off": (lambda f: os.truncate(f / "encoder.safetensors", 500), "damaged or no safetensors file"),
    "no json": (lambda f: (f / "model_card.json").write_text("{"), "is not valid json"),
    "an unknown card": (lambda f: write_json(f / "model_card.json", {"version": 9}), "has version 9"),
}


@pytest.mark.parametrize("case", SPOILT)
def test_a_model_that_does_not_fit_together_is_refused_and_leaves_nothing(trained, tmp_path, capsys, case):
    change, said = SPOILT[case]
    path = spoilt(trained, tmp_path, change)
    assert imported(path, tmp_path / "results") == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and any(part in error for part in said.split("|"))
    assert str(path) in error and "partial" not in error and "Nothing was imported" in error
    assert list((tmp_path / "results").iterdir()) == []


def test_a_zip_with_a_wrong_checksum_leaves_nothing(trained, tmp_path, capsys):
    export(trained, tmp_path / "m")
    with open(tmp_path / "m" / "model_card.json", "a") as file:
        file.write(" ")
    write_model_zip(tmp_path / "m.zip", tmp_path / "m")
    assert imported(tmp_path / "m.zip", tmp_path / "results") == 1
    assert "model_card.json was changed or damaged" in capsys.readouterr().err and not list((tmp_path / "results").iterdir())


def test_what_is_no_zip_and_what_is_not_there_are_said(tmp_path, capsys):
    (tmp_path / "x.zip").write_text("hello")
    assert imported(tmp_path / "x.zip", tmp_path / "r") == 1 and imported(tmp_path / "y.zip", tmp_path / "r") == 1
    said = capsys.readouterr().err
    assert "no whole zip file (5 bytes" in said and "y.zip does not exist" in said and not list((tmp_path / "r").iterdir())


def test_an_evil_member_beside_a_good_model_stops_the_import(trained, tmp_path, capsys):
    export(trained, tmp_path / "m.zip")
    with zipfile.ZipFile(tmp_path / "m.zip", "a") as archive:
        archive.writestr("../../evil.txt", "x")
    assert imported(tmp_path / "m.zip", tmp_path / "deep" / "results") == 1
    assert "'../../evil.txt' leads out" in capsys.readouterr().err
    assert not list(tmp_path.rglob("evil.txt")) and not list((tmp_path / "deep" / "results").iterdir())


@pytest.fixture
def pair(tmp_path, turned_grid, body_image):
    """Two bodies of other spacing and size than any training had; their files."""
    grids = turned_grid((34, 26, 12), (3.0, 3.5, 8.0), (5, 0, 0)), turned_grid((28, 30, 26), 3.7)
    for name, grid in zip(("fixed", "moving"), grids):
        write_image(tmp_path / f"{name}.nii.gz", body_image(grid, (lambda p: p / 0.94) if name == "moving" else None))
    return tmp_path / "fixed.nii.gz", tmp_path / "moving.nii.gz"


def register(pair, out, *flags) -> tuple[int, dict]:
    code = main(["-f", str(pair[0]), "-m", str(pair[1]), "-o", str(out), *QUICK, *map(str, flags)], name="nnssl_register")
    return code, read_json(out / "fixed__moving.json")["settings"] if code == 0 else {}


def test_without_a_named_model_the_packaged_one_is_used_as_its_card_says(trained, packaged, pair, tmp_path, capsys):
    assert export(trained, packaged("body"), "--half", "--default_features", "dino+mind", "--licence", "CC0") == 0
    code, settings = register(pair, tmp_path / "out")
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("Model: "))
    assert code == 0 and settings["features"] == "dino+mind" and settings["model"].endswith("weights/body")
    assert line.startswith("Model: body (comes with the package), 0.0091 million weights") and "CC0" not in line
    spacing = settings["plans"]["image"]["spacing_mm"]
    assert len(set(spacing)) == 1 and spacing[0] != 4.0  # not the spacing of the training
    assert settings["plans"]["registration"]["search_radius_mm"] != 32.0
    code, mind = register(pair, tmp_path / "mind", "--features", "mind")
    assert code == 0 and mind["model"] is None
    assert mind["plans"]["registration"] == settings["plans"]["registration"]


def test_the_encoder_spacing_can_be_set_and_python_takes_the_folder_too(trained, packaged, pair, tmp_path):
    export(trained, packaged("body"), "--licence", "CC0")
    code, settings = register(pair, tmp_path / "out", "--model", "body", "--set", "image.spacing_mm=6", "--features", "dino")
    assert code == 0 and settings["plans"]["image"]["spacing_mm"] == [6.0, 6.0, 6.0]
    model = load_model(packaged("body"), "cpu")
    found = register_in_python(*pair, model=model, initial="identity", device="cpu",
                               overrides={"registration.iterations": 5, "registration.symmetric": False,
                                          "image.spacing_mm": (6, 6, 6)})  # fmt: skip
    assert found.settings["features"] == "dino+mind" and json.loads(json.dumps(found.settings["plans"])) == settings["plans"]
    assert np.isfinite(found.field.vectors_mm.numpy()).all()


def test_python_takes_the_packaged_model_as_the_command_does(trained, packaged, pair, tmp_path, capsys):
    export(trained, packaged("body"), "--licence", "CC0", "--default_features", "auto")
    model = load_model("body", "cpu").folder
    for features, used in ((None, ("auto", str(model))), ("dino", ("dino", str(model))), ("mind", ("mind", None))):
        settings = register(pair, tmp_path / "out", "--overwrite", *(["--features", features] if features else []))[1]
        found = register_in_python(*pair, features=features, initial="identity", device="cpu",
                                   overrides={"registration.iterations": 5, "registration.symmetric": False})  # fmt: skip
        assert (settings["features"], settings["model"]) == used
        assert ("(comes with the package), only for CT beside" in capsys.readouterr().out) == (features is None)
        assert all(json.loads(json.dumps(found.settings[n])) == settings[n] for n in ("features", "model", "plans"))


def test_an_own_model_comes_before_the_packaged_one(trained, packaged, pair, tmp_path):
    export(trained, packaged("body"), "--licence", "CC0", "--default_features", "dino+mind")
    code, settings = register(pair, tmp_path / "out", "-results", tmp_path / "trained")
    assert code == 0 and settings["model"] == str(trained) and settings["features"] == "dino+mind"


def test_a_packaged_model_that_measured_worse_than_mind_is_not_used_unasked(trained, packaged, pair, tmp_path, capsys):
    export(trained, packaged("body"), "--licence", "CC0", "--default_features", "mind")
    code, settings = register(pair, tmp_path / "out")
    assert code == 0 and settings["features"] == "mind" and settings["model"] is None
    assert "says that MIND features measured better" in capsys.readouterr().out
    assert register(pair, tmp_path / "asked", "--features", "dino")[1]["model"].endswith("weights/body")


def test_a_packaged_model_that_was_tampered_with_is_not_used(trained, packaged, pair, tmp_path, capsys):
    export(trained, packaged("body"), "--licence", "CC0")
    with open(packaged("body") / "encoder.safetensors", "r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x7f")
    assert register(pair, tmp_path / "out")[0] == 1
    assert "encoder.safetensors was changed or damaged" in capsys.readouterr().err


def test_a_zip_given_as_a_model_is_answered_with_the_import(trained, pair, tmp_path, capsys):
    export(trained, tmp_path / "m.zip")
    assert register(pair, tmp_path / "out", "--model", tmp_path / "m.zip")[0] == 1
    assert f"nnssl_import_model {tmp_path / 'm.zip'}" in capsys.readouterr().err


def test_a_long_probe_curve_is_thinned_out_and_keeps_its_end(tmp_path):
    rows = "".join(json.dumps({"step": s, "probe": s / 7}) + "\n" for s in range(1, 1002))
    (tmp_path / "log").write_text(rows)
    metrics, curve = logged_metrics(tmp_path / "log")
    assert metrics["step"] == 1001 and len(curve) <= 200 and curve[-1]["step"] == 1001
    assert [row["step"] for row in curve] == sorted(row["step"] for row in curve)


def test_a_gpu_is_planned_finer_tokens_by_its_memory(trained, tmp_path, monkeypatch):
    export(trained, tmp_path / "m", "--licence", "CC0")
    model, grids = load_model(tmp_path / "m", "cpu"), [Grid((300, 300, 200), np.diag([1.0, 1.0, 1.5, 1.0]))]
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=80e9))
    edges = [
        make_setup(grids, torch.device(name), model=model).model.configuration.image.spacing_mm[0] for name in ("cpu", "cuda")
    ]
    assert edges[0] / edges[1] == pytest.approx((MAX_TOKENS / SMALL_TOKENS) ** (1 / 3), rel=1e-3)
    assert model.configuration.image.spacing_mm == (4.0, 4.0, 4.0)  # what was loaded stays as it is
