"""nnssl_info: versions, folders, devices, memory, models and data sets, for people and bug reports; it never fails."""

import json
import os
import platform
import shutil
import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

from nnssl_reg.commands.found_data import dataset_states
from nnssl_reg.commands.found_models import models_in, packaged_models
from nnssl_reg.commands.machine import free_memory, granted_cores, usable_cores
from nnssl_reg.imageio.json_files import read_json
from nnssl_reg.imageio.model_folder import is_shared_model, verify_checksums
from nnssl_reg.paths import stated_folder
from nnssl_reg.pretraining.model_card import one_line, read_card

KINDS = ("raw", "preprocessed", "results")
LIBRARIES = ("nnssl_reg", "torch", "numpy", "SimpleITK", "nibabel", "scipy", "numba", "blosc2", "safetensors", "timm",
             "dynamic-network-architectures", "batchgenerators", "acvl-utils")  # fmt: skip
GB = 1e9
SECONDS = 60  # that torch has to answer
# in a process of its own, so that a torch that does not load is told of like everything else
ASK_TORCH = """
import json, torch
cuda = torch.cuda.is_available()
names = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())] if cuda else []
print(json.dumps({
    "cuda": [{"device": f"cuda:{i}", "name": p.name, "memory_gb": round(p.total_memory / 1e9, 1)} for i, p in enumerate(names)],
    "mps": bool(torch.backends.mps.is_available()), "cuda_of_torch": torch.version.cuda, "threads": torch.get_num_threads(),
}))
"""


def run(args: Namespace) -> int:
    """Print what is here. Always 0: what cannot be told is a line that says why."""
    report = gather({kind: getattr(args, kind) for kind in KINDS})
    print(json.dumps(report, indent=1, default=str) if args.json else "\n".join(lines(report)))
    return 0


def gather(flags: dict[str, str | None]) -> dict[str, Any]:
    """Everything that is told, by section; a section that fails is {"problem": sentence}."""
    asked = _told(lambda: subprocess.Popen([sys.executable, "-c", ASK_TORCH], stdout=subprocess.PIPE,
                                           stderr=subprocess.PIPE, text=True))  # fmt: skip
    folders = {kind: stated_folder(kind, flags[kind]) for kind in KINDS}
    report = {
        "versions": _told(_versions),
        "machine": _told(_machine),
        "folders": {kind: _told(lambda k=kind: _folder(folders[k], flags[k])) for kind in KINDS},
        "models": _told(lambda: _models(folders["results"])),
        "datasets": _told(lambda: dataset_states(*(folders[kind] for kind in KINDS))),
        "devices": _told(lambda: _devices(asked)),
    }
    return report | {"would_run": _told(lambda: _would_run(report))}


def _told(ask: Callable[[], Any]) -> Any:
    try:
        return ask()
    except Exception as error:  # whatever is broken here is what a report is asked for
        return {"problem": (f"{type(error).__name__}: {error}".splitlines() or [""])[0]}


def _versions() -> dict[str, str]:
    found = {"python": f"{platform.python_version()} ({sys.executable})", "system": platform.platform()}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found | {"source": str(Path(__file__).parents[1])}


def _machine() -> dict[str, Any]:
    memory = psutil.virtual_memory()
    return {"cores_usable": usable_cores(), "cores": os.cpu_count(), "cores_granted_by_container": granted_cores(),
            "processor": platform.processor() or platform.machine(), "memory_free_gb": round(free_memory() / GB, 1),
            "memory_gb": round(memory.total / GB, 1)}  # fmt: skip


def _folder(folder: Path | None, flag: str | None) -> dict[str, Any]:
    if folder is None:
        return {"path": None, "state": "not set"}
    there = next(parent for parent in (folder, *folder.parents) if parent.exists())
    state = {
        "path": str(folder),
        "from": "variable" if flag is None else "flag",
        "exists": folder.is_dir(),
        "writable": os.access(there, os.W_OK | os.X_OK),
        "free_gb": round(shutil.disk_usage(there).free / GB, 1),
    }
    what = "there" if folder.is_dir() else "a file, not a folder" if folder.exists() else "does not exist"
    return state | {"state": f"{what}, {'writable' if state['writable'] else 'not writable'}, {state['free_gb']:g} GB free"}


