"""--set section.name=value: read as the field's type, or refused with what was meant."""

from dataclasses import replace

import numpy as np
import pytest

from nnssl_reg.geometry.grid import Grid
from nnssl_reg.geometry.image import Image
from nnssl_reg.planning.fingerprint import case_fingerprint, merge
from nnssl_reg.planning.overrides import apply_overrides, with_steps
from nnssl_reg.planning.planner import plan
from nnssl_reg.planning.plans import Configuration


@pytest.fixture(name="configuration")
def planned() -> Configuration:
    rng = np.random.default_rng(0)
    image = Image(rng.uniform(0, 100, (1, 40, 50, 40)).astype(np.float32), Grid((40, 50, 40), np.eye(4)))
    measured = {"Case_0001": case_fingerprint(image, "0", "MR")}
    configuration = plan(merge("Dataset999_Noise", measured, {"0": "MR"}), 8).configurations["3d_fullres"]
    steps = {"steps": 1000, "steps_per_epoch": 100, "warmup_steps": 100, "teacher_temperature_steps": 400}
    return replace(configuration, pretraining=replace(configuration.pretraining, **steps))


def test_values_are_read_as_the_fields_type(configuration):
    texts = ["pretraining.steps=500", "pretraining.learning_rate=.0005", "pretraining.weight_decay=1e-2"]
    texts += ["pretraining.gradient_clip=1", "pretraining.centering=centre", "registration.init = identity"]
    changed = apply_overrides(configuration, texts)
    plan = changed.pretraining
    assert (plan.steps, plan.learning_rate, plan.weight_decay, plan.gradient_clip) == (500, 0.0005, 0.01, 1.0)
    assert isinstance(plan.gradient_clip, float)
    assert plan.centering == "centre" and changed.registration.init == "identity"
    assert configuration.pretraining.steps == 1000


@pytest.mark.parametrize("text", ["24,32,40", "(24, 32, 40)", "[24,32,40]"])
def test_a_tuple_is_written_with_commas(configuration, text):
    assert apply_overrides(configuration, [f"pretraining.crop_size={text}"]).pretraining.crop_size == (24, 32, 40)


def test_one_number_serves_all_axes(configuration):
    assert apply_overrides(configuration, ["network.patch_size=2"]).network.patch_size == (2, 2, 2)


def test_pairs_are_written_in_brackets(configuration):
    changed = apply_overrides(configuration, ["features.mind_scales=[[1, 2], [0, 1]]"])
    assert changed.features.mind_scales == ((1, 2), (0, 1))


def test_the_last_of_two_changes_counts_and_the_reason_says_so(configuration):
    changed = apply_overrides(configuration, ["pretraining.steps=500", "pretraining.steps=700"])
    assert changed.pretraining.steps == 700
    assert changed.reasons["pretraining.steps"] == "Set to 700 on the command line."
    assert changed.network == configuration.network


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("pretraining.step=5", "Did you mean pretraining.steps"),
        ("steps=5", "no 'steps'"),
        ("pretraining=5", "no 'pretraining'"),
        ("reasons.steps=5", "no 'reasons.steps'"),
        ("image.channels=5", "no 'image.channels'"),
        ("pretraining.steps", "expected section.name=value"),
        ("pretraining.steps=many", 'should be int, but is "many"'),
        ("pretraining.steps=1.5", "should be int, but is 1.5"),
        ("pretraining.crop_size=32,32", "should have 3 values, but has 2"),
    ],
)
def test_what_cannot_be_set_is_said_with_the_way_out(configuration, text, said):
    with pytest.raises(ValueError) as error:
        apply_overrides(configuration, [text])
    assert said in str(error.value) and f"--set {text}" in str(error.value)


def test_all_mistakes_are_said_at_once(configuration):
    with pytest.raises(ValueError) as error:
        apply_overrides(configuration, ["pretraining.stepz=5", "network.depth=deep", "pretraining.workers=2"])
    assert "stepz" in str(error.value) and "deep" in str(error.value) and "workers" not in str(error.value).split("Did")[0]


def test_schedules_keep_their_share_of_a_run_with_other_steps(configuration):
    short = with_steps(configuration.pretraining, 200)
    assert (short.steps, short.warmup_steps, short.teacher_temperature_steps, short.steps_per_epoch) == (200, 20, 80, 50)
    long = with_steps(configuration.pretraining, 10_000)
    assert (long.warmup_steps, long.teacher_temperature_steps, long.steps_per_epoch) == (1000, 4000, 100)
    assert with_steps(configuration.pretraining, 3).warmup_steps == 1
