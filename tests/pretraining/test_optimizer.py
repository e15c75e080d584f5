"""AdamW's groups: rates fall with depth, only matrices decay."""

import pytest

from nnssl_reg.pretraining.optimizer import apply_settings, build_optimizer, layer_of
from nnssl_reg.pretraining.schedules import settings_at
from nnssl_reg.pretraining.training_state import start


def test_layers_count_from_the_patch_embedding_to_the_heads():
    names = {"encoder.down_projection.proj.weight": 0, "encoder.register_tokens": 0, "encoder.eva.blocks.0.norm1.weight": 1,
             "encoder.eva.blocks.7.mlp.fc2.bias": 8, "encoder.eva.norm.weight": 9, "patch_head.prototypes": 9}  # fmt: skip
    assert {name: layer_of(name, 8) for name in names} == names


def test_each_parameter_has_its_rate_and_only_matrices_decay(run):
    state = start(run)
    plan = run.configuration.pretraining
    settings = settings_at(2, plan)
    apply_settings(state.optimizer, settings)
    group_of = {id(p): group for group in state.optimizer.param_groups for p in group["params"]}
    names = dict(state.pair.student.named_parameters())
    assert len(group_of) == len(names)
    for name, parameter in names.items():
        group = group_of[id(parameter)]
        assert group["lr"] == pytest.approx(settings.learning_rate * 0.9 ** (3 - layer_of(name, 2)))
        matrix = parameter.ndim > 1 and "token" not in name
        assert group["weight_decay"] == (settings.weight_decay if matrix else 0)


def test_the_same_groups_are_built_in_the_same_order_every_time(run):
    first, second = (build_optimizer(start(run).pair.student, 2, 0.9) for _ in range(2))
    assert [len(g["params"]) for g in first.param_groups] == [len(g["params"]) for g in second.param_groups]
