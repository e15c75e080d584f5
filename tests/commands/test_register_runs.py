"""Long runs of nnssl_register: what is done stays done, parts add up, stops and failures leave nothing half-written."""

import csv
import json
import os
import threading
from argparse import ArgumentParser
from importlib.metadata import PackageNotFoundError

import numpy as np
import pytest
import torch

from nnssl_reg.commands import pair_outputs
from nnssl_reg.commands import register as command
from nnssl_reg.commands.arguments import COMMANDS
from nnssl_reg.commands.entry import main
from nnssl_reg.commands.finished_pairs import scores_from
from nnssl_reg.commands.pair_features import FeatureStore
from nnssl_reg.commands.pair_reader import PairReader
from nnssl_reg.commands.registration_setup import KINDS
from nnssl_reg.evaluation.summary import PairResult, Scores, metrics_csv, scores_told, summarise
from nnssl_reg.geometry.grid import Grid
from nnssl_reg.geometry.image import Image
from nnssl_reg.imageio.images import read_labels, write_image
from nnssl_reg.imageio.json_files import read_json, write_json
from nnssl_reg.imageio.pairs import Pair
from nnssl_reg.imageio.transforms import read_field
from nnssl_reg.planning.regularisation import REGULARISATION
from nnssl_reg.pretraining import checkpoint

NAMES = ("a", "b", "c")


def label_of(image: Image) -> Image:
    return Image((image.array > 100).astype(np.uint8), image.grid)


@pytest.fixture(scope="module")
def originals(turned_grid, body_image) -> dict[str, Image]:
    return {
        name: body_image(turned_grid((15, 14, 13), 7.0, (0, 2 * i, 0)), shortest_mm=25 + 2 * i) for i, name in enumerate(NAMES)
    }


@pytest.fixture
def study(tmp_path, originals, monkeypatch):
    """a, b and c with labels, and the pairs a-b, b-c and c-a; computed: ids of the pairs that a run computes."""
    monkeypatch.delenv("nnssl_results", raising=False)
    for name, image in originals.items():
        write_image(tmp_path / f"{name}.nii.gz", image)
        write_image(tmp_path / f"{name}_label.nii.gz", label_of(image))
    pairs = [{"id": f + m, "fixed": f"{f}.nii.gz", "moving": f"{m}.nii.gz", "fixed_label": f"{f}_label.nii.gz",
              "moving_label": f"{m}_label.nii.gz"} for f, m in ("ab", "bc", "ca")]  # fmt: skip
    write_json(tmp_path / "pairs.json", pairs)
    return tmp_path


@pytest.fixture
def computed(monkeypatch) -> list[str]:
    """The pairs that are computed, by the first letters of their files."""
    seen, real = [], command.register_pair

    def counted(pair, *rest, **more):
        seen.append("".join(side.name.rpartition(os.sep)[2][0] for side in (pair.fixed, pair.moving)))
        return real(pair, *rest, **more)

    monkeypatch.setattr(command, "register_pair", counted)
    return seen


def register(study, *flags) -> int:
    quick = ("--init", "identity", "--no_figures", "--no_pbar", "-device", "cpu", "--set", "registration.iterations=2")
    chosen = ("-i", study / "pairs.json") if "-f" not in flags else ()
    return main([*map(str, (*chosen, "-o", study / "out", *quick, *flags))], name="nnssl_register")


def rows(study, name="metrics.csv") -> list[dict]:
    return list(csv.DictReader((study / "out" / name).read_text().splitlines()))


def test_a_second_run_computes_nothing_and_tells_the_same(study, computed, capsys):
    assert register(study) == 0 and computed == ["ab", "bc", "ca"]
    first = rows(study)
    capsys.readouterr()
    assert register(study) == 0 and len(computed) == 3
    assert "3 of them are there already" in capsys.readouterr().out
    assert rows(study) == first and all(float(row["dice"]) > 0.5 for row in first)


def change_a_file(study):
    os.utime(study / "c_label.nii.gz", (1, 1))


def lose_an_output(study):
    (study / "out" / "bc_field.nii.gz").unlink()


def cut_a_sidecar(study):
    path = study / "out" / "ca.json"
    path.write_text(path.read_text()[:100])


@pytest.mark.parametrize(("between", "flags", "again"), [
    (change_a_file, (), ["bc", "ca"]), (lose_an_output, (), ["bc"]), (cut_a_sidecar, (), ["ca"]),
    (None, ("--overwrite",), ["ab", "bc", "ca"]), (None, ("--regularisation", "strong"), ["ab", "bc", "ca"]),
    (None, ("--diffeomorphic",), ["ab", "bc", "ca"]), (None, ("--inverse",), ["ab", "bc", "ca"]),
    (None, ("--regularisation", "medium"), []), (None, ("-limit", "1"), []),
])  # fmt: skip
def test_only_what_is_not_there_in_the_same_way_is_computed(study, computed, between, flags, again):
    assert register(study) == 0
    if between is not None:
        between(study)
    computed.clear()
    assert register(study, *flags) == 0 and computed == again


