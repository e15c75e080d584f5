"""The encoder in other people's forms: as Primus of dynamic-network-architectures, for nnU-Net, and as TorchScript."""

import logging
import warnings
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from dynamic_network_architectures.architectures.primus import Primus, PrimusB, PrimusL, PrimusM, PrimusS
from torch import nn

from nnssl_reg.architectures.primus_encoder import PrimusEncoder

CLASSES = {"Primus": Primus, "PrimusS": PrimusS, "PrimusB": PrimusB, "PrimusM": PrimusM, "PrimusL": PrimusL}
PRESETS = {(396, 12, 6): "PrimusS", (792, 12, 12): "PrimusB", (864, 16, 12): "PrimusM", (1056, 24, 16): "PrimusL"}
AXES = {"xyz": (0, 1, 2), "zyx": (2, 1, 0)}  # order of the arrays' axes; encoders here see x, y, z
logger = logging.getLogger("nnssl_reg")


@dataclass(frozen=True, eq=False)
class PrimusForm:
    """class_name(**arguments).load_state_dict(weights) gives the network; left_out: what it has no place for."""

    class_name: str
    arguments: dict[str, Any]
    weights: dict[str, torch.Tensor]
    left_out: tuple[str, ...]


def primus_form(
    encoder: PrimusEncoder, input_shape, num_classes: int, axes: str = "zyx", keep_registers: bool = False
) -> PrimusForm:
    """The encoder's weights under Primus' names, its decoder untrained.

    input_shape: voxels along the axes as `axes` orders them. The presets PrimusS, B, M and L have no register tokens and an
    absolute position embedding, which is 0 here; other sizes, and all with keep_registers, become a Primus with register
    tokens, whose tokens equal the encoder's. Raises ValueError for an input that is not whole patches.
    """
    order = AXES[axes]
    patch = tuple(encoder.patch_size[i] for i in order)
    if len(input_shape) != 3 or any(n < p or n % p for n, p in zip(input_shape, patch)):
        raise ValueError(f"-input_shape {' '.join(map(str, input_shape))}: each axis ({axes}) is a multiple of the patch "
                         f"{' '.join(map(str, patch))}.")  # fmt: skip
    attention = encoder.eva.blocks[0].attn
    size = (encoder.embed_dim, len(encoder.eva.blocks), attention.num_heads)
    preset = None if keep_registers else PRESETS.get(size)
    common = {"input_channels": 1, "patch_embed_size": patch, "input_shape": tuple(input_shape), "init_values": 0.1,
              "scale_attn_inner": True}  # fmt: skip
    if preset is None:
        own = {"num_classes": num_classes, "embed_dim": size[0], "eva_depth": size[1], "eva_numheads": size[2],
               "num_register_tokens": encoder.num_prefix_tokens, "use_abs_pos_embed": False}  # fmt: skip
    else:
        own = {"output_channels": num_classes}
    name, arguments = preset or "Primus", {**common, **own}
    weights = {**build_primus(name, arguments).state_dict(), **reordered(encoder, order)}
    if preset is not None:
        del weights["register_tokens"]
        weights["eva.pos_embed"] = torch.zeros_like(weights["eva.pos_embed"])
    left_out = () if preset is None else ("class token", f"{encoder.num_prefix_tokens - 1} register tokens")
    return PrimusForm(name, arguments, {key: value.detach().cpu().contiguous() for key, value in weights.items()}, left_out)


def build_primus(class_name: str, arguments: dict[str, Any]) -> nn.Module:
    """A Primus with weights that are the same every time; the global random state stays as it is."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return CLASSES[class_name](**arguments)


def reordered(encoder: PrimusEncoder, order: tuple[int, int, int]) -> dict[str, torch.Tensor]:
    """The weights for arrays whose axes are permuted by `order`: tokens come out the same, permuted likewise.

    The patch embedding's kernel is permuted, and in every head the parts of queries and keys that turn with each axis.
    """
    weights = dict(encoder.state_dict())
    kernel = "down_projection.proj.weight"
    weights[kernel] = weights[kernel].permute(0, 1, *(2 + i for i in order))
    heads = encoder.eva.blocks[0].attn.num_heads
    for key, value in weights.items():
        if key.endswith(("attn.q_proj.weight", "attn.q_proj.bias", "attn.k_proj.weight")):
            parts = value.unflatten(0, (heads, 3, -1))  # (heads, axes, sines and cosines of an axis, ...)
            weights[key] = parts[:, list(order)].flatten(0, 2)
    return weights


class PatchTokens(nn.Module):
    """A volume (1, 1, X, Y, Z) to the map of its patch tokens (1, D, X', Y', Z'), padded at the end with its minimum."""

    def __init__(self, encoder: PrimusEncoder):
        super().__init__()
        self.encoder = encoder

    def forward(self, volume: torch.Tensor) -> torch.Tensor:
        """See the class."""
        pad = [0] * 6
        for axis, patch in enumerate(self.encoder.patch_size):
            pad[2 * (2 - axis) + 1] = -volume.shape[2 + axis] % patch  # F.pad counts from the last axis
        minimum = volume.amin()
        padded = F.pad(volume - minimum, pad) + minimum
        return self.encoder(padded, rotary=self.rotary(padded)).patch_grid()

    def rotary(self, padded: torch.Tensor) -> torch.Tensor:
        """The encoder's rotary embedding, by operations on the volume: so the tracer sees no constant size and no device."""
        bands, (px, py, pz) = self.encoder.rotary.bands, self.encoder.patch_size
        edges = (padded[0, 0, ::px, 0, 0], padded[0, 0, 0, ::py, 0], padded[0, 0, 0, 0, ::pz])
        x, y, z = ((torch.ones_like(edge).cumsum(0) - 1)[:, None] * bands for edge in edges)  # (tokens, bands): angles
        angles = torch.stack(torch.broadcast_tensors(x[:, None, None], y[None, :, None], z[None, None]), dim=3)
        angles = angles.flatten(3).flatten(0, 2).repeat_interleave(2, dim=-1)  # (N, 2 * 3 * bands)
        return torch.cat((angles.sin(), angles.cos()), dim=-1)


def as_torchscript(encoder: PrimusEncoder) -> torch.jit.ScriptModule:
    """The encoder as TorchScript for volumes of any size, compared with itself on two of them.

    Raises ValueError where the script says something else than the encoder.
    """
    module = PatchTokens(encoder).eval()
    patch = encoder.patch_size
    shapes = [[2 * patch[0], 3 * patch[1], 4 * patch[2]], [4 * patch[0] - 1, 2 * patch[1], 3 * patch[2] + 1]]
    volumes = [torch.rand(1, 1, *shape, generator=torch.Generator().manual_seed(0)) * 2 - 1 for shape in shapes]
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer's doubts about sizes are answered by the comparison below
        script = torch.jit.trace(module, (volumes[0],), check_trace=False).eval()
        worst = max(float((script(v) - module(v)).abs().max()) for v in volumes)
    if not worst < 1e-4:
        raise ValueError(f"The TorchScript form differs from the encoder by {worst:.2g} with torch {torch.__version__}; another"
                         " version of torch may do better.")  # fmt: skip
    logger.info("TorchScript differs from the encoder by %.2g at most.", worst)
    return script
