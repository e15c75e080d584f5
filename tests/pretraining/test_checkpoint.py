"""Checkpoints: whole or not at all, the one before kept, damage named, nothing executed."""

import json
import logging
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from nnssl_reg.imageio.json_files import read_json, write_json
from nnssl_reg.planning.plans import Plans
from nnssl_reg.pretraining import checkpoint
from nnssl_reg.pretraining.checkpoint import (
    checkpoint_path,
    load_encoder,
    newest_checkpoint,
    read_info,
    restore,
    save_checkpoint,
)
from nnssl_reg.pretraining.training_state import start


def save(run, folder: Path, step: int, name: str = "latest"):
    """Save a fresh state as if after `step` steps; the state."""
    state = start(replace(run, seed=step))
    save_checkpoint(folder, name, run.info(step), state.pair, state.optimizer)
    return state


def output_folder(run, folder: Path) -> Path:
    """What a training's output folder holds besides checkpoints."""
    write_json(folder / "nnsslPlans.json", Plans("Dataset999_Waves", "nnsslPlans", {"3d_fullres": run.configuration}))
    write_json(folder / "configuration.json", {"configuration": "3d_fullres"})
    return folder


def test_the_last_two_are_kept_and_the_newest_is_found(run, tmp_path):
    assert newest_checkpoint(tmp_path) is None
    for step in (3, 6, 9):
        save(run, tmp_path, step)
    assert read_info(checkpoint_path(tmp_path, "previous")).step == 6
    path, info = newest_checkpoint(tmp_path)
    assert path == checkpoint_path(tmp_path, "latest") and info.step == 9
    assert read_json(path.with_suffix(".json"))["step"] == 9
    assert read_json(checkpoint_path(tmp_path, "previous").with_suffix(".json"))["step"] == 6
    files = {f"checkpoint_{name}.{ending}" for name in ("latest", "previous") for ending in ("safetensors", "json")}
    assert {path.name for path in tmp_path.iterdir() if path.is_file()} == files


def test_a_checkpoint_explains_itself_and_names_what_made_it(run, tmp_path):
    save(run, tmp_path, 4)
    info = read_info(checkpoint_path(tmp_path, "latest"))
    assert info.network == run.configuration.network and info.pretraining == run.configuration.pretraining
    assert (
        info.seed == run.seed
        and info.dataset_name == "Dataset999_Waves"
        and info.versions["torch"] == torch.__version__.split("+")[0]
    )


