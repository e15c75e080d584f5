"""nnssl_demo: its phantoms, its steps and their order, what a second call repeats, its table; the real whole (slow)."""

import json
import shlex

import numpy as np
import pytest

from nnssl_reg.commands import demo, phantom_dataset
from nnssl_reg.commands.entry import main
from nnssl_reg.evaluation.phantoms import known_field
from nnssl_reg.evaluation.summary import judge
from nnssl_reg.imageio.images import read_image, read_labels
from nnssl_reg.imageio.json_files import read_json, write_json
from nnssl_reg.imageio.landmarks import read_landmarks
from nnssl_reg.imageio.pairs import read_pairs
from nnssl_reg.imageio.raw_dataset import read_raw_dataset
from nnssl_reg.imageio.transforms import write_field


@pytest.fixture
def coarse(monkeypatch):
    """Phantoms of voxels so large that they are made in a moment."""
    monkeypatch.setattr(phantom_dataset, "SPACING_MM", {"CT": (15, 15, 16), "MR": (15, 16, 17)})


def test_the_data_set_is_one_that_the_other_commands_read(tmp_path, coarse):
    folder = phantom_dataset.write_phantom_dataset(tmp_path, 7, 6, 6, seed=1)
    dataset = read_raw_dataset(folder)
    assert (dataset.name, len(dataset.cases), dataset.channel_names) == ("Dataset007_Phantom", 12, {"0": "CT", "1": "MR"})
    pairs = read_pairs(folder / "dataset.json")
    kinds = [(p.moving_channel, p.fixed_channel) for p in pairs]
    assert {kind: kinds.count(kind) for kind in set(kinds)} == {("CT", "CT"): 1, ("MR", "MR"): 1, ("MR", "CT"): 2}
    for case in dataset.cases:
        image, label = read_image(case.image), read_labels(case.label)
        assert image.grid.matches(label.grid) and set(np.unique(label.array)) == set(range(8))
    points = [read_landmarks(path, "ras") for path in sorted((folder / "landmarksTr").iterdir())]
    assert len(points) == 12 and len({p.shape for p in points}) == 1


def test_phantoms_are_made_once_and_others_are_not_mixed_in(tmp_path, coarse):
    folder = phantom_dataset.write_phantom_dataset(tmp_path, 7, 1, 1, seed=1)
    image = folder / "imagesTr" / "Phantom_0001_0000.nii.gz"
    before = image.stat().st_mtime_ns
    phantom_dataset.write_phantom_dataset(tmp_path, 7, 1, 1, seed=1)
    assert image.stat().st_mtime_ns == before
    with pytest.raises(ValueError, match="holds other phantoms.*another folder with -o"):
        phantom_dataset.write_phantom_dataset(tmp_path, 7, 1, 1, seed=2)
    (folder / "dataset.json").unlink()  # as after a kill half-way
    first = image.read_bytes()
    phantom_dataset.write_phantom_dataset(tmp_path, 7, 1, 1, seed=1)
    assert np.array_equal(read_image(image).array, phantom_dataset.draw_phantom(1, 1, "CT").image.array) and first


class FakeCommands:
    """In place of the real commands: leaves the files they leave, with the true fields of the phantoms."""

    def __init__(self, root, failing: str | None = None):
        self.demo = demo.Demo(root, 1, 0, None)
        self.calls, self.failing = [], failing

    def __call__(self, words: list[str], name: str) -> int:
        self.calls.append((name, words))
        if name == self.failing:
            return 1
        if name == "nnssl_plan_and_preprocess":
            write_json(self.demo.preprocessed / self.demo.dataset / "nnsslPlans_3d_fullres" / "x.json", {})
        if name == "nnssl_train_dino":
            write_json(self.demo.model / "checkpoint_final.json", {})
        if name == "nnssl_register":
            self.register(self.demo.registered(words[words.index("--features") + 1]))
        return 0

    def register(self, folder) -> None:
        pairs = read_pairs(self.demo.pairs)
        for pair in pairs:
            fixed, moving = (phantom_dataset.draw_phantom(0, int(path.name[8:12]), channel) for path, channel in
                             ((pair.fixed, pair.fixed_channel), (pair.moving, pair.moving_channel)))  # fmt: skip
            field = known_field(fixed, moving)
            write_field(folder / f"{pair.id}_field.nii.gz", field)
            write_json(folder / f"{pair.id}.json", {"scores": judge(field, fixed.labels, moving.labels), "seconds": 2.5})
        write_json(folder / "summary.json", {"registered": len(pairs)})


@pytest.fixture
def few(monkeypatch, coarse):
    monkeypatch.setattr(demo, "N_CT", 2)
    monkeypatch.setattr(demo, "N_MR", 2)


def run_demo(root, monkeypatch, commands: FakeCommands, *flags: str) -> int:
    """The demo with training."""
    monkeypatch.setattr(demo, "main", commands)
    return main(["-o", str(root), "-minutes", "1", *flags], name="nnssl_demo")