def test_parts_share_the_pairs_and_a_run_without_parts_gathers_them(study, computed):
    for part, mine in (("1", ["bc"]), ("0", ["ab", "ca"])):
        computed.clear()
        assert register(study, "-num_parts", "2", "--part_id", part) == 0 and computed == mine
        assert [row["id"] for row in rows(study, f"metrics_part{part}of2.csv")] == mine
        assert json.loads((study / "out" / f"summary_part{part}of2.json").read_text())["registered"] == len(mine)
    assert not (study / "out" / "metrics.csv").exists()
    computed.clear()
    assert register(study) == 0 and computed == [] and [row["id"] for row in rows(study)] == ["ab", "bc", "ca"]
    assert register(study, "-num_parts", "9", "-part_id", "8") == 0 and rows(study, "metrics_part8of9.csv") == []


@pytest.mark.parametrize("numbers", [("0", "0"), ("2", "2"), ("2", "-1")])
def test_parts_that_do_not_exist_are_refused(study, capsys, numbers):
    assert register(study, "-num_parts", numbers[0], "-part_id", numbers[1]) == 1
    assert "the ids are 0 ... N - 1" in capsys.readouterr().err


def test_ctrl_c_keeps_what_is_finished_and_the_next_run_does_the_rest(study, computed, monkeypatch):
    real = command.register_pair
    monkeypatch.setattr(command, "register_pair", lambda *a, **k: stopped() if len(computed) == 1 else real(*a, **k))
    assert register(study) == 130
    assert {path.name.split("_")[0].split(".")[0] for path in (study / "out").iterdir()} == {"ab"}
    monkeypatch.setattr(command, "register_pair", real)
    computed.clear()
    assert register(study) == 0 and computed == ["bc", "ca"] and len(rows(study)) == 3


def stopped():
    raise KeyboardInterrupt


def test_a_pair_that_cannot_be_written_is_a_row_and_leaves_nothing(study, monkeypatch):
    real = command.write_pair

    def full(folder, pair, **more):
        if pair.id == "bc":
            (folder / "bc_warped.nii.gz").write_text("half of it")
            raise OSError("No space left on device")
        return real(folder, pair, **more)

    monkeypatch.setattr(command, "write_pair", full)
    assert register(study) == 1
    assert [row["error"] for row in rows(study)] == ["", "No space left on device", ""]
    assert not [path for path in (study / "out").iterdir() if "bc" in path.name]


def test_transforms_that_cannot_be_written_beside_scores_and_pictures_leave_nothing(study, monkeypatch):
    real = pair_outputs.write_transforms

    def full(folder, pair, *more):
        if pair.id == "bc":
            raise OSError("No space left on device")
        return real(folder, pair, *more)

    monkeypatch.setattr(pair_outputs, "write_transforms", full)
    assert register(study) == 1
    assert [row["error"] for row in rows(study)] == ["", "No space left on device", ""]
    assert not [path for path in (study / "out").iterdir() if "bc" in path.name]


def test_a_sidecar_of_other_settings_goes_before_its_files_are_replaced(study):
    assert register(study) == 0
    before = json.loads((study / "out" / "ab.json").read_text())["settings"]["plans"]["registration"]["smoothness"]
    assert register(study, "--regularisation", "strong") == 0
    after = json.loads((study / "out" / "ab.json").read_text())["settings"]["plans"]["registration"]["smoothness"]
    assert np.isclose(after, 3 * before)


def test_the_reader_is_one_pair_ahead_and_reads_a_shared_image_once(study):
    read = []

    class Store(FeatureStore):
        """Notes what is read; keeps nothing, as nothing is encoded."""

        def __init__(self):
            self._kept, self._lock, self.volume = {}, threading.Lock(), None

        def read(self, path):
            read.append(path.name[0])
            return super().read(path)

    pairs = [Pair(f + m, study / f"{f}.nii.gz", study / f"{m}.nii.gz") for f, m in ("ab", "bc", "ca", "ab")]
    with PairReader(pairs, Store()) as reader:
        for i, (pair, images) in enumerate(reader):
            assert len(read) <= i + 3 and images.result().fixed.name == str(pair.fixed)  # a pair brings one new image here
    assert read == ["a", "b", "c", "a", "b"]


