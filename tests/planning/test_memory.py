"""Truths about predictions: weights and activations are counted as the real network has them."""

import pytest
import torch
from dynamic_network_architectures.building_blocks.eva import Eva

from nnssl_reg.planning.memory import bytes_per_crop, encoder_parameters, preprocessing_bytes, tokens_of
from nnssl_reg.planning.plans import NetworkPlan


def eva(width: int, depth: int, heads: int) -> Eva:
    return Eva(embed_dim=width, depth=depth, num_heads=heads, ref_feat_shape=(4, 4, 4), use_abs_pos_emb=False,
               init_values=0.1, scale_attn_inner=True)  # fmt: skip


def test_weights_are_counted_as_the_network_has_them():
    for width, depth, heads in ((192, 8, 4), (396, 3, 6)):
        counted = sum(p.numel() for p in eva(width, depth, heads).parameters())
        predicted = encoder_parameters(NetworkPlan(width, depth, heads, (4, 4, 4), 4, 0.0))
        assert predicted == pytest.approx(counted, rel=0.05)


def test_activations_are_predicted_as_autograd_keeps_them():
    network, seen, kept = eva(192, 2, 4), set(), 0

    def note(tensor):
        nonlocal kept
        if tensor.data_ptr() not in seen and not isinstance(tensor, torch.nn.Parameter):
            seen.add(tensor.data_ptr())
            kept += tensor.numel() * tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        network(torch.randn(2, 64, 192, requires_grad=True))
    plan = NetworkPlan(192, 2, 4, (4, 4, 4), 4, 0.0)
    assert 2 * bytes_per_crop(plan, (16, 16, 16), 0, 1024, "float32") == pytest.approx(kept, rel=0.35)


def test_incomplete_tokens_count():
    assert tokens_of((9, 8, 1), (4, 4, 1)) == 3 * 2 * 1


def test_a_finer_target_needs_more_memory():
    coarse, fine = (preprocessing_bytes((100, 100, 100), (2.0, 2.0, 2.0), [(s, s, s)]) for s in (2.0, 1.0))
    assert fine > coarse
