"""Truths about plans: tokens are near-cubes, crops fit data and memory, every number has a reason and fits its neighbours."""

import math
from dataclasses import fields, is_dataclass, replace

import numpy as np
import pytest

from nnssl_reg.imageio.json_files import read_dataclass, write_json
from nnssl_reg.planning.choice import Choice, section
from nnssl_reg.planning.fingerprint import CaseFingerprint, Fingerprint, merge
from nnssl_reg.planning.memory import GB, encoder_parameters, head_parameters, precision_for, training_bytes
from nnssl_reg.planning.planner import LOWRES_AT_MOST, LOWRES_COVERS, TOO_LITTLE, crop_coverage, plan
from nnssl_reg.planning.plans import PLANS_VERSION, NetworkPlan, Plans
from nnssl_reg.planning.rules_image import MAX_TOKENS, DataSummary, target_spacing
from nnssl_reg.planning.rules_network import network_choices
from nnssl_reg.planning.rules_pretraining import sharding_choice

MEMORIES = (4, 8, 12, 16, 24, 48, 80)


def fingerprint(*cases, channel="MR", minimum=0.0) -> Fingerprint:
    """Of cases (shape, spacing_mm), all foreground."""
    quantiles = np.linspace(minimum, 1000, 257)
    records = {
        f"case{i:03d}": (CaseFingerprint("0", shape, spacing, shape, 1.0, minimum, minimum, 1000.0, 500.0, 200.0), quantiles)
        for i, (shape, spacing) in enumerate(cases)
    }
    return merge("Dataset001_X", records, {"0": channel})


ABDOMEN_CT = fingerprint(*[((256, 212, 140), (1.3, 1.3, 3.0))] * 16, channel="CT", minimum=-125)
ABDOMEN_MR = fingerprint(*[((256, 209, 35), (1.25, 1.25, 7.7))] * 12)
HIPPOCAMPUS = fingerprint(*[((35, 50, 36), (1.0, 1.0, 1.0))] * 160)
BRAIN = fingerprint(*[((136, 176, 134), (1.0, 1.0, 1.0))] * 12)
POOL = fingerprint(
    *[((110, 56, 110), (4.7, 4.7, 3.0))] * 130, *[((50, 60, 92), (3.9, 3.9, 2.5))] * 50, *[((70, 70, 60), (2.0, 2.0, 3.3))] * 70
)
ALL = {"ct": ABDOMEN_CT, "mr": ABDOMEN_MR, "hippocampus": HIPPOCAMPUS, "brain": BRAIN, "pool": POOL}


def fullres(data: Fingerprint, memory: float = 8):
    return plan(data, memory).configurations["3d_fullres"]


def token_mm(configuration) -> np.ndarray:
    return np.array(configuration.network.patch_size) * configuration.image.spacing_mm


def test_tokens_are_near_cubes_for_any_native_spacing():
    rng = np.random.default_rng(0)
    for _ in range(100):
        in_plane, slice_mm = rng.uniform(0.3, 3.0), rng.uniform(0.3, 12.0)
        spacing = rng.permutation([in_plane, in_plane * rng.uniform(0.8, 1.25), slice_mm])
        shape = tuple(int(n) for n in np.maximum(8, 300 / spacing))
        edges = token_mm(fullres(fingerprint((shape, tuple(spacing)))))
        assert edges.max() / edges.min() <= 1.8, (spacing, edges)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("memory", MEMORIES)
