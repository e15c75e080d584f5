"""Which model a registration uses: what is found is said, what could be meant is listed, what is missing has a way out."""

import os
from argparse import Namespace

import pytest
import torch

from nnssl_reg.commands.model_choice import choose_model


@pytest.fixture
def choose(monkeypatch):
    """choose(flags) -> Model or None, without environment variables."""
    monkeypatch.delenv("nnssl_results", raising=False)

    def call(**flags):
        nothing = dict.fromkeys(("model", "d", "c", "p", "features", "results"))
        return choose_model(
            Namespace(**nothing | {k: None if v is None else str(v) for k, v in flags.items()}), torch.device("cpu")
        )

    return call


def test_without_a_folder_of_results_there_is_mind_and_it_says_why(choose, capsys):
    assert choose() is None
    assert "nnssl_results is not set" in capsys.readouterr().out


def test_without_a_trained_model_there_is_mind_and_it_says_why(choose, tmp_path, capsys):
    (tmp_path / "Dataset001_Empty" / "DINO__nnsslPlans__3d_fullres").mkdir(parents=True)  # a run without a checkpoint yet
    assert choose(results=tmp_path) is None
    assert f"no trained model in {tmp_path}" in capsys.readouterr().out


def test_the_only_model_is_taken_and_named(choose, model_folder, tmp_path, capsys, monkeypatch):
    folder = model_folder(tmp_path)
    model = choose(results=tmp_path)
    assert model.folder == folder and model.configuration.network.embed_dim == 24 and not model.encoder.training
    assert f"Model: {folder}" in capsys.readouterr().out
    monkeypatch.setenv("nnssl_results", f'"{tmp_path}"')
    assert choose().folder == folder


def test_of_several_models_the_flags_choose_and_without_them_all_are_listed(choose, model_folder, tmp_path):
    folders = [model_folder(tmp_path), model_folder(tmp_path, "Dataset012_Brains"),
               model_folder(tmp_path, "Dataset012_Brains", configuration="3d_lowres"),
               model_folder(tmp_path, "Dataset012_Brains", plans="otherPlans")]  # fmt: skip
    with pytest.raises(ValueError, match="4 models fit") as raised:
        choose(results=tmp_path)
    assert all(f"--model {folder}" in str(raised.value) for folder in folders) and "--features mind" in str(raised.value)
    with pytest.raises(ValueError, match="3 models fit -d 12"):
        choose(results=tmp_path, d=12)
    assert choose(results=tmp_path, d="007").folder == folders[0]
    assert choose(results=tmp_path, d="Dataset012_Brains", c="3d_lowres").folder == folders[2]
    assert choose(results=tmp_path, p="otherPlans").folder == folders[3]
    assert choose(model=folders[1]).folder == folders[1]


def test_a_model_that_is_not_there_is_answered_with_what_was_asked_for(choose, model_folder, tmp_path):
    model_folder(tmp_path)
    with pytest.raises(ValueError, match="fits -d 3 -c 3d_lowres; train one with nnssl_train_dino"):
        choose(results=tmp_path, d=3, c="3d_lowres")
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        choose(model=tmp_path / "nowhere")
    with pytest.raises(ValueError, match="export nnssl_results="):
        choose(d=3)


@pytest.mark.parametrize("features", ["dino", "dino+mind"])
def test_learned_features_without_a_model_get_the_ways_out(choose, tmp_path, features):
    for flags in ({}, {"results": tmp_path}):
        with pytest.raises(ValueError, match="--model FOLDER, or train one with nnssl_train_dino; --features mind needs none"):
            choose(features=features, **flags)


def test_mind_needs_no_model_even_where_there_are_some(choose, model_folder, tmp_path):
    model_folder(tmp_path)
    assert choose(features="mind", results=tmp_path) is None


def test_a_damaged_model_is_named(choose, model_folder, tmp_path):
    folder = model_folder(tmp_path)
    (folder / "checkpoint_final.safetensors").write_bytes(b"cut")
    with pytest.raises(ValueError, match="no usable checkpoint"):
        choose(results=tmp_path)


def test_a_folder_of_models_that_is_not_there_is_told_and_never_made(choose, tmp_path, capsys, monkeypatch):
    missing = tmp_path / "mistyped" / "results"
    with pytest.raises(ValueError, match="mistyped/results .from -results. does not exist; give the one"):
        choose(results=missing)
    monkeypatch.setenv("nnssl_results", str(missing))
    with pytest.raises(ValueError, match="from nnssl_results. does not exist"):
        choose(d=7)
    assert choose() is None
    assert f"{missing} (from nnssl_results) does not exist" in capsys.readouterr().out and not missing.parent.exists()


def test_a_folder_of_models_need_not_be_writable(choose, model_folder, tmp_path, monkeypatch):
    folder = model_folder(tmp_path)
    monkeypatch.setattr(os, "access", lambda path, mode: mode & os.W_OK == 0)
    assert choose(results=tmp_path).folder == folder