def test_all_steps_run_in_order_and_the_true_fields_give_a_telling_table(tmp_path, few, monkeypatch, capsys):
    commands = FakeCommands(tmp_path)
    assert run_demo(tmp_path, monkeypatch, commands, "-device", "cpu") == 0
    assert [name for name, _ in commands.calls] == ["nnssl_plan_and_preprocess", "nnssl_train_dino"] + ["nnssl_register"] * 3
    assert "--continue" not in commands.calls[1][1] and commands.calls[1][1][-2:] == ["-device", "cpu"]
    out = capsys.readouterr().out
    before, *after = [line for line in out.splitlines() if line.startswith(("before", *commands.demo.kinds))]
    assert "Dice CT -> CT" in out and "Dice MR -> MR" in out
    assert len(after) == 3 and all(" 2.5 s" in line for line in after)
    mm = [float(line.split(" mm")[0].split()[-1]) for line in (before, *after)]
    assert mm[0] > 5 > 1 > max(mm[1:])
    assert "nnssl_plan_and_preprocess -d 1" in out and "progress.png" in out


def test_a_second_call_repeats_nothing_and_a_new_model_only_what_needs_it(tmp_path, few, monkeypatch, capsys):
    run_demo(tmp_path, monkeypatch, FakeCommands(tmp_path))
    table = capsys.readouterr().out.split("\n\n")[-4:]
    again = FakeCommands(tmp_path)
    assert run_demo(tmp_path, monkeypatch, again) == 0 and again.calls == []
    assert capsys.readouterr().out.split("\n\n")[-3:] == table[-3:]
    checkpoint = again.demo.model / "checkpoint_final.json"
    checkpoint.rename(checkpoint.with_name("checkpoint_latest.json"))
    assert run_demo(tmp_path, monkeypatch, again) == 0
    assert [name for name, _ in again.calls] == ["nnssl_train_dino", "nnssl_register", "nnssl_register"]
    assert "--continue" in again.calls[0][1] and "dino" in again.calls[1][1]


def test_a_failing_step_ends_the_demo_with_its_exit_code(tmp_path, few, monkeypatch, capsys):
    commands = FakeCommands(tmp_path, failing="nnssl_train_dino")
    assert run_demo(tmp_path, monkeypatch, commands) == 1
    assert len(commands.calls) == 2 and "goes on from what is done" in capsys.readouterr().out


def test_the_commands_are_shown_as_they_can_be_typed(tmp_path, few, monkeypatch, capsys):
    root = tmp_path / "my demo"
    commands = FakeCommands(root)
    run_demo(root, monkeypatch, commands)
    shown = [part.split("\n\n")[0] for part in capsys.readouterr().out.split("$ ")[1:]]
    typed = [shlex.split(text.replace(" \\\n", " ")) for text in shown[:4]]
    assert typed == [[name, *words] for name, words in commands.calls[:4]]


def test_without_training_the_shipped_model_registers(tmp_path, few, monkeypatch, capsys):
    shipped = tmp_path / "body"
    monkeypatch.setattr(demo, "packaged_models", lambda: [shipped])
    commands = FakeCommands(tmp_path)
    commands.demo = demo.Demo(tmp_path, 0, 0, None)
    assert run_demo(tmp_path, monkeypatch, commands, "-minutes", "0") == 0
    assert [name for name, _ in commands.calls] == ["nnssl_register"] * 2
    features = [words[words.index("--features") + 1] for _, words in commands.calls]
    words = commands.calls[1][1]
    assert features == ["mind", "dino+mind"] and words[words.index("--model") + 1] == "body"
    run_demo(tmp_path, monkeypatch, commands, "-minutes", "0")
    assert len(commands.calls) == 2
    out = capsys.readouterr().out
    assert "[3/3] Registration with dino+mind" in out and "progress.png" not in out
    assert "nnssl_register -f FIXED.nii.gz -m MOVING.nii.gz" in out and "report.html" in out


@pytest.mark.slow
def test_the_real_demo_improves_every_kind_of_pair(tmp_path, capsys):
    assert main(["-o", str(tmp_path / "demo"), "-minutes", "1"], name="nnssl_demo") == 0
    done = demo.Demo(tmp_path / "demo", 1, 0, None)
    for kind in done.kinds:
        told = read_json(done.registered(kind) / "summary.json")
        assert told["failed"] == {} and told["mean"]["folding_percent"] < 0.5
        assert told["mean"]["dice"] > told["mean"]["dice_initial"] + 0.1
        assert len(list(done.registered(kind).glob("*.png"))) == 4
    assert json.loads((done.registered("mind") / "summary.json").read_text())["mean"]["dice"] > 0.85
    assert (done.model / "progress.png").is_file() and list(done.model.glob("pca_*.png"))
    assert "landmarks off" in capsys.readouterr().out