def test_every_number_fits_the_others(name, memory):
    for configuration in plan(ALL[name], memory).configurations.values():
        network, pretraining, image = configuration.network, configuration.pretraining, configuration.image
        assert all(c % p == 0 for c, p in zip(pretraining.crop_size, network.patch_size))
        assert all(c <= n for c, n in zip(pretraining.crop_size, image.median_shape))
        assert all(w % p == 0 for w, p in zip(configuration.features.window_size, network.patch_size))
        assert network.embed_dim % network.num_heads == 0 and network.embed_dim // network.num_heads % 6 == 0
        assert training_bytes(network, pretraining, precision_for(memory)) <= memory * GB
        assert pretraining.steps % pretraining.steps_per_epoch == 0
        assert pretraining.warmup_steps <= pretraining.steps / 10 + 1
        assert pretraining.teacher_temperature_steps >= pretraining.steps / 3
        assert pretraining.learning_rate <= 1e-3 and pretraining.batch_size >= 4
        assert pretraining.loss_tokens <= math.prod(c // p for c, p in zip(pretraining.crop_size, network.patch_size))
        registration, features = configuration.registration, configuration.features
        assert 1.9 <= registration.search_radius_mm / registration.coarse_spacing_mm <= 6.1
        cells = np.array(features.mind_spacing_mm) * features.mind_stride
        assert cells.max() / cells.min() < 1.5
        assert all(shift <= patch for shift, patch in zip(features.token_shifts, network.patch_size))


def test_every_field_of_every_section_has_its_reason():
    for configuration in plan(ABDOMEN_CT, 8).configurations.values():
        parts = [(f.name, getattr(configuration, f.name)) for f in fields(configuration)]
        names = {f"{name}.{f.name}" for name, part in parts if is_dataclass(part) for f in fields(part)}
        assert names == set(configuration.reasons)
        assert all(len(reason) > 5 for reason in configuration.reasons.values())


def test_thick_slices_stay_and_the_plane_is_brought_to_their_token():
    configuration = fullres(ABDOMEN_MR)
    assert configuration.image.spacing_mm == (1.925, 1.925, 7.7)
    assert configuration.network.patch_size == (4, 4, 1)
    assert configuration.features.mind_spacing_mm == (1.75, 1.75, 1.75)
    assert configuration.features.mind_stride == (2, 2, 2) and configuration.features.context_share == 0.2


def test_slices_a_little_thick_become_cubes():
    configuration = fullres(ABDOMEN_CT)
    assert configuration.image.spacing_mm == (2.0, 2.0, 2.0) and configuration.network.patch_size == (4, 4, 4)


def test_small_crops_of_tissue_are_planned_at_their_own_spacing_with_a_finer_token_grid():
    configuration = fullres(HIPPOCAMPUS)
    assert configuration.image.spacing_mm == (1.0, 1.0, 1.0)
    assert configuration.features.token_shifts == (2, 2, 2)
    assert list(plan(HIPPOCAMPUS, 8).configurations) == ["3d_fullres"]
    assert fullres(BRAIN).features.token_shifts == (1, 1, 1)


def test_a_mixed_pool_keeps_the_detail_of_its_finer_quarter():
    spacing = fullres(POOL).image.spacing_mm
    assert len(set(spacing)) == 1 and 2.25 <= spacing[0] <= 3.0


def test_a_median_volume_never_has_more_tokens_than_the_published_method_encodes_at_once():
    for edge in (0.1, 0.3, 1.0):
        data = DataSummary.of(fingerprint(((1000, 1000, 1000), (edge, edge, edge))))
        spacing = target_spacing(data).value
        assert 1000**3 * edge**3 / math.prod(4 * s for s in spacing) <= 1.1 * MAX_TOKENS


def test_lowres_is_planned_exactly_where_a_crop_covers_too_little():
    for data in ALL.values():
        configurations = plan(data, 8).configurations
        assert ("3d_lowres" in configurations) == (crop_coverage(configurations["3d_fullres"]) < TOO_LITTLE)
        if "3d_lowres" in configurations:
            covered = crop_coverage(configurations["3d_lowres"])
            spacings = [configuration.image.spacing_mm[0] for configuration in configurations.values()]
            assert covered == pytest.approx(LOWRES_COVERS, rel=0.15) or (
                covered < LOWRES_COVERS and spacings[1] == pytest.approx(LOWRES_AT_MOST * spacings[0])
            )


def test_more_memory_and_more_data_never_mean_a_smaller_network():
    widths = [fullres(ABDOMEN_CT, memory).network.embed_dim for memory in MEMORIES]
    assert widths == sorted(widths) and widths[0] == 192
    many = fingerprint(*[((100, 100, 100), (2.0, 2.0, 2.0))] * 3000)
    assert fullres(many, 80).network.embed_dim > fullres(ABDOMEN_CT, 80).network.embed_dim


def test_several_processes_hold_shares_of_the_two_largest_networks_only():
    many = fingerprint(*[((100, 100, 100), (2.0, 2.0, 2.0))] * 3000)
    planned = {fullres(many, memory).network.embed_dim: fullres(many, memory) for memory in (8, 16, 24, 40)}
    assert {width: found.pretraining.sharded for width, found in planned.items()} == {
        192: False,
        396: False,
        792: False,
        864: True,
    }
    assert "PRIMUS M take 2.9 GB" in planned[864].reasons["pretraining.sharded"]
    assert sharding_choice("L", section(NetworkPlan, network_choices(Choice("L", ""), Choice((4, 4, 4), "")))).value


def test_each_of_several_processes_needs_its_part_of_the_batch_and_its_share_of_the_weights():
    network, pretraining = fullres(BRAIN, 24).network, replace(fullres(BRAIN, 24).pretraining, batch_size=8)
    each = training_bytes(network, replace(pretraining, batch_size=2), "bfloat16")
    assert training_bytes(network, pretraining, "bfloat16", 4) == pytest.approx(each)
    weights = encoder_parameters(network) + head_parameters(network, pretraining)
    shares = training_bytes(network, replace(pretraining, sharded=True), "bfloat16", 4)
    assert each - shares == pytest.approx(3 / 4 * 5 * 4 * weights)  # weights, gradients, two moments, teacher in float32


def test_a_given_spacing_is_kept_and_its_patch_fitted():
    configuration = plan(ABDOMEN_CT, 8, spacing_mm=[1.5, 1.5, 3.0]).configurations["3d_fullres"]
    assert configuration.image.spacing_mm == (1.5, 1.5, 3.0)
    assert configuration.network.patch_size == (4, 4, 2)
    assert "-overwrite_target_spacing" in configuration.reasons["image.spacing_mm"]


@pytest.mark.parametrize("spacing", [[0, 1, 1], [1, -2, 1], [1, math.nan, 1], [math.inf, 1, 1]])
def test_a_senseless_spacing_is_refused(spacing):
    with pytest.raises(ValueError, match="overwrite_target_spacing"):
        plan(BRAIN, 8, spacing_mm=spacing)


def test_a_senseless_memory_is_refused():
    for memory in (0, -3, math.nan):
        with pytest.raises(ValueError, match="gpu_memory_target"):
            plan(BRAIN, memory)


def test_ct_is_normalised_by_the_data_sets_percentiles_and_mr_by_each_image():
    ct, mr = fullres(ABDOMEN_CT).image.channels["0"], fullres(BRAIN).image.channels["0"]
    assert ct.normalization == "ct" and -125 <= ct.lower < ct.upper <= 1000 and ct.foreground_above is None
    assert mr.normalization == "mr" and mr.lower is None
    with_air = fingerprint(((100, 100, 100), (2.0, 2.0, 2.0)), channel="CT", minimum=-1000)
    assert fullres(with_air).image.channels["0"].foreground_above == -500


def test_gram_anchoring_is_for_long_runs_and_begins_when_features_are_learned():
    assert fullres(ABDOMEN_CT, 8).pretraining.gram_weight == 0
    many = fullres(fingerprint(*[((200, 200, 200), (2.0, 2.0, 2.0))] * 3000), 80).pretraining
    assert many.steps > 50_000 and many.gram_weight > 0 and many.steps / 2 < many.gram_start_step < many.steps


def test_a_single_tiny_case_can_be_planned():
    configuration = fullres(fingerprint(((3, 5, 2), (1.0, 1.0, 1.0))))
    assert min(configuration.pretraining.crop_size) >= 4  # one token, padded in training


def test_plans_come_back_from_their_file(tmp_path):
    plans = plan(ABDOMEN_CT, 8)
    write_json(tmp_path / "plans.json", plans)
    assert read_dataclass(Plans, tmp_path / "plans.json", PLANS_VERSION) == plans
