"""Files of tuned settings: what is written is what is used, and what does not fit is named."""

import numpy as np
import pytest

from nnssl_reg.geometry.grid import Grid
from nnssl_reg.imageio.json_files import write_json
from nnssl_reg.planning.image_plan import plan_images
from nnssl_reg.planning.tuned_settings import TunedSettings, read_settings, with_tuned

PLANS = plan_images([Grid((60, 60, 60), np.diag([2.0, 2.0, 2.0, 1.0]))])


def test_values_of_a_file_are_those_of_the_plans_with_the_reason(tmp_path):
    values = {"registration.smoothness": 0.51, "features.mind_spacing_mm": (2.5, 2.5, 3.0), "registration.rounds": 1}
    write_json(tmp_path / "tuned_settings.json", TunedSettings("mind", values, "tuned on 8 pairs", {"tuning": None}))
    found = read_settings(tmp_path / "tuned_settings.json")
    plans = with_tuned(PLANS, found.values, found.reason)
    assert (plans.registration.smoothness, plans.registration.rounds) == (0.51, 1)
    assert plans.features.mind_spacing_mm == (2.5, 2.5, 3.0)
    assert {plans.reasons[name] for name in values} == {"tuned on 8 pairs"}
    assert plans.registration.iterations == PLANS.registration.iterations


def test_another_json_another_version_and_values_that_do_not_fit_are_named(tmp_path):
    path = tmp_path / "other.json"
    write_json(path, {"configurations": {}})
    with pytest.raises(ValueError, match=r"other.json holds no tuned settings"):
        read_settings(path)
    write_json(path, TunedSettings("mind", {}, "", version=99))
    with pytest.raises(ValueError, match="version 99"):
        read_settings(path)
    with pytest.raises(ValueError, match=r"my file: registration.smothness=1: the plans have no .* registration.smoothness"):
        with_tuned(PLANS, {"registration.smothness": 1}, "", "my file")
    with pytest.raises(ValueError, match="my file: .*rounds.* should be int"):
        with_tuned(PLANS, {"registration.rounds": "many"}, "", "my file")
