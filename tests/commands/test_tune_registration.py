"""nnssl_tune_registration: it goes on where it was, computes nothing twice, and believes only what pairs held out confirm."""

import json
import os
import re
import signal
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from nnssl_reg.commands import pair_features, pair_start, register_pair, tuning_trials
from nnssl_reg.commands.entry import main
from nnssl_reg.evaluation.tuning_score import PairScore
from nnssl_reg.geometry.image import Image
from nnssl_reg.imageio.images import write_image
from nnssl_reg.imageio.json_files import read_json, write_json
from nnssl_reg.imageio.landmarks import write_landmarks

NAMES = "abcd"
QUICK = ("--init", "identity", "--set", "registration.symmetric=false", "--set", "registration.iterations=8")
SMOOTHNESS = ("-parameters", "registration.smoothness")


def tune(*flags) -> int:
    return main([*map(str, flags), "--no_pbar", "-device", "cpu"], name="nnssl_tune_registration")


def moved_by(number: int):
    """Patient `number` is a little smaller and lies elsewhere, the more the higher."""

    def moved(points: torch.Tensor) -> torch.Tensor:
        shift = torch.tensor([2.0 * number, -number, 1.5 * number], dtype=points.dtype).view(3, 1, 1, 1)
        return points * (1 + 0.03 * number) - shift

    return moved


@pytest.fixture
def folder(tmp_path, turned_grid, body_image, monkeypatch):
    """Images a ... d with labels and landmarks, and pairs.json of each of them onto the next: the third is held out."""
    monkeypatch.delenv("nnssl_results", raising=False)
    for number, name in enumerate(NAMES):
        image = body_image(turned_grid((26, 24, 20), (3.9, 3.9, 4.9), (2 * number, 3, 0)), moved_by(number))
        write_image(tmp_path / f"{name}.nii.gz", image)
        label = (image.array > 100).astype(np.uint8) + 2 * (image.array > 260).astype(np.uint8)
        write_image(tmp_path / f"{name}_label.nii.gz", Image(label, image.grid))
        at = np.random.default_rng(0).uniform(-25, 25, (20, 3))
        scale, shift = 1 + 0.03 * number, np.array([2.0, -1.0, 1.5]) * number
        write_landmarks(tmp_path / f"{name}.csv", (at + shift) / scale, "ras")
    write_pairs(tmp_path, fixed_label="{}_label.nii.gz", moving_label="{}_label.nii.gz")
    return tmp_path


def write_pairs(folder, **keys) -> None:
    """Four pairs; keys: file names with {} for the image's, and plain values."""
    pairs = []
    for fixed, moving in zip(NAMES, NAMES[1:] + NAMES[:1]):
        named = {key: value.format(fixed if key.startswith("fixed") else moving) for key, value in keys.items()}
        pairs.append({"fixed": f"{fixed}.nii.gz", "moving": f"{moving}.nii.gz", "id": f"{fixed}{moving}", **named})
    write_json(folder / "pairs.json", pairs)


def trials_in(folder) -> list[dict]:
    return read_json(folder / "pairs_tuned" / "tuning_log.json")["trials"]


def counted(monkeypatch, module, name: str) -> list:
    """A list that grows with every call of a function."""
    calls, function = [], getattr(module, name)
    monkeypatch.setattr(module, name, lambda *args, **settings: calls.append(args) or function(*args, **settings))
    return calls


def scored(monkeypatch, score) -> None:
    """Registration replaced by score(name of the fixed image, plan) -> Dice."""
    monkeypatch.setattr(tuning_trials, "deform_pair", lambda images, store, plan, alignment: SimpleNamespace(
        alignment=SimpleNamespace(transform=images.fixed.name), deformation=plan))  # fmt: skip
    monkeypatch.setattr(tuning_trials, "judged", lambda truth, fixed, plan: PairScore(
        score(fixed.rsplit("/")[-1][0], plan), 0.0, 0.0))  # fmt: skip


