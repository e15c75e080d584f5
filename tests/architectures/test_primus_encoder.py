"""The encoder: tokens and their grids, rotary positions, masking, names that Primus knows."""

import pytest
import torch
from dynamic_network_architectures.architectures.primus import Primus

from nnssl_reg.architectures.primus_encoder import GRIDS_REMEMBERED, build_encoder


def encoder(seed: int = 0, **changes):
    sizes = {"embed_dim": 48, "depth": 2, "num_heads": 2, "patch_size": (4, 4, 4), "register_tokens": 3} | changes
    return build_encoder(**sizes, generator=torch.Generator().manual_seed(seed)).eval()


def volume(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.rand(1, 1, *shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_there_is_one_token_for_each_patch_and_one_for_the_class():
    tokens = encoder(patch_size=(4, 4, 2))(volume(16, 8, 12))
    assert tokens.class_token.shape == (1, 48)
    assert tokens.patch_tokens.shape == (1, 4 * 2 * 6, 48)
    assert tokens.grid_shape == (4, 2, 6)


def test_a_patch_changes_its_own_cell_of_the_token_map_most():
    net, image = encoder(), volume(16, 16, 16)
    changed = image.clone()
    changed[..., 4:8, 8:12, 12:16] *= -1  # token (1, 2, 3)
    difference = (net(changed).patch_grid() - net(image).patch_grid()).norm(dim=1)[0]
    assert divmod(int(difference.argmax()), 16) == (1, 4 * 2 + 3)


def test_rotary_angles_are_those_of_the_asked_grid_and_count_tokens():
    net = encoder()
    small, large = net.rotary_embedding((2, 3, 4)), net.rotary_embedding((4, 3, 5))
    assert small.shape == (24, 48) and large.shape == (60, 48)
    # the token at index (1, 2, 3) has the same angles in both grids: nothing is stretched
    torch.testing.assert_close(small.view(2, 3, 4, -1)[1, 2, 3], large.view(4, 3, 5, -1)[1, 2, 3])
    # the slowest-turning pair of each axis' bands shows the index itself: sin(index / 10000^(k / bands)), k = 0 -> sin(index)
    torch.testing.assert_close(large.view(4, 3, 5, -1)[:, 0, 0, 0], torch.sin(torch.arange(4.0)))


def test_one_encoder_gives_the_same_as_a_fresh_one_after_seeing_another_grid():
    image, used, fresh = volume(8, 16, 12), encoder(), encoder()
    used(volume(16, 8, 8))
    with torch.inference_mode():
        used(volume(8, 16, 12, seed=5))
    torch.testing.assert_close(used(image).patch_tokens, fresh(image).patch_tokens, rtol=0, atol=0)


def test_remembered_grids_do_not_grow_without_end():
    net = encoder()
    for n in range(1, 3 * GRIDS_REMEMBERED):
        net.rotary_embedding((1, 1, n))
    assert len(net._rotary_of_grid) <= GRIDS_REMEMBERED


def test_a_training_step_works_after_inference_mode_saw_the_same_grid():
    net, image = encoder(), volume(8, 8, 8)
    with torch.inference_mode():
        net(image)
    net(image).patch_tokens.sum().backward()
    assert net.down_projection.proj.weight.grad.abs().sum() > 0


def test_a_token_far_from_the_border_hardly_changes_when_the_crop_grows_by_a_token_on_each_side():
    net, image = encoder(), volume(56, 56, 56)
    large = net(image).patch_grid()[0]  # (D, 14, 14, 14)
    small = net(image[..., 4:-4, 4:-4, 4:-4]).patch_grid()[0]  # (D, 12, 12, 12): token i of it is token i + 1 of the large one
    same = torch.nn.functional.cosine_similarity(large[:, 4:10, 4:10, 4:10], small[:, 3:9, 3:9, 3:9], dim=0)
    assert same.min() > 0.99


def test_masked_tokens_are_replaced_by_the_mask_token():
    net, image = encoder(depth=1), volume(8, 8, 8)
    mask = torch.zeros(1, 2, 2, 2, dtype=torch.bool)
    mask[0, 1, 0, 1] = True
    other = image.clone()
    other[..., 4:8, 0:4, 4:8] = 0.5  # only the masked patch differs
    torch.testing.assert_close(net(image, mask).patch_tokens, net(other, mask).patch_tokens, rtol=0, atol=0)
    assert (net(image, mask).patch_tokens - net(image).patch_tokens).abs().max() > 1e-4
    net(image, mask).patch_tokens.sum().backward()
    assert net.mask_token.grad.abs().sum() > 0


def test_weights_carry_the_names_and_shapes_of_primus():
    net = encoder()
    primus = Primus(1, 48, (4, 4, 4), 2, eva_depth=2, eva_numheads=2, input_shape=(16, 16, 16), num_register_tokens=4,
                    use_abs_pos_embed=False, init_values=0.1, scale_attn_inner=True)  # fmt: skip
    missing, unexpected = primus.load_state_dict(net.state_dict(), strict=False)
    assert not unexpected
    assert all(key.startswith("up_projection.") for key in missing)


def test_tokens_equal_those_of_primus_own_forward_on_the_grid_it_was_made_for():
    net, image = encoder(), volume(16, 16, 16)
    primus = Primus(1, 48, (4, 4, 4), 2, eva_depth=2, eva_numheads=2, input_shape=(16, 16, 16), num_register_tokens=4,
                    use_abs_pos_embed=False, init_values=0.1, scale_attn_inner=True).eval()  # fmt: skip
    primus.load_state_dict(net.state_dict(), strict=False)
    embedded = primus.down_projection(image).flatten(2).transpose(1, 2)
    theirs, _ = primus.eva(torch.cat((primus.register_tokens, embedded), dim=1))
    torch.testing.assert_close(net(image).patch_tokens, theirs[:, 4:], rtol=1e-5, atol=1e-5)


def test_bfloat16_tokens_are_close_to_those_of_float32():
    net, image = encoder(), volume(16, 16, 16)
    exact = net(image).patch_tokens
    with torch.autocast("cpu", torch.bfloat16):
        rough = net(image).patch_tokens.float()
    assert torch.nn.functional.cosine_similarity(exact, rough, dim=-1).min() > 0.999


def test_the_same_seed_gives_the_same_weights_and_leaves_the_global_random_state_alone():
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    first = encoder(3).state_dict()
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(value, first[key]) for key, value in encoder(3).state_dict().items())
    assert not torch.equal(encoder(4).state_dict()["register_tokens"], first["register_tokens"])


@pytest.mark.parametrize("changes", [{"embed_dim": 50}, {"embed_dim": 32}])
def test_a_width_that_rotary_positions_cannot_use_is_refused(changes):
    with pytest.raises(ValueError, match="divisible by 6"):
        encoder(**changes)


def test_an_input_that_is_not_whole_patches_is_refused_with_its_shape():
    with pytest.raises(ValueError, match=r"\(1, 1, 8, 9, 8\)"):
        encoder()(volume(8, 9, 8))
