"""A moving image whose header lies turned by right angles is found by what it shows, and the result is in its own world."""

import logging
from dataclasses import replace

import numpy as np
import pytest
import torch

from nnssl_reg.commands import pair_start
from nnssl_reg.commands.pair_features import FeatureStore
from nnssl_reg.commands.pair_start import turned_image
from nnssl_reg.commands.pair_types import ImagePair, Side
from nnssl_reg.commands.register_pair import register_pair
from nnssl_reg.evaluation.metrics import dice, label_ids, mean_of
from nnssl_reg.evaluation.phantoms import make_phantom
from nnssl_reg.geometry.affine import AffineTransform
from nnssl_reg.geometry.grid import Grid
from nnssl_reg.geometry.image import FeatureMap, Image
from nnssl_reg.planning.image_plan import plan_images
from nnssl_reg.registration.affine_init import InitialAlignment

TURNS = {"on the side": [[0, -1, 0], [1, 0, 0], [0, 0, 1]],
         "axes in another order": [[0, 0, 1], [1, 0, 0], [0, 1, 0]]}  # fmt: skip


@pytest.fixture(scope="module")
def phantoms():
    affine = np.diag([5.0, 5.0, 5.0, 1.0])
    affine[:3, 3] = (-172.5, -125.0, -125.0)
    return [make_phantom(np.random.default_rng(seed), Grid((70, 51, 51), affine), "CT") for seed in (1, 2)]


def register(phantoms, turn: AffineTransform):
    """Two phantoms registered, the moving one with its label turned."""
    fixed, moving = phantoms
    plans = plan_images([fixed.image.grid, moving.image.grid])
    sides = (Side(fixed.image, "fixed", "CT", fixed.labels),
             Side(turned_image(moving.image, turn), "moving", "CT", turned_image(moving.labels, turn)))  # fmt: skip
    store = FeatureStore("mind", plans.features, None, torch.device("cpu"))
    return register_pair(ImagePair(*sides), store, plans.registration)


def mean_dice(done) -> float:
    warped = done.field.warp(done.moving_label)
    return mean_of(dice(done.fixed_label.array[0], warped.array[0], label_ids(done.fixed_label.array)).values())


@pytest.fixture(scope="module")
def as_it_is(phantoms):
    return register(phantoms, AffineTransform.identity())


def test_patients_that_lie_alike_are_not_turned(as_it_is):
    assert "turned" not in as_it_is.alignment.name
    assert mean_dice(as_it_is) > 0.7


@pytest.mark.parametrize("name", TURNS)
def test_a_turned_patient_is_found_and_the_field_leads_into_its_own_world(phantoms, as_it_is, name, caplog):
    turn = AffineTransform.about(TURNS[name], (30.0, -20.0, 10.0))
    with caplog.at_level(logging.WARNING):
        done = register(phantoms, turn)
    assert "moving lies turned by" in caplog.text and done.alignment.name in done.alignment.costs
    assert "turned by" in done.alignment.name
    assert mean_dice(done) == pytest.approx(mean_dice(as_it_is), abs=0.03)
    points = as_it_is.fixed.grid.points_mm()
    there, here = (points + d.field.vectors_mm for d in (done, as_it_is))
    inside = torch.from_numpy(as_it_is.fixed_label.array[0] > 0)
    apart = (turn.inverse().apply_dense(there) - here).norm(dim=0)[inside]
    assert apart.mean() < 3.0  # mm, voxels being 5 mm and the features' cells 10
    landed = done.inverse(done.moving.grid).apply_to_points(there[:, inside].T[::50].double().numpy())
    assert np.linalg.norm(landed - points[:, inside].T[::50].double().numpy(), axis=1).mean() < 1.0


def test_of_two_turns_the_one_that_resembles_more_before_and_after_is_taken_and_none_that_hardly_gains(monkeypatch):
    turns = [AffineTransform.about(rotation, (0.0, 0.0, 0.0)) for rotation in TURNS.values()]
    image = FeatureMap(torch.zeros(12, 2, 2, 2), Grid((2, 2, 2), np.eye(4)))
    seen = (Image(np.zeros((1, 2, 2, 2), np.float32), image.grid), image)
    as_it_lies = InitialAlignment(AffineTransform.identity(), "affine", {"affine": 0.8})

    def best(coarse, fine):
        costs = iter(fine)
        monkeypatch.setattr(pair_start, "likelier_turns", lambda *arguments: list(zip(turns, coarse)))
        monkeypatch.setattr(pair_start, "initial_alignment",
                            lambda *arguments: replace(as_it_lies, costs={"affine": next(costs)}))  # fmt: skip
        return pair_start.better_turn(seen, seen, as_it_lies)

    assert best((0.128, 0.033), (0.723, 0.712)) is turns[0]  # the other aligns a little better
    assert best((0.05, 0.04), (0.79, 0.70)) is turns[1]
    assert best((0.09, 0.04), (0.79, 0.79)) is None