def test_registrations_are_tuned_with_features_and_alignments_made_once_and_a_rerun_makes_none(folder, monkeypatch, capsys):
    features = counted(monkeypatch, pair_features, "mind_features")
    alignments = counted(monkeypatch, pair_start, "initial_alignment")
    fields = counted(monkeypatch, register_pair, "register_features")
    flags = ("-i", folder / "pairs.json", *QUICK, "--init", "center", *SMOOTHNESS, "-trials", 3)
    assert tune(*flags) == 0
    told = capsys.readouterr().out
    assert "3 pairs (Dice), 3 trials at most; 1 pair is held out (1 with an image that is tuned on)" in told
    assert len(features) == 2 * 4 and len(alignments) == 4 and len(fields) >= 3 * 3 + 1
    log, settings = trials_in(folder), read_json(folder / "pairs_tuned" / "tuned_settings.json")
    assert [t["part"] for t in log[:3]] == ["tuning"] * 3 and len({json.dumps(t["values"]) for t in log[:3]}) == 3
    assert set(log[0]["pairs"]) == {"ab", "bc", "da"} and set(log[-1]["pairs"]) == {"cd"}
    assert settings["scores"]["tuning_planned"]["value"] == pytest.approx(
        np.mean([pair["value"] for pair in log[0]["pairs"].values()]))  # fmt: skip
    before = len(fields)
    assert tune(*flags) == 0 and len(fields) == before
    assert trials_in(folder) == log and read_json(folder / "pairs_tuned" / "tuned_settings.json") == settings


def test_a_run_that_was_cut_off_goes_on_to_the_same_end(folder, monkeypatch):
    scored(monkeypatch, lambda name, plan: 0.7 - abs(np.log(plan.smoothness / 0.34)) / 10 - plan.rounds / 100)
    flags = ("-i", folder / "pairs.json", "-trials", 15)
    assert tune(*flags) == 0
    path = folder / "pairs_tuned" / "tuning_log.json"
    whole, settings = read_json(path), read_json(folder / "pairs_tuned" / "tuned_settings.json")
    write_json(path, whole | {"trials": whole["trials"][:6]})
    assert tune(*flags) == 0
    assert read_json(path) == whole and read_json(folder / "pairs_tuned" / "tuned_settings.json") == settings
    assert settings["values"]["registration.smoothness"] == 0.34 and settings["values"]["registration.rounds"] == 1
    assert "Dice" in settings["reason"] and "planned" in settings["reason"]


def test_what_the_pairs_held_out_do_not_confirm_is_not_used(folder, monkeypatch, capsys):
    scored(monkeypatch, lambda name, plan: 0.5 + (-0.1 if name == "c" else 0.1) * plan.smoothness)
    assert tune("-i", folder / "pairs.json", *SMOOTHNESS) == 0
    settings = read_json(folder / "pairs_tuned" / "tuned_settings.json")
    assert "Planned values kept, as the pairs held out did not get better" in capsys.readouterr().out
    assert settings["scores"]["best_values"]["registration.smoothness"] > settings["values"]["registration.smoothness"] == 0.2


def test_rough_and_folding_fields_do_not_win(folder, monkeypatch):
    scored(monkeypatch, lambda name, plan: 0.7)
    monkeypatch.setattr(tuning_trials, "judged", lambda truth, fixed, plan: PairScore(
        0.7 - 0.001 * plan.smoothness, 0.3, 2.0 if plan.smoothness < 0.2 else 0.0))  # fmt: skip
    assert tune("-i", folder / "pairs.json", *SMOOTHNESS) == 0
    assert read_json(folder / "pairs_tuned" / "tuned_settings.json")["values"]["registration.smoothness"] >= 0.2