def test_masks_are_taken_from_flags_and_bad_ones_are_named(study, capsys):
    image = read_labels(study / "a_label.nii.gz")
    moved = Grid(image.grid.shape, image.grid.affine + np.diag([3, 0, 0, 0]))
    masks = {"empty": (0 * image.array, image.grid), "body": (image.array, image.grid), "moved": (image.array, moved)}
    for name, mask in masks.items():
        write_image(study / f"{name}.nii.gz", Image(*mask))
    files = ("-f", study / "a.nii.gz", "-m", study / "b.nii.gz")
    assert register(study, *files, "-fmask", study / "body.nii.gz", "-mmask", study / "b_label.nii.gz") == 0
    inputs = json.loads((study / "out" / "a__b.json").read_text())["settings"]["inputs"]["files"]
    assert inputs["fixed_mask"]["name"] == "body.nii.gz" and inputs["moving_mask"]["name"] == "b_label.nii.gz"
    masked = read_field(study / "out" / "a__b_field.nii.gz").vectors_mm
    assert register(study, *files) == 0
    assert (read_field(study / "out" / "a__b_field.nii.gz").vectors_mm - masked).abs().max() > 0.1
    bad = (
        ("-fmask", "empty", "the mask is empty"),
        ("-mmask", "moved", "on another grid"),
        ("-fmask", "none", "does not exist"),
    )
    for flag, name, answer in bad:
        assert register(study, *files, flag, study / f"{name}.nii.gz") == 1
        said = capsys.readouterr()
        assert answer in said.out + said.err and f"{name}.nii.gz" in said.out + said.err
    assert register(study, "-fmask", study / "body.nii.gz") == 1 and "not both" in capsys.readouterr().err


def test_the_console_says_which_features_and_numbers_are_used(study, capsys):
    assert register(study, "--features", "mind", "--regularisation", "weak", "--diffeomorphic", "-limit", "1") == 0
    said = capsys.readouterr().out
    assert "Features: MIND-SSC (24 channels; radius, dilation 1, 1 and 0, 2)" in said and " mm, cells of" in said
    assert "2 iterations of Adam" in said and "diffeomorphic" in said and "initial alignment identity" in said
    told = json.loads((study / "out" / "ab.json").read_text())
    assert 0 <= told["diffeomorphic"]["mean_mm_from_the_field_found"] < 3 and told["scores"]["folding_percent"] == 0


def test_choices_on_the_command_line_are_those_of_the_tables():
    parser = ArgumentParser()
    COMMANDS["nnssl_register"].add_arguments(parser)
    choices = {action.dest: action.choices for action in parser._actions}
    assert tuple(choices["regularisation"]) == tuple(REGULARISATION) and set(choices["features"]) == set(KINDS)


def test_scores_survive_the_sidecar_also_where_they_are_not_known():
    told = {"dice": 0.5, "label_dice": {"1": 0.5, "2": None}, "lost_labels": [2], "hd95_mm": None}
    scores = scores_from(told, "x.json")
    assert scores.dice == 0.5 and np.isnan(scores.label_dice["2"]) and scores.lost_labels == (2,) and np.isnan(scores.hd95_mm)
    assert isinstance(scores, Scores)


def test_a_label_that_was_lost_is_as_far_in_the_sidecar_as_in_the_table(tmp_path):
    scores = Scores(dice=0.5, hd95_l2r=np.inf, lost_labels=(3,))
    by_label = {"label_dice_initial": {"3": 0.4}, "label_dice": {"3": np.nan}}
    write_json(tmp_path / "x.json", scores_told(scores) | by_label)
    read = scores_from(read_json(tmp_path / "x.json"), "x.json")
    assert read.hd95_l2r == np.inf and np.isnan(read.tre_mm) and read.lost_labels == (3,)
    (first, again) = (metrics_csv([PairResult("x", "f", "m", found, 1.0)]).splitlines()[1] for found in (scores, read))
    assert first.replace(",,", ",") == again.replace(",,", ",") and ",inf," in first
    assert summarise([PairResult("x", "f", "m", read, 1.0)])["mean"]["hd95_l2r"] == "inf"


def test_a_package_that_is_not_installed_has_a_version_all_the_same(monkeypatch):
    def missing(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(checkpoint, "version", missing)
    assert checkpoint.versions(("nnssl_reg",)) == {"nnssl_reg": "not installed"}


def test_a_pair_that_the_gpu_has_no_memory_for_gets_a_row_with_the_way_out_and_the_rest_goes_on(study, monkeypatch):
    real = command.register_pair

    def full(pair, *rest, **more):
        if pair.fixed.name.endswith("b.nii.gz"):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 8 GiB")
        return real(pair, *rest, **more)

    monkeypatch.setattr(command, "register_pair", full)
    assert register(study) == 1
    rows = csv.DictReader((study / "out" / "metrics.csv").read_text().splitlines())
    errors = {row["id"]: row["error"] for row in rows}
    assert errors["ab"] == errors["ca"] == "" and "Tried to allocate 2.00 GiB. Use -device cpu, or coarser" in errors["bc"]


def test_the_bar_names_the_stage_of_the_pair_that_is_computed(study, capsys):
    quick = ("--init", "identity", "--no_figures", "-device", "cpu", "--set", "registration.iterations=2", "-limit", "1")
    assert main(["-i", str(study / "pairs.json"), "-o", str(study / "out"), *quick], name="nnssl_register") == 0
    shown = [line for line in capsys.readouterr().err.split("\r") if "pair" in line]
    stages = [next((s for s in ("features", "convex adam", "field") if s in line), None) for line in shown if " 0/1 " in line]
    assert list(dict.fromkeys(filter(None, stages))) == ["features", "convex adam", "field"]
    assert "field" not in shown[-1] and "1/1" in shown[-1]