def _models(results: Path | None) -> list[dict[str, Any]]:
    packaged = packaged_models()
    found = models_in(results) if results is not None and results.is_dir() else []
    return [{"path": str(path), "packaged": path in packaged, "about": _about(path)} for path in (*packaged, *found)]


def _about(folder: Path) -> str:
    """A model in a line, or what is wrong with it."""
    try:
        if is_shared_model(folder):
            verify_checksums(folder, "")
            card = read_card(folder)
            return f"{one_line(card)}; features by default: {card.default_features}"
        newest = max((read_json(path) for path in folder.glob("checkpoint_*.json")), key=lambda told: told["step"])
        return (
            f"trained here, {newest['step']} of {newest['pretraining']['steps']} steps, width {newest['network']['embed_dim']}"
        )
    except (ValueError, OSError, KeyError, TypeError) as error:
        return f"cannot be used: {error}"


def _devices(asked: Any) -> dict[str, Any]:
    """What torch says of devices. asked: the process that asks it."""
    if isinstance(asked, dict):
        return asked
    try:
        said, complaint = asked.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        asked.kill()
        asked.communicate()
        return {"problem": f"torch did not answer within {SECONDS} s"}
    if asked.returncode:
        last = (complaint.strip().splitlines() or ["no message"])[-1]
        return {"problem": f"torch cannot be used (exit code {asked.returncode}): {last}"}
    return json.loads(said.strip().splitlines()[-1])


def _would_run(report: dict[str, Any]) -> dict[str, str]:
    """Which device and which features commands would use without further flags."""
    cores, gpus = report["machine"].get("cores_usable", "?"), report["devices"].get("cuda")
    cpu = f"cpu, {report['devices'].get('threads', '?')} threads, float32"
    gpu = f"{gpus[0]['device']} ({gpus[0]['name']}, {gpus[0]['memory_gb']:g} GB)" if gpus else ""
    if "problem" in report["devices"]:
        cpu = gpu = "nowhere, see devices"
    also = "; -device mps is there, too" if report["devices"].get("mps") else ""
    return {"nnssl_preprocess": f"cpu, up to {cores} processes, as free memory allows",
            "nnssl_train_dino": (f"{gpu}, bfloat16" if gpu else cpu) + also,
            "nnssl_register": f"{gpu or cpu}; {_features(report['models'])}{also}"}  # fmt: skip


def _features(models: Any) -> str:
    """What nnssl_register uses where no model is named."""
    if isinstance(models, dict):
        return "features unknown, see models"
    own = [model for model in models if not model["packaged"]]
    if len(own) > 1:
        return f"{len(own)} models in nnssl_results: one has to be named (-d, --model), or --features mind"
    chosen = own or models[:1]
    return f"model {chosen[0]['path']}" if chosen else "MIND features (no model is there)"


def lines(report: dict[str, Any]) -> list[str]:
    """The report for people."""
    out = []
    for title, section in report.items():
        out.append(title.replace("_", " "))
        if isinstance(section, list):
            shown = {item.get("name") or item["path"]: item["about"] for item in section} or {"none": ""}
        else:
            shown = {key: _in_words(value) for key, value in section.items()}
        wide = max((len(name) for name in shown if len(name) < 32), default=0)
        out += [f"  {name.ljust(wide)}  {text}".rstrip() for name, text in shown.items()]
    return out


def _in_words(value: Any) -> str:
    if isinstance(value, dict):
        path = value.get("path")
        return value.get("problem") or (f"{path}: {value['state']}" if path else value["state"])
    if isinstance(value, list):
        return "; ".join(f"{item['device']} {item['name']} {item['memory_gb']:g} GB" for item in value) or "none"
    return {None: "none", True: "yes", False: "no"}[value] if value is None or isinstance(value, bool) else str(value)