def test_a_trial_that_is_clearly_worse_is_given_up_and_ranks_below(folder, monkeypatch):
    pairs = read_json(folder / "pairs.json")
    themselves = [{**p, "id": p["id"] + "2", "moving": p["fixed"], "moving_label": p["fixed_label"]} for p in pairs]
    write_json(folder / "pairs.json", pairs + themselves)
    scored(monkeypatch, lambda name, plan: 0.7 if plan.smoothness == 0.2 else 0.5)
    assert tune("-i", folder / "pairs.json", *SMOOTHNESS) == 0
    log = [t for t in trials_in(folder) if t["part"] == "tuning"]
    assert [len(t["pairs"]) for t in log] == [6, 3, 3, 3, 3] and all(t["given_up"] for t in log[1:])
    assert max(t["objective"] for t in log[1:]) < log[0]["objective"]


def test_ctrl_c_keeps_the_trials_and_the_exit_code_tells_while_a_time_limit_ends_with_the_best_so_far(
    folder, monkeypatch, capsys
):
    scored(
        monkeypatch, lambda name, plan: plan.smoothness if plan.smoothness < 0.6 else os.kill(os.getpid(), signal.SIGINT) or 0
    )
    flags = ("-i", folder / "pairs.json", *SMOOTHNESS)
    assert tune(*flags) == 128 + signal.SIGINT
    assert "the same command goes on" in capsys.readouterr().out
    assert [t["values"]["registration.smoothness"] for t in trials_in(folder)] == [0.2, 0.34]
    assert not (folder / "pairs_tuned" / "tuned_settings.json").exists()
    assert tune(*flags, "-max_minutes", 0) == 0 and "registration.smoothness: 0.2 -> 0.34" in capsys.readouterr().out


def test_landmarks_serve_where_there_are_no_labels(folder, capsys):
    write_pairs(folder, fixed_landmarks="{}.csv", moving_landmarks="{}.csv", landmarks_space="ras")
    assert tune("-i", folder / "pairs.json", *QUICK, *SMOOTHNESS, "-trials", 2) == 0
    assert "landmark error" in capsys.readouterr().out
    assert trials_in(folder)[0]["pairs"]["ab"]["value"] < 5  # mm; some 5 mm and 3 % before


def test_without_labels_known_deformations_are_made_once_and_registration_comes_near_them(folder, turned_grid, body_image):
    for name in "ab":
        grid = turned_grid((50, 46, 40), (3.0, 3.0, 3.5), (0, 4, 0))
        write_image(folder / f"{name}.nii.gz", body_image(grid, radii_mm=(62, 56, 58), shortest_mm=30))
    write_json(folder / "pairs.json", [{"fixed": "a.nii.gz", "moving": "b.nii.gz"}])
    flags = ("-i", folder / "pairs.json", "--synthetic", *QUICK, "--set", "registration.search_radius_mm=24", *SMOOTHNESS)
    assert tune(*flags, "-trials", 2) == 0
    made = folder / "pairs_tuned" / "synthetic"
    pairs = read_json(made / "pairs.json")
    assert len(pairs) == 6 and len(list(made.glob("*.nii.gz"))) == 6  # two images, three times
    before = [np.linalg.norm(np.subtract(*[np.loadtxt(made / p[f"{side}_landmarks"], delimiter=",", skiprows=1)
              for side in ("fixed", "moving")]), axis=1).mean() for p in pairs]  # fmt: skip
    tuned = [p["value"] for trial in trials_in(folder)[-2:] for p in trial["pairs"].values()]
    assert np.mean(tuned) < 0.6 * np.mean(before)
    written = (made / pairs[0]["moving"]).stat().st_mtime_ns
    assert tune(*flags, "-trials", 2) == 0 and (made / pairs[0]["moving"]).stat().st_mtime_ns == written


