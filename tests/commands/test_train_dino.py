"""nnssl_train_dino from the command line: folders, refusals, stopping, going on."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from nnssl_reg.commands.entry import main
from nnssl_reg.commands.failed_cases import read_failures
from nnssl_reg.commands.training_job import configured
from nnssl_reg.imageio.json_files import write_json
from nnssl_reg.planning.plans import Plans
from nnssl_reg.pretraining import crop_loader
from nnssl_reg.pretraining.checkpoint import checkpoint_path, load_encoder, read_info

DATASET = "Dataset999_Waves"


def train(*args: str) -> int:
    return main([*args, "--no_pbar", "-device", "cpu"], "nnssl_train_dino")


def output(folders: Path) -> Path:
    return folders / "results" / DATASET / "DINO__nnsslPlans__3d_fullres"


def test_a_run_leaves_a_folder_that_suffices_to_use_it(folders, training_configuration, capsys):
    assert train("999") == 0
    names = {path.name.split("_2")[0] for path in output(folders).iterdir()}
    assert {"nnsslPlans.json", "configuration.json", "checkpoint_final.safetensors", "checkpoint_final.json", "progress.png",
            "pca_latest.png", "training_log.jsonl", "training_log"} <= names  # fmt: skip
    configuration, encoder = load_encoder(output(folders), "cpu")
    assert configuration == training_configuration and encoder.patch_size == (4, 4, 4)
    said = capsys.readouterr()
    assert "Finished after 4 steps" in said.out and "8 cases" in said.err + said.out  # one of nine is held out
    assert "held out for the probe: Case_" in said.err + said.out


def test_the_best_checkpoint_by_the_probe_is_kept_and_said(folders, capsys):
    assert train("999") == 0
    best = read_info(checkpoint_path(output(folders), "best"))
    said = capsys.readouterr().out
    assert best.step == 4 and f"checkpoint_best.safetensors of step 4, {best.probe_recall:.1%}" in said
    rows = [json.loads(line) for line in (output(folders) / "training_log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "probe_recall" in row] == [0, 4]
    assert rows[-1]["probe_recall"] == best.probe_recall
    load_encoder(output(folders), "cpu", "best")


def test_epochs_say_how_long_a_run_is_and_extend_a_finished_one(folders, capsys):
    assert train("999", "-epochs", "1") == 0
    assert read_info(checkpoint_path(output(folders), "final")).step == 2
    assert train("999", "--continue", "--epochs", "3") == 0
    info = read_info(checkpoint_path(output(folders), "final"))
    assert (info.step, info.pretraining.warmup_steps) == (6, 1)  # the first epoch's schedule stays
    assert train("999", "--continue", "--epochs", "0") == 1
    assert "-epochs 0" in capsys.readouterr().err


def test_data_set_and_configuration_are_given_by_position_or_by_flag(folders, capsys):
    assert train("-d", DATASET, "-c", "3d_fullres", "--set", "pretraining.steps=2") == 0
    assert train("999", "-d", "998") == 1
    assert "999 and 998" in capsys.readouterr().err
    assert train() == 1
    assert "Which data set?" in capsys.readouterr().err
    assert train("999", "3d_lowres") == 1
    assert "3d_fullres" in capsys.readouterr().err


def test_a_second_run_in_the_same_folder_is_refused_with_the_way_out(folders, capsys):
    assert train("999") == 0
    assert train("999") == 1
    assert "4 steps" in (error := capsys.readouterr().err) and "--continue" in error


def test_a_finished_run_goes_on_with_more_steps_and_keeps_its_seed_and_changes(folders):
    assert train("999", "--seed", "5", "--set", "pretraining.learning_rate=0.002") == 0
    assert train("999", "--continue", "--set", "pretraining.steps=6") == 0
    info = read_info(checkpoint_path(output(folders), "final"))
    assert (info.step, info.seed, info.pretraining.learning_rate) == (6, 5, 0.002)
    assert load_encoder(output(folders), "cpu")[0].pretraining.steps == 6
    assert train("999", "--c") == 0  # nothing is left to do, and that is no error
    assert read_info(checkpoint_path(output(folders), "final")).step == 6


def test_continuing_without_an_earlier_run_begins_one(folders):
    assert train("999", "--continue") == 0
    assert read_info(checkpoint_path(output(folders), "final")).step == 4


def test_schedules_follow_a_changed_number_of_steps_unless_set_themselves(training_configuration):
    changed = configured(training_configuration, ["pretraining.steps=40"], False).pretraining
    assert (changed.steps, changed.warmup_steps, changed.teacher_temperature_steps) == (40, 20, 20)
    changed = configured(training_configuration, ["pretraining.steps=40", "pretraining.warmup_steps=3"], False).pretraining
    assert (changed.steps, changed.warmup_steps, changed.teacher_temperature_steps) == (40, 3, 20)


def test_a_dry_run_says_memory_time_and_disk_and_writes_nothing(folders, capsys):
    assert train("999", "--dry_run") == 0
    said = capsys.readouterr().out
    assert all(word in said for word in ("memory", "time", "disk", "measured", "Nothing was written."))
    assert not (folders / "results").exists()


def test_steps_can_be_fitted_to_the_minutes_there_are(folders, capsys):
    assert train("999", "-fit_minutes", "0.02") == 0
    fitted = load_encoder(output(folders), "cpu")[0].pretraining
    assert f"{fitted.steps} steps fit into 0.02 minutes" in capsys.readouterr().out
    assert fitted.steps >= 10 and fitted.warmup_steps == round(fitted.steps / 2)


@pytest.mark.parametrize("flags", [("-epochs", "2"), ("--set", "pretraining.steps=6")])
def test_a_length_that_is_given_twice_is_refused(folders, capsys, flags):
    assert train("999", "-fit_minutes", "30", *flags) == 1
    said = capsys.readouterr().err
    assert f"so does {flags[0]}" in said and "-max_minutes 30" in said and not output(folders).exists()


def test_flags_that_a_run_that_has_begun_cannot_follow_are_told(folders, capsys):
    assert train("999", "--seed", "5", "--set", "pretraining.steps=2") == 0
    assert train("999", "--continue", "--seed", "6") == 1
    assert "holds a run of seed 5" in capsys.readouterr().err
    assert train("999", "--continue", "--seed", "5", "-fit_minutes", "30") == 0
    assert "-fit_minutes 30 is for a run's beginning: this one keeps its 2 steps, 2 of them done." in capsys.readouterr().out


def test_the_time_limit_saves_and_says_how_to_go_on(folders, capsys):
    assert train("999", "-max_minutes", "0") == 0
    assert "Stopped after 0 minutes at step 1 of 4" in (said := capsys.readouterr().out) and "--continue" in said
    assert train("999", "--continue") == 0
    assert read_info(checkpoint_path(output(folders), "final")).step == 4


def test_missing_or_outdated_cases_are_said_before_anything_is_written(folders, training_configuration, capsys):
    cases = folders / "preprocessed" / DATASET / "nnsslPlans_3d_fullres"
    image = replace(training_configuration.image, crop_margin_mm=9.0)
    plans = Plans(DATASET, "nnsslPlans", {"3d_fullres": replace(training_configuration, image=image)})
    write_json(cases.parent / "nnsslPlans.json", plans)
    assert train("999") == 1
    assert "preprocessed by other plans" in (error := capsys.readouterr().err) and "nnssl_preprocess -d" in error
    for path in cases.iterdir():
        path.unlink()
    assert train("999") == 1
    assert "holds no preprocessed case" in capsys.readouterr().err
    (cases.parent / "nnsslPlans.json").unlink()
    assert train("999") == 1
    assert "nnssl_plan_and_preprocess" in capsys.readouterr().err
    assert not output(folders).exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--set", "pretraining.stepz=5"), "Did you mean pretraining.steps"),
        (("--set", "pretraining.crop_size=9"), "whole patches of (4, 4, 4)"),
        (("-num_gpus", "0"), "-num_gpus 0"),
        (("-num_gpus", "4", "-device", "cpu"), "a multiple of 4, the processes that share it"),
        (("-num_gpus", "2", "-device", "cuda:1"), "-device cuda:1"),
        (("-device", "cuda:99"), "-device cuda:99 cannot be used"),
        (("-p", "otherPlans"), "otherPlans.json does not exist"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(folders, capsys, arguments, said):
    code = main(["999", "--no_pbar", *arguments], "nnssl_train_dino")
    error = capsys.readouterr().err
    assert code == 1 and said in error and error.count("\n") == 1


def test_ctrl_c_saves_and_the_same_command_goes_on_from_there(folders):
    program = "from nnssl_reg.commands.entry import main; import sys; sys.exit(main(sys.argv[1:], 'nnssl_train_dino'))"
    command = [sys.executable, "-c", program, "999", "--no_pbar", "-device", "cpu", "--set", "pretraining.steps=100000",
               "--set", "pretraining.workers=1"]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    deadline = time.time() + 120
    while not checkpoint_path(output(folders), "latest").exists() and time.time() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "Stopped by SIGINT" in said and "--continue" in said
    step = read_info(checkpoint_path(output(folders), "latest")).step
    assert train("999", "--continue", "--set", f"pretraining.steps={step + 2}") == 0
    rows = [json.loads(line)["step"] for line in (output(folders) / "training_log.jsonl").read_text().splitlines()]
    assert rows == sorted(set(rows)) and rows[-1] == step + 2


def test_a_case_that_cannot_be_read_is_left_out_named_and_the_exit_code_says_so(folders, capsys):
    cases = folders / "preprocessed" / DATASET / "nnsslPlans_3d_fullres"
    for i in range(9):
        if i % 2:
            (cases / f"Case_{i:04d}_0000.b2nd").write_bytes(b"nothing")
    assert train("999", "--set", "pretraining.steps=8") == 1
    said = capsys.readouterr().out
    assert "Finished after 8 steps" in said and "left out" in said
    rows = read_failures(output(folders))
    assert rows and all(row["step"] == "train" and "damaged" in row["reason"] for row in rows)
    assert {row["case"] for row in rows} <= {f"Case_{i:04d}_0000" for i in range(1, 9, 2)}


def test_several_data_sets_are_trained_on_with_their_weights_and_modalities_balanced(folders, store_dataset, capsys):
    store_dataset(folders / "preprocessed", "Dataset998_Both", 4, {"0": "CT", "1": "MR"})
    assert train("999", "998", "3d_fullres", "-weights", "3", "1", "--set", "pretraining.modality_balance=1") == 0
    said = capsys.readouterr()
    assert "8 MR of Dataset999_Waves, 75 % of the crops" in said.out + said.err  # one of nine is held out
    for modality in ("CT", "MR"):  # one patient of four is held out, too
        assert f"3 {modality} of Dataset998_Both, 12.5 % of the crops" in said.out + said.err
    folder = folders / "results" / "Dataset999_Waves+998" / "DINO__nnsslPlans__3d_fullres"
    channels = load_encoder(folder, "cpu")[0].image.channels
    assert sorted(channel.name for channel in channels.values()) == ["CT", "MR"]  # a registration finds both
    assert train("999", "998", "--continue", "--epochs", "3") == 0
    assert train("-d", "999", "998", "-weights", "1") == 1
    assert "-weights takes a positive number for each data set (2)" in capsys.readouterr().err


def test_data_sets_whose_tokens_have_another_shape_are_refused_with_the_way_out(
    folders, store_dataset, training_configuration, capsys
):
    flat = replace(training_configuration, network=replace(training_configuration.network, patch_size=(4, 4, 1)),
                   image=replace(training_configuration.image, spacing_mm=(1.0, 1.0, 4.0)))  # fmt: skip
    store_dataset(folders / "preprocessed", "Dataset997_Thick", configuration=flat)
    assert train("999", "997") == 1
    error = capsys.readouterr().err
    assert "1 x 1 x 4 mm for 4 x 4 x 1" in error and "-overwrite_target_spacing" in error
    double = replace(training_configuration, image=replace(training_configuration.image, spacing_mm=(2.0, 2.0, 2.0)))
    store_dataset(folders / "preprocessed", "Dataset996_Coarse", configuration=double)
    assert train("999", "996") == 0  # cubes of another size are cubes


def test_training_writes_nothing_beside_the_cases(folders):
    before = {path: path.stat().st_mtime_ns for path in (folders / "preprocessed").rglob("*")}
    assert train("999") == 0
    assert {path: path.stat().st_mtime_ns for path in (folders / "preprocessed").rglob("*")} == before


class Opened:
    """Files opened, listed folders not counted, below a folder, through Python or as a stored case."""

    def __init__(self, folder: Path, monkeypatch):
        self.folder, self.files, self.on = str(folder), [], True
        sys.addaudithook(self.heard)
        really = crop_loader.open_case
        monkeypatch.setattr(crop_loader, "open_case", lambda where, name: self.files.append(name) or really(where, name))

    def heard(self, event: str, args: tuple) -> None:
        if self.on and event == "open" and str(args[0]).startswith(self.folder):
            self.files.append(args[0])


def test_ten_thousand_cases_begin_without_opening_all_of_them(folders, monkeypatch):
    cases = folders / "preprocessed" / DATASET / "nnsslPlans_3d_fullres"
    for i in range(9, 10_000):
        for ending in ("b2nd", "json"):
            os.link(cases / f"Case_{i % 9:04d}_0000.{ending}", cases / f"Case_{i:04d}_0000.{ending}")
    asked = []
    really = os.stat
    monkeypatch.setattr(os, "stat", lambda path, **flags: asked.append(path) or really(path, **flags))
    opened = Opened(cases, monkeypatch)
    try:
        assert train("999", "-max_minutes", "0") == 0
    finally:
        opened.on = False
    assert 2 <= len(opened.files) < 100
    assert sum(str(path).startswith(str(cases)) for path in asked) < 200
