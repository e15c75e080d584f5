"""nnssl_export: a trained encoder as weights for nnU-Net's Primus, and as TorchScript."""

from argparse import Namespace
from pathlib import Path
from typing import Any

import torch

from nnssl_reg.architectures.primus_export import AXES, PrimusForm, as_torchscript, build_primus, primus_form
from nnssl_reg.commands.model_choice import load_model, model_folder
from nnssl_reg.commands.pair_features import Model
from nnssl_reg.imageio.json_files import atomic_path, write_json
from nnssl_reg.imageio.model_folder import is_shared_model
from nnssl_reg.planning.plans import ImagePlan
from nnssl_reg.pretraining.checkpoint import load_encoder

CPU = torch.device("cpu")
KEYS = {"key_to_encoder": "eva", "key_to_stem": "down_projection", "keys_to_in_proj": ["down_projection.proj"],
        "key_to_lpe": "eva.pos_embed"}  # fmt: skip


def run(args: Namespace) -> int:
    """Write the forms that are asked for. Returns the exit code."""
    if not (args.nnunet or args.torchscript):
        raise ValueError("Which form? Give --nnunet, --torchscript or both.")
    if args.num_classes < 1:
        raise ValueError(f"-num_classes {args.num_classes}: a segmentation has at least one output.")
    source = model_folder(args)
    if is_shared_model(source) and (args.chk is not None or args.o is None):
        raise ValueError(f"{source} is a shared model: it has no checkpoints to choose among with -chk, and nothing is written "
                         "into it. Give -o FOLDER, without -chk.")  # fmt: skip
    model = load_model(source, CPU) if args.chk is None else Model(source, *load_encoder(source, CPU, args.chk))
    print(f"Model: {source}")
    folder = source / "export" if args.o is None else Path(args.o).expanduser()
    if args.nnunet:
        export_nnunet(model, folder, args)
    if args.torchscript:
        export_torchscript(model, folder)
    return 0


def export_nnunet(model: Model, folder: Path, args: Namespace) -> None:
    """Write nnunet_<class>.pth, what nnU-Net's fine-tuning reads, and beside it a json that says what it is."""
    crop = model.configuration.pretraining.crop_size
    shape = tuple(crop[i] for i in AXES[args.axes]) if args.input_shape is None else tuple(args.input_shape)
    form = primus_form(model.encoder, shape, args.num_classes, args.axes, args.keep_registers)
    build_primus(form.class_name, form.arguments).load_state_dict(form.weights, strict=True)
    path = folder / f"nnunet_{form.class_name}.pth"
    with atomic_path(path) as temporary:
        torch.save(
            {"network_weights": form.weights, "nnssl_adaptation_plan": adaptation_plan(model, form, args.axes)}, temporary
        )
    about = {"module": "dynamic_network_architectures.architectures.primus", "class": form.class_name,
             "arguments": form.arguments, **KEYS, "axes": args.axes, "left_out": form.left_out,
             "decoder": "up_projection is untrained"}  # fmt: skip
    write_json(path.with_suffix(".json"), {**about, **seen_images(model.configuration.image)})
    kept = f" without {' and '.join(form.left_out)}, which it has no place for" if form.left_out else ""
    print(f"nnU-Net: {path}: {form.class_name}{kept}, axes {args.axes}, its decoder untrained; arguments in {path.stem}.json")


def adaptation_plan(model: Model, form: PrimusForm, axes: str) -> dict[str, Any]:
    """What nnU-Net's fine-tuning of nnssl's networks asks a checkpoint."""
    shape = list(form.arguments["input_shape"])
    spacing = [model.configuration.image.spacing_mm[i] for i in AXES[axes]]
    arguments = {key: list(v) if isinstance(v, tuple) else v for key, v in form.arguments.items()}
    return {
        "architecture_plans": {
            "arch_class_name": form.class_name,
            "arch_kwargs": arguments if form.class_name == "Primus" else None,
            "arch_kwargs_requiring_import": None,
        },
        "pretrain_plan": {"configurations": {"3d_fullres": {"spacing": spacing, "patch_size": shape}}},
        "pretrain_num_input_channels": 1,
        "recommended_downstream_patchsize": shape,
        **KEYS,
    }


def export_torchscript(model: Model, folder: Path) -> None:
    """Write encoder.torchscript.pt, and beside it a json that says what goes in and comes out."""
    path = folder / "encoder.torchscript.pt"
    with atomic_path(path) as temporary:
        torch.jit.save(as_torchscript(model.encoder), str(temporary))
    about = {
        "input": "(1, 1, X, Y, Z) float32: a preprocessed volume, axes to the right, front and head",
        "output": f"(1, {model.encoder.embed_dim}, X', Y', Z'): one token per patch, the last ones padded with the minimum",
        "patch_size": model.encoder.patch_size,
    }
    write_json(folder / "encoder.torchscript.json", {**about, **seen_images(model.configuration.image)})
    print(
        f"TorchScript: {path}: volumes of any size to patch tokens; input and output are described in encoder.torchscript.json"
    )


def seen_images(plan: ImagePlan) -> dict[str, Any]:
    """How the images that the encoder knows were prepared."""
    return {"spacing_mm_xyz": plan.spacing_mm, "channels": plan.channels}
