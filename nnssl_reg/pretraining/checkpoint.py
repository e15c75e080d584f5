"""Checkpoints: one safetensors file that explains itself, replaced atomically, with the one before kept."""

import json
import logging
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from nnssl_reg.architectures.primus_encoder import PrimusEncoder, build_encoder
from nnssl_reg.imageio.json_files import atomic_path, from_dict, read_dataclass, read_json, write_json
from nnssl_reg.planning.plans import Configuration, NetworkPlan, Plans, PretrainingPlan
from nnssl_reg.pretraining.processes import whole
from nnssl_reg.pretraining.recovery import Recovery
from nnssl_reg.pretraining.student_teacher import StudentTeacher

FORMAT = 1
PACKAGES = ("nnssl_reg", "torch", "timm", "dynamic-network-architectures")
logger = logging.getLogger("nnssl_reg")


@dataclass(frozen=True)
class CheckpointInfo:
    """What a checkpoint is of. It stands in the safetensors file itself, and in a json beside it for people.

    step: optimiser steps done; seed: of the run; network, pretraining: the plan it was trained with, before any recovery made
    it gentler; light: of the last row of the log; probe_recall, probe_error_mm: of the best one, null in others.
    """

    step: int
    seed: int
    dataset_name: str
    configuration_name: str
    network: NetworkPlan
    pretraining: PretrainingPlan
    versions: dict[str, str]
    light: str = "green"
    recoveries: tuple[Recovery, ...] = ()
    probe_recall: float | None = None
    probe_error_mm: float | None = None
    format: int = FORMAT


def checkpoint_path(folder: str | Path, name: str) -> Path:
    """name: latest, previous, final or best."""
    return Path(folder) / f"checkpoint_{name}.safetensors"


def save_checkpoint(folder: str | Path, name: str, info: CheckpointInfo, pair: StudentTeacher,
                    optimizer: torch.optim.Optimizer, keep_previous: bool = True) -> Path:  # fmt: skip
    """Write checkpoint_<name>, in the first of the processes that share the pair. A kill at any moment leaves one usable.

    The file is the same whether they hold it in shares, which all of them put together here, or whole.
    keep_previous: with "latest", the one before becomes "previous"; else it is overwritten.
    """
    path, previous = checkpoint_path(folder, name), checkpoint_path(folder, "previous")
    tensors = _tensors(pair, optimizer)
    if not pair.processes.first:
        return path
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata={"checkpoint": json.dumps(asdict(info))})
        if name == "latest" and keep_previous and path.exists():
            os.replace(path, previous)
            if path.with_suffix(".json").exists():
                os.replace(path.with_suffix(".json"), previous.with_suffix(".json"))
    write_json(path.with_suffix(".json"), info)
    return path


def newest_checkpoint(folder: str | Path) -> tuple[Path, CheckpointInfo] | None:
    """The readable checkpoint to go on from, or None if there is no checkpoint at all; damaged ones are warned of.

    It is the one with most steps; after a recovery, steps done before it do not count. The best one serves only where no
    other is left. Raises ValueError if there are checkpoints but none can be read.
    """
    found, problems = readable_checkpoints(folder)
    if problems and not found:
        raise ValueError(" ".join(problems) + " No other checkpoint is left; move the folder away and train anew.")
    if not found:
        return None
    best = checkpoint_path(folder, "best")
    newest = max(found, key=lambda item: (item[0] != best, len(item[1].recoveries), item[1].step))
    for problem in problems:
        logger.warning("%s Going on from %s (step %d) instead.", problem, newest[0].name, newest[1].step)
    return newest


def readable_checkpoints(folder: str | Path) -> tuple[list[tuple[Path, CheckpointInfo]], list[str]]:
    """All checkpoints of a folder that can be read, and what is wrong with the others."""
    found, problems = [], []
    for name in ("final", "latest", "previous", "best"):
        path = checkpoint_path(folder, name)
        try:
            if path.exists():
                found.append((path, read_info(path)))
        except ValueError as error:
            problems.append(str(error))
    return found, problems


def good_checkpoints(folder: str | Path) -> list[tuple[Path, CheckpointInfo]]:
    """Those that a broken run can go back to, best choice first: saved at green before yellow, later ones before earlier."""
    found, _ = readable_checkpoints(folder)
    good = [item for item in found if item[1].light != "red"]
    return sorted(good, key=lambda item: (item[1].light == "green", item[1].step), reverse=True)


def read_info(path: str | Path) -> CheckpointInfo:
    """What a checkpoint says of itself, its tensors checked for completeness. Raises ValueError for a damaged file."""
    with _opened(path) as file:
        try:
            data = json.loads((file.metadata() or {})["checkpoint"])
        except (KeyError, json.JSONDecodeError) as error:
            raise ValueError(f"{path} is no checkpoint of nnssl_train_dino: its header does not say what it holds.") from error
    if data.get("format") != FORMAT:
        raise ValueError(f"{path} has checkpoint format {data.get('format')}, this version reads {FORMAT}; use the version of "
                         f"nnssl_reg that wrote it ({data.get('versions', {}).get('nnssl_reg', 'unknown')}).")  # fmt: skip
    return from_dict(CheckpointInfo, data, str(path))


