"""Plans for images that a model was not trained on: cubes for tokens, no finer than the images, as many as can be afforded."""

import math

import numpy as np
import pytest

from nnssl_reg.geometry.grid import Grid
from nnssl_reg.planning.image_plan import plan_images, plan_images_for
from nnssl_reg.planning.plans import ChannelPlan, ImagePlan, NetworkPlan
from nnssl_reg.planning.rules_registration import DETAIL_MM, MOST_CELLS
from nnssl_reg.planning.rules_shared import SMALL_SHIFTED_TOKENS, SMALL_TOKENS, most_tokens

CHANNELS = {"0": ChannelPlan("CT", "ct", -150.0, 250.0, -500.0), "1": ChannelPlan("MR", "mr", None, None, None)}
TRAINED = ImagePlan((2.5, 2.5, 2.5), (120, 100, 130), 10.0, CHANNELS)
CUBES, FLAT = NetworkPlan(192, 8, 4, (4, 4, 4), 4, 0.0), NetworkPlan(192, 8, 4, (4, 4, 1), 4, 0.0)
GB = (8, 80)


def grid(shape, spacing) -> Grid:
    return Grid(shape, np.diag([*spacing, 1.0]))


IMAGES = {
    "abdomen CT": grid((256, 210, 147), (1.3, 1.3, 3.0)),
    "thick slices": grid((256, 256, 36), (1.25, 1.25, 7.7)),
    "brain": grid((160, 192, 160), (1, 1, 1)),
    "hippocampus": grid((35, 50, 36), (1, 1, 1)),
    "whole body": grid((512, 512, 900), (0.9, 0.9, 2.0)),
    "one slab": grid((300, 300, 8), (0.8, 0.8, 5.0)),
}
images = pytest.mark.parametrize("image", IMAGES.values(), ids=IMAGES)


def tokens(plan, network) -> int:
    return math.prod(math.ceil(n / p) for n, p in zip(plan.image.median_shape, network.patch_size))


@images
@pytest.mark.parametrize("network", [CUBES, FLAT], ids=["cubes", "flat"])
@pytest.mark.parametrize("memory", GB)
def test_tokens_are_cubes_bounded_in_number_and_their_voxels_no_smaller_than_the_images(image, network, memory):
    plan = plan_images_for(TRAINED, network, [image, image], memory)
    edges = np.array(plan.image.spacing_mm) * network.patch_size
    assert np.allclose(edges, edges[0], rtol=2e-3)
    volume = math.prod(image.extent_mm)
    assert volume / edges[0] ** 3 < 1.01 * most_tokens(memory)  # whole tokens, before rounding up at the edges
    assert math.prod(plan.image.spacing_mm) > 0.99 * math.prod(image.spacing_mm)
    encoded = tokens(plan, network) * math.prod(plan.features.token_shifts)
    assert encoded <= (131_072 if memory == 80 else SMALL_SHIFTED_TOKENS) or plan.features.token_shifts == (1, 1, 1)


@images
def test_more_memory_never_gives_coarser_tokens(image):
    small, large = (plan_images_for(TRAINED, CUBES, [image], memory).image.spacing_mm[0] for memory in GB)
    assert large <= small


def test_the_spacing_that_comes_out_can_be_computed_by_hand():
    brain = plan_images_for(TRAINED, CUBES, [IMAGES["brain"]], 8).image.spacing_mm
    assert brain == pytest.approx([np.cbrt(160 * 192 * 160 / SMALL_TOKENS) / 4] * 3, abs=1e-3)
    assert plan_images_for(TRAINED, CUBES, [IMAGES["hippocampus"]], 8).image.spacing_mm == (1.0, 1.0, 1.0)
    thick = plan_images_for(TRAINED, CUBES, [IMAGES["one slab"]], 80).image.spacing_mm
    assert thick == pytest.approx([np.cbrt(0.8 * 0.8 * 5.0)] * 3, abs=1e-3)