@pytest.mark.parametrize("damage", ["cut", "empty", "text", "pickle"])
def test_a_damaged_latest_checkpoint_is_named_and_the_previous_one_used(run, tmp_path, caplog, damage):
    save(run, tmp_path, 3)
    save(run, tmp_path, 6)
    latest = checkpoint_path(tmp_path, "latest")
    if damage == "cut":
        os.truncate(latest, latest.stat().st_size // 2)
    elif damage == "pickle":
        torch.save({"a": 1}, latest)
    else:
        latest.write_text("" if damage == "empty" else "no checkpoint at all, but long enough to have a header of some kind")
    with caplog.at_level(logging.WARNING):
        path, info = newest_checkpoint(tmp_path)
    assert path == checkpoint_path(tmp_path, "previous") and info.step == 3
    assert "checkpoint_latest.safetensors is damaged" in caplog.text and "step 3" in caplog.text


def test_when_every_checkpoint_is_damaged_that_is_an_error(run, tmp_path):
    save(run, tmp_path, 3)
    os.truncate(checkpoint_path(tmp_path, "latest"), 100)
    with pytest.raises(ValueError, match="is damaged.*train anew"):
        newest_checkpoint(tmp_path)


@pytest.mark.parametrize("moment", ["before the rename", "between the renames", "before the json"])
def test_a_kill_at_any_moment_of_saving_leaves_a_usable_checkpoint(run, tmp_path, monkeypatch, moment):
    save(run, tmp_path, 3)

    class Killed(BaseException):
        pass

    def die(*_, **__):
        raise Killed

    real = os.replace
    if moment == "before the rename":
        monkeypatch.setattr(checkpoint, "save_file", die)
    elif moment == "between the renames":
        monkeypatch.setattr(os, "replace", lambda a, b: die() if str(b).endswith("latest.safetensors") else real(a, b))
    else:
        monkeypatch.setattr(checkpoint, "write_json", die)
    with pytest.raises(Killed):
        save(run, tmp_path, 6)
    monkeypatch.undo()
    path, info = newest_checkpoint(tmp_path)
    assert info.step == (6 if moment == "before the json" else 3)
    state = start(run)
    restore(path, state.pair, state.optimizer)


def test_restoring_gives_back_weights_centres_and_moments(run, tmp_path):
    state = start(run)
    state.pair.class_centre += 1
    sum(p.square().sum() for p in state.pair.student.parameters()).backward()
    state.optimizer.step()
    save_checkpoint(tmp_path, "latest", run.info(1), state.pair, state.optimizer)
    other = start(replace(run, seed=99))
    restore(checkpoint_path(tmp_path, "latest"), other.pair, other.optimizer)
    for a, b in zip(state.pair.state_dict().values(), other.pair.state_dict().values()):
        assert torch.equal(a, b)
    for a, b in zip(state.pair.student.parameters(), other.pair.student.parameters()):
        assert state.optimizer.state[a].keys() == other.optimizer.state[b].keys()
        assert all(torch.equal(v, other.optimizer.state[b][k]) for k, v in state.optimizer.state[a].items())


def test_a_checkpoint_of_another_network_says_what_differs(run, tmp_path, change):
    save(run, tmp_path, 3)
    other = start(change(run, prototypes=16))
    with pytest.raises(ValueError, match="patch_head.prototypes"):
        restore(checkpoint_path(tmp_path, "latest"), other.pair, other.optimizer)


def test_another_format_names_the_version_that_wrote_it(run, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "FORMAT", 7)
    monkeypatch.setattr(type(run), "info", lambda self, step: replace(start_info(run, step), format=8))
    save(run, tmp_path, 3)
    with pytest.raises(ValueError, match="format 8.*reads 7"):
        read_info(checkpoint_path(tmp_path, "latest"))


def start_info(run, step: int) -> checkpoint.CheckpointInfo:
    return checkpoint.CheckpointInfo(step, run.seed, "D", "c", run.configuration.network, run.configuration.pretraining, {})


def test_a_safetensors_file_of_something_else_is_refused(tmp_path):
    checkpoint.save_file({"a": torch.zeros(1)}, checkpoint_path(tmp_path, "latest"))
    with pytest.raises(ValueError, match="no checkpoint of nnssl_train_dino"):
        read_info(checkpoint_path(tmp_path, "latest"))


def test_the_loaded_encoder_is_the_teachers_and_needs_no_other_folder(run, tmp_path):
    folder = output_folder(run, tmp_path)
    state = save(run, folder, 5, "final")
    with torch.no_grad():
        for p in state.pair.student.parameters():
            p.zero_()
    configuration, encoder = load_encoder(folder, "cpu")
    assert configuration == run.configuration and not encoder.training
    image = torch.rand(1, 1, 8, 12, 8)
    assert torch.equal(encoder(image).patch_tokens, state.pair.teacher.encoder(image).patch_tokens)
    assert not any(p.requires_grad for p in encoder.parameters())


def test_the_encoder_comes_from_the_asked_checkpoint_or_the_first_usable(run, tmp_path):
    folder = output_folder(run, tmp_path)
    with pytest.raises(ValueError, match="no usable checkpoint"):
        load_encoder(folder, "cpu")
    states = {name: save(run, folder, step, name) for step, name in enumerate(("latest", "final"), start=1)}
    for name, asked in (("final", None), ("latest", "latest")):
        encoder = load_encoder(folder, "cpu", asked)[1]
        assert torch.equal(encoder.mask_token, states[name].pair.teacher.encoder.mask_token)
    os.truncate(checkpoint_path(folder, "final"), 50)
    assert torch.equal(load_encoder(folder, "cpu")[1].mask_token, states["latest"].pair.teacher.encoder.mask_token)
    with pytest.raises(FileNotFoundError, match="no checkpoint_best.*final, latest"):
        load_encoder(folder, "cpu", "best")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load_encoder(folder / "elsewhere", "cpu")


def test_a_configuration_that_the_plans_lack_is_named(run, tmp_path):
    folder = output_folder(run, tmp_path)
    save(run, folder, 5, "final")
    (folder / "configuration.json").write_text(json.dumps({"configuration": "3d_lowres"}))
    with pytest.raises(ValueError, match="3d_lowres.*3d_fullres"):
        load_encoder(folder, "cpu")
