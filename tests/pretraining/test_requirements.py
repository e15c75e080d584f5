"""All that is wrong with a configuration is said at once, before training starts."""

from dataclasses import replace

import pytest
import torch

from nnssl_reg.pretraining.requirements import require_trainable


def test_a_good_configuration_passes(configuration):
    require_trainable(configuration)


def test_further_views_are_whole_patches_inside_their_crops(configuration, plan):
    wrong = replace(plan, local_crops=1, local_crop_size=(4, 6, 4), global_scale=(0.6, 1.2), global_crops=-1)
    with pytest.raises(ValueError) as error:
        require_trainable(replace(configuration, pretraining=wrong))
    for part in ("local_crop_size is (4, 6, 4)", "global_scale is (0.6, 1.2)", "global_crops is -1"):
        assert part in str(error.value)
    unused = replace(plan, local_crop_size=(0, 0, 0))
    require_trainable(replace(configuration, pretraining=unused))


def test_weights_in_shares_need_a_torch_that_has_them_and_more_than_one_process(configuration, plan, monkeypatch):
    sharded = replace(configuration, pretraining=replace(plan, sharded=True))
    require_trainable(sharded, 2)
    monkeypatch.setattr(torch, "__version__", "2.5.1+cu124")
    require_trainable(sharded)
    require_trainable(configuration, 2)
    with pytest.raises(ValueError, match=r"sharded is True but should be false with torch 2.5.1.*2.6 or newer.*--set"):
        require_trainable(sharded, 2)


def test_every_value_that_cannot_be_trained_with_is_named(configuration, plan):
    plan = replace(plan, crop_size=(8, 10, 8), batch_size=0, centering="median", mask_ratio=(0.6, 0.4), teacher_momentum=1.5)
    network = replace(configuration.network, num_heads=5)
    with pytest.raises(ValueError) as error:
        require_trainable(replace(configuration, pretraining=plan, network=network))
    parts = (
        "crop_size is (8, 10, 8)",
        "(4, 4, 4)",
        "batch_size is 0",
        "median",
        "mask_ratio is (0.6, 0.4)",
        "teacher_momentum",
    )
    for part in (*parts, "embed_dim is 24"):
        assert part in str(error.value)