@images
def test_mind_and_registration_are_planned_as_without_a_model_and_normalisation_is_the_models(image):
    plan, own = plan_images_for(TRAINED, CUBES, [image, image]), plan_images([image, image])
    assert plan.registration == own.registration
    assert {k: v for k, v in vars(plan.features).items() if k not in ("window_size", "token_shifts")} == {
        k: v for k, v in vars(own.features).items() if k not in ("window_size", "token_shifts")
    }
    assert plan.image.channels == CHANNELS and all(w % p == 0 for w, p in zip(plan.features.window_size, CUBES.patch_size))


def test_on_a_cpu_an_image_is_encoded_in_about_one_window():
    plan = plan_images_for(TRAINED, CUBES, [IMAGES["abdomen CT"]], 8)
    assert math.prod(w // 4 for w in plan.features.window_size) <= SMALL_TOKENS
    assert tokens(plan, CUBES) < 1.3 * SMALL_TOKENS


def test_a_small_volume_gets_shifted_passes_and_a_large_one_on_a_cpu_none():
    assert plan_images_for(TRAINED, CUBES, [IMAGES["hippocampus"]]).features.token_shifts == (2, 2, 2)
    assert plan_images_for(TRAINED, CUBES, [IMAGES["abdomen CT"]]).features.token_shifts == (1, 1, 1)


def test_storage_order_and_direction_change_nothing():
    turned = Grid((147, 256, 210), np.array([[0, -1.3, 0, 9.0], [0, 0, 1.3, 0], [3.0, 0, 0, 5], [0, 0, 0, 1]]))
    assert plan_images_for(TRAINED, CUBES, [turned]).image == plan_images_for(TRAINED, CUBES, [IMAGES["abdomen CT"]]).image


def test_every_choice_has_a_reason():
    reasons = plan_images_for(TRAINED, CUBES, [IMAGES["abdomen CT"]]).reasons
    assert {
        "image.spacing_mm",
        "image.channels",
        "image.crop_margin_mm",
        "features.window_size",
        "features.token_shifts",
    } <= set(reasons)
    assert "8,192 tokens" in reasons["image.spacing_mm"] and all(len(reason) > 20 for reason in reasons.values())


@pytest.mark.parametrize("size", [1, 20], ids=["body", "mouse"])
@images
def test_cells_of_hand_made_features_are_as_fine_as_the_images_and_bounded_in_number(image, size):
    """Also of animals, a twentieth as large in finer voxels."""
    small = Grid(image.shape, image.affine / [size, size, size, 1])
    features = plan_images([small, small]).features
    assert len(set(features.mind_spacing_mm)) == 1  # cubes
    cells = math.prod(small.extent_mm) / math.prod(np.multiply(features.mind_spacing_mm, features.mind_stride))
    assert cells < 1.2 * MOST_CELLS  # as if a quarter of a millimetre were not rounded up
    own = math.prod(small.spacing_mm) ** (1 / 3)
    finer = own if math.prod(image.shape) < 64**3 else min(own, max(own / 2, DETAIL_MM))
    assert features.mind_spacing_mm[0] > 0.95 * finer
    if cells < 0.5 * MOST_CELLS:  # nothing but the images makes them coarser
        assert features.mind_spacing_mm[0] < finer + 0.25


def test_coarse_images_are_seen_at_the_spacing_of_fine_ones_if_their_cells_stay_few():
    """Chests with 3 x 3 x 5 mm have organs as small as others."""
    chest, body, scout = (grid(*given) for given in (((136, 136, 41), (3, 3, 5)), ((130, 130, 330), (4, 4, 4)),
                                                     ((80, 68, 68), (9, 9, 9))))  # fmt: skip
    assert plan_images([chest, chest]).features.mind_spacing_mm == (DETAIL_MM,) * 3
    assert DETAIL_MM < plan_images([body, body]).features.mind_spacing_mm[0] < 4
    assert plan_images([scout, scout]).features.mind_spacing_mm == (4.5,) * 3  # there is nothing in less than half a voxel
    few = grid((40, 34, 34), (9, 9, 9))  # every voxel is a cell
    features = plan_images([few, few]).features
    assert features.mind_spacing_mm == (9.0,) * 3 and features.mind_stride == (1, 1, 1)