def restore(path: str | Path, pair: StudentTeacher, optimizer: torch.optim.Optimizer) -> None:
    """Weights, centres and optimiser state as saved. Raises ValueError naming tensors that do not fit."""
    with _opened(path) as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - no dict
    own = pair.state_dict()
    saved = {key: value for key, value in tensors.items() if not key.startswith("optimizer.")}
    wrong = sorted(key for key in {*own, *saved} if key not in own or key not in saved or own[key].shape != saved[key].shape)
    if wrong:
        raise ValueError(f"{path} does not fit the plans: {', '.join(wrong[:4])}{' ...' if len(wrong) > 4 else ''} differ. "
                         "Continue with the network and heads that the run was started with.")  # fmt: skip
    pair.load_state_dict(saved)
    for name, parameter in pair.student.named_parameters():
        keys = [key for key in tensors if key.startswith("optimizer.") and key.split(".", 2)[2] == name]
        if keys:
            optimizer.state[parameter] = {key.split(".")[1]: tensors[key].to(_state_device(key, parameter)) for key in keys}


def load_encoder(folder: str | Path, device: torch.device | str,
                 checkpoint: str | None = None) -> tuple[Configuration, PrimusEncoder]:  # fmt: skip
    """The teacher's encoder of a training output folder, ready for inference, and the configuration it was trained with.

    checkpoint: final, best, latest or previous; None: the first of final, latest, previous and best that can be read.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} does not exist; give the folder that nnssl_train_dino wrote.")
    configuration = read_configuration(folder)
    path = _chosen(folder, checkpoint)
    prefix = "teacher.encoder."
    with _opened(path) as file:
        weights = {key[len(prefix) :]: file.get_tensor(key) for key in file.keys() if key.startswith(prefix)}  # noqa: SIM118
    encoder = build_encoder(**vars(read_info(path).network))
    encoder.load_state_dict(weights)
    return configuration, encoder.to(device).eval().requires_grad_(False)


def read_configuration(folder: str | Path) -> Configuration:
    """The configuration that a training output folder was trained with."""
    folder = Path(folder)
    plans = read_dataclass(Plans, folder / "nnsslPlans.json")
    name = read_json(folder / "configuration.json").get("configuration")
    if name not in plans.configurations:
        raise ValueError(f"{folder / 'configuration.json'} names the configuration {name!r}, but nnsslPlans.json beside it has "
                         f"{', '.join(plans.configurations)}.")  # fmt: skip
    return plans.configurations[name]


def versions(packages: Sequence[str] = PACKAGES) -> dict[str, str]:
    """Versions of this package and of those that decide what the weights mean; "not installed" for one run from its source."""
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def _chosen(folder: Path, checkpoint: str | None) -> Path:
    """The checkpoint file to use for inference."""
    there = sorted(path.stem.removeprefix("checkpoint_") for path in folder.glob("checkpoint_*.safetensors"))
    if checkpoint is not None:
        if checkpoint not in there:
            raise FileNotFoundError(
                f"{folder} has no checkpoint_{checkpoint}.safetensors; there is {', '.join(there) or 'none'}."
            )
        return checkpoint_path(folder, checkpoint)
    for name in ("final", "latest", "previous", "best"):
        if name not in there:
            continue
        try:
            read_info(checkpoint_path(folder, name))
            return checkpoint_path(folder, name)
        except ValueError as error:
            logger.warning("%s", error)
    raise ValueError(
        f"{folder} has no usable checkpoint ({', '.join(there) or 'none'} there); train with nnssl_train_dino first."
    )


def _opened(path: str | Path):
    """A safetensors file, opened; a damaged one is a ValueError that says so."""
    try:
        return safe_open(path, framework="pt", device="cpu")
    except (SafetensorError, OSError) as error:
        size = Path(path).stat().st_size if Path(path).exists() else 0
        raise ValueError(f"{path} is damaged or no safetensors file ({size} bytes: {error}).") from error


def _tensors(pair: StudentTeacher, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """All tensors by name, optimiser state as optimizer.<key>.<parameter>; in processes that do not write, none."""
    tensors = dict(pair.state_dict())
    for name, parameter in pair.student.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer.{key}.{name}"] = value
    kept = {}
    for key, value in tensors.items():  # one by one: a GPU need not have room for all of them whole
        tensor = whole(value.detach())
        if pair.processes.first:
            kept[key] = tensor.cpu().contiguous()
    return kept


def _state_device(key: str, parameter: torch.Tensor) -> torch.device:
    return parameter.device  # fused AdamW keeps its step counts beside the parameters too
