"""Shared models: the teacher's encoder with plans, card and checksums in a folder that needs nothing else."""

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from nnssl_reg.architectures.primus_encoder import PrimusEncoder, build_encoder
from nnssl_reg.imageio.json_files import atomic_path, write_json
from nnssl_reg.imageio.model_folder import (
    CARD,
    CARD_TEXT,
    CONFIGURATION,
    PLANS,
    WEIGHTS,
    verify_checksums,
    write_checksums,
)
from nnssl_reg.planning.memory import encoder_parameters
from nnssl_reg.planning.plans import Configuration, NetworkPlan, Plans
from nnssl_reg.pretraining.checkpoint import read_configuration
from nnssl_reg.pretraining.model_card import ModelCard, card_text, read_card

PRECISIONS = {"float32": torch.float32, "float16": torch.float16}
WAY_OUT = "Import it again (nnssl_import_model --overwrite) or install the package again."


def write_shared_model(folder: Path, encoder: PrimusEncoder, plans: Plans, name: str, card: ModelCard) -> None:
    """Write the six files into a folder. name: of the configuration, the only one that is kept of the plans.

    Raises ValueError for weights that are not finite, or not so in the card's precision.
    """
    configuration = plans.configurations[name]
    weights = {key: value.detach().cpu().to(PRECISIONS[card.precision]).contiguous() if value.is_floating_point() else value
               for key, value in encoder.state_dict().items()}  # fmt: skip
    _check_finite(weights, folder / WEIGHTS)
    with atomic_path(folder / WEIGHTS) as temporary:
        save_file(weights, temporary, metadata={"format": "pt", "model": card.name})
        temporary.chmod(0o644)  # safetensors writes for the owner alone, and this is to be shared
    write_json(folder / PLANS, Plans(plans.dataset_name, plans.plans_name, {name: configuration}, plans.version))
    write_json(folder / CONFIGURATION, {"configuration": name})
    write_json(folder / CARD, card)
    with atomic_path(folder / CARD_TEXT) as temporary:
        temporary.write_text(card_text(card, configuration), encoding="utf-8")
    write_checksums(folder)


def read_shared_model(folder: str | Path, way_out: str = WAY_OUT) -> tuple[Configuration, ModelCard]:
    """Configuration and card of a shared model, all of its checksums verified first; its weights are not loaded."""
    verify_checksums(Path(folder), way_out)
    return read_configuration(folder), read_card(folder)


def load_shared_model(folder: str | Path, device: torch.device | str, way_out: str = WAY_OUT
                      ) -> tuple[Configuration, PrimusEncoder, ModelCard]:  # fmt: skip
    """Configuration, encoder (float32, ready for inference) and card of a shared model, its checksums verified first.

    Raises ValueError for what was changed, is damaged, or does not fit together. way_out: ends messages about checksums.
    """
    configuration, card = read_shared_model(folder, way_out)
    folder, path = Path(folder), Path(folder) / WEIGHTS
    try:
        weights = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise ValueError(
            f"{path} is damaged or no safetensors file ({path.stat().st_size} bytes: {error}). {way_out}"
        ) from error
    _check_size(weights, configuration.network, path)
    try:
        encoder = build_encoder(**vars(configuration.network))
    except (ValueError, AssertionError, ZeroDivisionError) as error:
        raise ValueError(f"{folder / PLANS} plans a network that cannot be built: {error}") from error
    own = encoder.state_dict()
    wrong = sorted(key for key in {*own, *weights}
                   if key not in own or key not in weights or own[key].shape != weights[key].shape)  # fmt: skip
    if wrong:
        raise ValueError(f"{path} does not fit {folder / PLANS}: {', '.join(wrong[:4])}{' ...' if len(wrong) > 4 else ''} "
                         "differ.")  # fmt: skip
    _check_finite(weights, path)
    encoder.load_state_dict(weights)
    return configuration, encoder.to(device).eval().requires_grad_(False), card


def _check_size(weights: dict[str, torch.Tensor], network: NetworkPlan, path: Path) -> None:
    """Refuse plans whose network would be far larger than the weights at hand, before it is built."""
    stored = sum(value.numel() for value in weights.values())
    planned = encoder_parameters(network) + network.register_tokens * network.embed_dim
    if min(network.embed_dim, network.depth, network.num_heads, *network.patch_size) < 1 or planned > 2 * stored + 1000:
        raise ValueError(f"{path} holds {stored:,} numbers, but the plans beside it describe a network of some {planned:,} "
                         f"({network}). The two do not belong together.")  # fmt: skip


def _check_finite(weights: dict[str, torch.Tensor], path: Path) -> None:
    broken = [name for name, value in weights.items() if value.is_floating_point() and not bool(value.isfinite().all())]
    if broken:
        raise ValueError(f"{path}: the weights {', '.join(broken[:3])} hold numbers that are not finite, expected finite ones; "
                         "a model in float16 needs weights below 65504: leave out --half.")  # fmt: skip