def test_the_settings_found_are_those_that_nnssl_register_uses(folder, monkeypatch, capsys):
    scored(monkeypatch, lambda name, plan: 0.7 - abs(np.log(plan.smoothness / 0.34)))
    assert tune("-i", folder / "pairs.json", *SMOOTHNESS) == 0
    found = folder / "pairs_tuned" / "tuned_settings.json"
    pair = ("-f", folder / "a.nii.gz", "-m", folder / "b.nii.gz", "-o", folder / "out", "--settings", found, "--no_figures")
    assert main([*map(str, pair), "-device", "cpu", "--no_pbar", "--init", "identity"], name="nnssl_register") == 0
    told = read_json(folder / "out" / "a__b.json")["settings"]
    assert told["plans"]["registration"]["smoothness"] == 0.34 and told["tuned"].startswith("tuned on 3 pairs: Dice 0.700")
    assert "tuned on 3 pairs" in capsys.readouterr().out
    more = ("--overwrite", "--set", "registration.smoothness=0.9", "-device", "cpu", "--no_pbar", "--init", "identity")
    assert main([*map(str, pair), *more], name="nnssl_register") == 0
    assert read_json(folder / "out" / "a__b.json")["settings"]["plans"]["registration"]["smoothness"] == 0.9


def test_a_model_gets_a_copy_of_its_plans(folder, monkeypatch, model_folder, tmp_path):
    model = model_folder(tmp_path / "results")
    before = (model / "nnsslPlans.json").read_text()
    scored(monkeypatch, lambda name, plan: 0.7 - abs(np.log(plan.smoothness / 1.7)))
    assert tune("-i", folder / "pairs.json", "--model", model, "--features", "dino+mind", *SMOOTHNESS) == 0
    plans = read_json(folder / "pairs_tuned" / "nnsslPlans_tuned.json")["configurations"]["3d_fullres"]
    assert plans["registration"]["smoothness"] == 1.7 and "Dice" in plans["reasons"]["registration.smoothness"]
    assert (model / "nnsslPlans.json").read_text() == before


@pytest.mark.parametrize(("flags", "message"), [
    (("-labels", 9), r"-labels 9: no pair has it in both images; there are 1, 3"),
    (("-labels", 0), "above 0"),
    (("-labels", 1, "--synthetic"), "looks at no labels"),
    (("-trials", 1), "at least 2"),
    (("-parameters", "registration.smothness"), "-parameters registration.smothness: with mind features there are"),
    (("-parameters", "registration.rounds", "--set", "registration.rounds=2"), "--set fixes every parameter"),
    (("--features", "dino"), "nnssl_train_dino"),
])  # fmt: skip
def test_flags_that_cannot_be_used_are_named(folder, capsys, flags, message):
    assert tune("-i", folder / "pairs.json", *flags) == 1
    assert re.search(message, capsys.readouterr().err)


def test_pairs_that_cannot_be_tuned_on_are_named_with_a_way_out(folder, capsys):
    whole = read_json(folder / "pairs.json")
    for pairs, message in [
        ([{k: v for k, v in p.items() if "label" not in k} for p in whole], "no pair has labels or landmarks"),
        (whole[:2], "2 pairs with labels: at least 3 are needed"),
        ([], "registration_val"),
    ]:
        write_json(folder / "pairs.json", pairs)
        assert tune("-i", folder / "pairs.json") == 1
        assert message in capsys.readouterr().err
    write_json(folder / "pairs.json", [{k: v for k, v in p.items() if "label" not in k} for p in whole])
    assert tune("-i", folder / "pairs.json", "-labels", 1) == 1
    assert "no pair of" in capsys.readouterr().err


def test_trials_of_other_pairs_or_another_seed_are_not_gone_on_with(folder, monkeypatch, capsys):
    scored(monkeypatch, lambda name, plan: 0.7)
    flags = ("-i", folder / "pairs.json", *SMOOTHNESS)
    assert tune(*flags) == 0 and tune(*flags, "--seed", 1) == 1
    assert "made with other seed" in capsys.readouterr().err
    assert tune(*flags, "--seed", 1, "--overwrite") == 0
