"""The search for settings: it finds optima that are known, never repeats itself, and stays within the budget."""

from dataclasses import replace

import numpy as np
import pytest

from nnssl_reg.geometry.grid import Grid
from nnssl_reg.planning.image_plan import RegistrationSettings, plan_images
from nnssl_reg.planning.tuning_search import (
    ORDER,
    Parameter,
    coordinate_search,
    is_affordable,
    search_space,
    tunable,
    values_at,
)

PLANS = plan_images([Grid((160, 130, 150), np.diag([2.0, 2.0, 2.0, 1.0]))])
SPACE = [Parameter(f"registration.p{i}", tuple(range(5)), 2) for i in range(3)]


def search(score, trials=60, gain=0.0, seed=0, allowed=lambda position: True):
    asked = []

    def told(position):
        asked.append(position)
        return score(position)

    return coordinate_search(SPACE, told, trials, gain, np.random.default_rng(seed), allowed), asked


def bowl(position) -> float:
    """Best at (4, 1, 3)."""
    return -float(np.square(np.array(position) - (4, 1, 3)).sum())


def test_the_best_of_a_smooth_score_is_found_from_the_planned_values_on_and_nothing_is_asked_twice():
    best, asked = search(bowl, trials=30)
    assert best == (4, 1, 3) and asked[0] == (2, 2, 2)
    assert len(asked) == len(set(asked)) == 30


def test_random_trials_find_what_single_steps_cannot():
    def two_hills(position):
        return 10.0 if position == (0, 4, 2) else bowl(position)

    assert search(two_hills, trials=5**3)[0] == (0, 4, 2)
    assert len(search(two_hills, trials=1000)[1]) <= 5**3  # all there are


def test_a_gain_too_small_to_count_keeps_the_planned_values():
    assert search(lambda position: 1e-4 * bowl(position), gain=0.01)[0] == (2, 2, 2)


def test_the_same_seed_makes_the_same_search_and_no_score_ends_it():
    assert search(bowl, seed=3)[1] == search(bowl, seed=3)[1]
    best, asked = search(lambda position: None if position != (2, 2, 2) else 0.0)
    assert best == (2, 2, 2) and len(asked) == 2


def test_what_is_not_allowed_is_never_asked():
    best, asked = search(bowl, allowed=lambda position: position[0] <= 3)
    assert best == (3, 1, 3) and max(position[0] for position in asked) == 3


def test_the_space_lies_around_the_plans_and_its_planned_position_gives_them_back():
    space = search_space(PLANS, ORDER)
    values = values_at(space, tuple(parameter.planned for parameter in space))
    assert values["registration.smoothness"] == PLANS.registration.smoothness
    assert values["features.mind_spacing_mm"] == PLANS.features.mind_spacing_mm
    for parameter in space:
        assert len(set(parameter.values)) == len(parameter.values) > 1
    assert all(isinstance(v, int) for v in space[ORDER.index("registration.iterations")].values)


def test_parameters_that_the_features_do_not_have_are_not_tuned():
    coarse = replace(PLANS, features=replace(PLANS.features, mind_stride=(2, 2, 2)))
    assert not [name for name in tunable(coarse, "dino") if "mind" in name or "voxel" in name]
    assert "features.components" in tunable(coarse, "dino") and "features.components" not in tunable(coarse, "mind")
    assert tunable(coarse, "dino+mind") == list(ORDER)


@pytest.mark.parametrize(("stride", "iterations"), [((1, 1, 1), 20), ((2, 2, 2), 0)])
def test_the_refinement_at_voxels_is_tuned_only_where_there_is_one(stride, iterations):
    plans = RegistrationSettings(replace(PLANS.features, mind_stride=stride),
                                 replace(PLANS.registration, voxel_iterations=iterations))  # fmt: skip
    assert not [name for name in tunable(plans, "mind") if "voxel" in name]


def test_the_planned_values_are_affordable_and_a_search_of_many_times_the_work_is_not():
    r = PLANS.registration
    assert is_affordable(PLANS, {})
    dear = {"registration.search_radius_mm": 2 * r.search_radius_mm, "registration.coarse_spacing_mm": r.coarse_spacing_mm / 2}
    assert not is_affordable(PLANS, dear)
    assert is_affordable(replace(PLANS, registration=replace(r, search_radius_mm=dear["registration.search_radius_mm"])),
                         {"registration.search_radius_mm": r.search_radius_mm})  # fmt: skip
