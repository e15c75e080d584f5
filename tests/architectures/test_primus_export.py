"""The encoder in other forms says the same: Primus' own forward, permuted axes, TorchScript for any size."""

import pytest
import torch
from dynamic_network_architectures.architectures.primus import Primus, PrimusB, PrimusL, PrimusM, PrimusS

from nnssl_reg.architectures.primus_encoder import PrimusEncoder, build_encoder
from nnssl_reg.architectures.primus_export import PRESETS, as_torchscript, primus_form
from nnssl_reg.planning.rules_network import SIZES


def encoder(**changes):
    sizes = {"embed_dim": 48, "depth": 2, "num_heads": 2, "patch_size": (4, 4, 2), "register_tokens": 3} | changes
    return build_encoder(**sizes, generator=torch.Generator().manual_seed(0)).eval()


def volume(*shape: int) -> torch.Tensor:
    return torch.rand(1, 1, *shape, generator=torch.Generator().manual_seed(1)) * 2 - 1


def tokens_of(primus: torch.nn.Module, image: torch.Tensor) -> torch.Tensor:
    """Primus' own patch tokens as a map (D, ...), as its forward computes them before the decoder."""
    embedded = primus.down_projection(image)
    sequence = embedded.flatten(2).transpose(1, 2)
    registers = 0 if primus.register_tokens is None else primus.register_tokens.shape[1]
    if registers:
        sequence = torch.cat((primus.register_tokens, sequence), dim=1)
    return primus.eva(sequence)[0][0, registers:].T.unflatten(1, embedded.shape[2:])


@pytest.mark.parametrize(("axes", "shape", "back"), [("xyz", (16, 12, 10), (0, 1, 2)), ("zyx", (10, 12, 16), (2, 1, 0))])
def test_primus_loads_all_weights_and_says_the_same_along_either_order_of_axes(axes, shape, back):
    net = encoder()
    form = primus_form(net, shape, 3, axes)
    primus = Primus(**form.arguments).eval()
    primus.load_state_dict(form.weights, strict=True)
    image = volume(16, 12, 10)
    theirs = tokens_of(primus, image.permute(0, 1, *(2 + i for i in back)))
    torch.testing.assert_close(theirs.permute(0, *(1 + i for i in back)), net(image).patch_grid()[0], rtol=1e-5, atol=1e-5)
    assert primus(image.permute(0, 1, *(2 + i for i in back))).shape == (1, 3, *shape)  # its untrained decoder runs, too
    assert form.class_name == "Primus" and form.left_out == ()


def test_a_preset_loads_strictly_too_and_says_what_it_has_no_place_for():
    net = encoder(embed_dim=396, depth=12, num_heads=6, patch_size=(4, 4, 4))
    form = primus_form(net, (16, 8, 12), 2, "xyz")
    assert form.class_name == "PrimusS" and form.left_out == ("class token", "3 register tokens")
    primus = PrimusS(**form.arguments).eval()
    primus.load_state_dict(form.weights, strict=True)
    image = volume(16, 8, 12)
    with torch.no_grad():
        embedded = net.down_projection(image).flatten(2).transpose(1, 2)
        rotary = net.rotary_embedding((4, 2, 3))
        for block in net.eva.blocks:  # ours without class and register tokens
            block.attn.num_prefix_tokens = 0
            embedded = block(embedded, rope=rotary)
        expected = net.eva.norm(embedded)[0].T.unflatten(1, (4, 2, 3))
        torch.testing.assert_close(tokens_of(primus, image), expected, rtol=1e-5, atol=1e-5)
    kept = primus_form(net, (16, 8, 12), 2, "xyz", keep_registers=True)
    assert kept.class_name == "Primus" and kept.left_out == () and kept.weights["register_tokens"].shape == (1, 4, 396)


@pytest.mark.parametrize("axes", ["zyx", "xyz"])
@pytest.mark.parametrize("network", [PrimusS, PrimusB, PrimusM, PrimusL], ids=lambda network: network.__name__)
def test_every_preset_loads_strictly_into_nnunets_own_class(network, axes, monkeypatch):
    monkeypatch.setattr(torch.Tensor, "cpu", lambda tensor: tensor)  # of tensors that have a shape and no values
    width, depth, heads = next(size for size, name in PRESETS.items() if name == network.__name__)
    with torch.device("meta"):
        net = PrimusEncoder(width, depth, heads, (4, 4, 2))
        form = primus_form(net, (32, 16, 24) if axes == "xyz" else (24, 16, 32), 2, axes)
        own = network(**form.arguments)
    assert form.class_name == network.__name__ and all(value.is_meta for value in own.state_dict().values())
    own.load_state_dict(form.weights, strict=True)
    del form.weights["eva.norm.weight"]
    with pytest.raises(RuntimeError, match="eva.norm.weight"):
        own.load_state_dict(form.weights, strict=True)


def test_the_presets_are_the_sizes_that_are_planned():
    planned = {(size.embed_dim, size.depth, size.num_heads): f"Primus{name}" for name, size in SIZES.items() if name != "XS"}
    assert planned == PRESETS


@pytest.mark.parametrize("shape", [(10, 12, 15), (10, 12), (0, 4, 4)])
def test_an_input_that_is_not_whole_patches_is_refused(shape):
    with pytest.raises(ValueError, match="multiple of the patch 2 4 4"):
        primus_form(encoder(), shape, 2)


def test_torchscript_says_the_same_for_volumes_of_any_size(tmp_path):
    net = encoder()
    torch.jit.save(as_torchscript(net), tmp_path / "encoder.pt")
    script = torch.jit.load(tmp_path / "encoder.pt")
    for shape in ((16, 12, 10), (8, 28, 6), (4, 4, 2)):
        torch.testing.assert_close(script(volume(*shape)), net(volume(*shape)).patch_grid(), rtol=0, atol=1e-4)
    assert '"cpu"' not in str(script.inlined_graph)  # it runs wherever its weights and the volume are
    whole = volume(12, 8, 6)
    whole[:, :, 10:] = whole[:, :, :, 7:] = whole[:, :, :10, :7].amin()  # what padding with the minimum makes of 10 x 7 x 6
    torch.testing.assert_close(script(whole[:, :, :10, :7]), net(whole).patch_grid(), rtol=0, atol=1e-4)
