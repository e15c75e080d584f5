"""What tests of commands share: a tiny untrained model in a training output folder, and tiny cases to train on."""

from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from nnssl_reg.commands import found_models
from nnssl_reg.commands.preprocess import image_plan_fingerprint
from nnssl_reg.geometry.grid import Grid
from nnssl_reg.geometry.image import Image
from nnssl_reg.imageio.case_store import CaseProperties, GridRecord, write_case
from nnssl_reg.imageio.json_files import write_json
from nnssl_reg.planning.fingerprint import case_fingerprint, merge
from nnssl_reg.planning.planner import plan
from nnssl_reg.planning.plans import (
    ChannelPlan,
    Configuration,
    FeaturesPlan,
    ImagePlan,
    NetworkPlan,
    Plans,
    PretrainingPlan,
    RegistrationPlan,
)
from nnssl_reg.pretraining.checkpoint import CheckpointInfo, save_checkpoint, versions
from nnssl_reg.pretraining.student_teacher import StudentTeacher

PRETRAINING = {"crop_size": (8, 8, 8), "mask_ratio": (0.4, 0.6), "zoom": (1.0, 1.0), "centering": "sinkhorn", "prototypes": 8,
               "global_crops": 0, "global_scale": (0.6, 1.0), "local_crops": 0, "local_crop_size": (4, 4, 4),
               "local_scale": (0.3, 0.6), "sharded": False}  # fmt: skip
FEATURES = {"window_size": (64, 64, 64), "window_overlap": 0.25, "token_shifts": (1, 1, 1), "components": 6,
            "mind_spacing_mm": (4.0, 4.0, 4.0), "mind_scales": ((1, 2),), "mind_stride": (2, 2, 2),
            "mind_noise_ct": 0.1, "projection": "discriminant", "intensity_share": 0.33, "dino_share": 0.25}  # fmt: skip
REGISTRATION = {"coarse_spacing_mm": 16.0, "search_radius_mm": 32.0, "iterations": 10, "symmetric": False, "init": "identity"}
DATASET = "Dataset999_Waves"


def filled(section, values: dict):
    """A section of the plans with these values, 1 for all others."""
    return section(**{f.name: values.get(f.name, 1) for f in fields(section)})


def _model_folder(results, dataset="Dataset007_Bodies", plans="nnsslPlans", configuration="3d_fullres", channels=("MR",)):
    folder = results / dataset / f"DINO__{plans}__{configuration}"
    channel_plans = {str(i): ChannelPlan(name, name.lower(), *((-1000.0, 1000.0) if name == "CT" else (None, None)), None)
                     for i, name in enumerate(channels)}  # fmt: skip
    network = NetworkPlan(24, 1, 2, (4, 4, 4), 1, 0.0)
    pretraining = filled(PretrainingPlan, PRETRAINING)
    tiny = Configuration(ImagePlan((4.0, 4.0, 4.0), (24, 24, 24), 8.0, channel_plans), network, pretraining,
                         filled(FeaturesPlan, FEATURES), filled(RegistrationPlan, REGISTRATION))  # fmt: skip
    pair = StudentTeacher(network, pretraining, torch.Generator().manual_seed(0))
    info = CheckpointInfo(3, 0, dataset, configuration, network, pretraining, versions())
    save_checkpoint(folder, "final", info, pair, torch.optim.AdamW(pair.student.parameters()))
    write_json(folder / "nnsslPlans.json", Plans(dataset, plans, {configuration: tiny}))
    write_json(folder / "configuration.json", {"configuration": configuration})
    return folder


@pytest.fixture(autouse=True, scope="module")
def without_packaged_models(tmp_path_factory):
    """No model comes with the package, whatever it ships: what is tested is what happens with the models of the test."""
    with pytest.MonkeyPatch.context() as patch:
        empty = tmp_path_factory.mktemp("package")
        patch.setattr(found_models, "files", lambda name: empty)
        yield


@pytest.fixture
def packaged(monkeypatch, tmp_path):
    """packaged(name) -> the place of a packaged model in a package that has no other."""
    monkeypatch.setattr(found_models, "files", lambda name: tmp_path / "package")
    (tmp_path / "package" / "weights").mkdir(parents=True)
    return lambda name: tmp_path / "package" / "weights" / name


@pytest.fixture
def model_folder():
    """model_folder(results, dataset, plans, configuration, channels) -> the folder of a tiny model with random weights."""
    return _model_folder


@pytest.fixture
def filled_section():
    """filled_section(PretrainingPlan, prototypes=8, ...): a section with these values, 1 for all others."""
    return lambda section, **values: filled(section, values)


def _trainable_configuration(channels: dict[str, str]) -> Configuration:
    """What the planner says for small images of noise, made tiny."""
    rng = np.random.default_rng(0)
    image = Image(rng.uniform(0, 100, (1, 12, 12, 16)).astype(np.float32), Grid((12, 12, 16), np.eye(4)))
    measured = {f"Case_{i:04d}_{key}": case_fingerprint(image, key, name) for i in range(9) for key, name in channels.items()}
    whole = plan(merge(DATASET, measured, channels), 8).configurations["3d_fullres"]
    network = {
        "embed_dim": 24,
        "depth": 1,
        "num_heads": 2,
        "patch_size": (4, 4, 4),
        "register_tokens": 1,
        "drop_path_rate": 0.0,
    }
    pretraining = {
        "crop_size": (8, 8, 8), "batch_size": 2, "steps": 4, "steps_per_epoch": 2, "prototypes": 16, "head_hidden_dim": 8,
        "head_bottleneck_dim": 8, "learning_rate": 1e-3, "final_learning_rate": 1e-5, "warmup_steps": 2, "layer_decay": 0.9,
        "teacher_temperature_steps": 2, "loss_tokens": 6, "class_weight": 1.0, "zoom": (0.9, 1.1), "intensity_strength": 1.0,
        "foreground_share": 0.5, "workers": 0,
    }  # fmt: skip
    return replace(whole, image=replace(whole.image, spacing_mm=(1.0, 1.0, 1.0)), network=replace(whole.network, **network),
                   pretraining=replace(whole.pretraining, **pretraining))  # fmt: skip


def _store_dataset(preprocessed: Path, dataset: str, count: int = 9, channels: dict[str, str] | None = None,
                   configuration: Configuration | None = None) -> Path:  # fmt: skip
    """Plans and preprocessed cases of noise, `count` of each channel; the cases' folder."""
    channels = channels or {"0": "MR"}
    configuration = configuration or _trainable_configuration(channels)
    write_json(preprocessed / dataset / "nnsslPlans.json", Plans(dataset, "nnsslPlans", {"3d_fullres": configuration}))
    cases = preprocessed / dataset / "nnsslPlans_3d_fullres"
    cases.mkdir()
    rng, grid = np.random.default_rng(0), Grid((12, 12, 16), np.eye(4))
    record, box = GridRecord.of(grid), [[0, n] for n in grid.shape]
    for i in range(count):
        for key, channel in channels.items():
            array = rng.uniform(-1, 1, (1, *grid.shape)).astype(np.float32)
            plans = image_plan_fingerprint(configuration, key)
            properties = CaseProperties(f"Case_{i:04d}_{int(key):04d}", key, channel, "x.nii.gz", "raw", plans, record, box,
                                        record, {}, [[5, 5, 5]])  # fmt: skip
            write_case(cases, array, properties, (8, 8, 8))
    return cases


@pytest.fixture
def training_configuration() -> Configuration:
    """The tiny configuration that `folders` holds."""
    return _trainable_configuration({"0": "MR"})


@pytest.fixture
def store_dataset():
    """store_dataset(preprocessed, "Dataset998_More", count, channels, configuration) -> its cases' folder."""
    return _store_dataset


@pytest.fixture
def folders(tmp_path: Path, monkeypatch) -> Path:
    """preprocessed (with plans and nine cases) and results, named by the environment; returns their parent."""
    _store_dataset(tmp_path / "preprocessed", DATASET)
    monkeypatch.setenv("nnssl_preprocessed", str(tmp_path / "preprocessed"))
    monkeypatch.setenv("nnssl_results", str(tmp_path / "results"))
    return tmp_path


@pytest.fixture
def trainable(folders) -> Path:
    """Where a run on the cases of `folders` leaves what it makes."""
    return folders / "results" / DATASET / "DINO__nnsslPlans__3d_fullres"


def _shrunk(points: torch.Tensor) -> torch.Tensor:
    return points / 0.92 - torch.tensor([4.0, 0.0, -3.0], dtype=points.dtype).view(3, 1, 1, 1)


@pytest.fixture(scope="session")
def shrunk():
    """A map of points that makes a body smaller and moves it."""
    return _shrunk


@pytest.fixture(scope="module")
def images(turned_grid, body_image) -> tuple[Image, Image]:
    """A body and the same one smaller and elsewhere, on grids turned differently."""
    fixed, moving = turned_grid((30, 26, 22), (3.4, 3.5, 4.5), (3, -2, 20)), turned_grid((28, 30, 26), 3.7, (5, 3, 0))
    return body_image(fixed), body_image(moving, _shrunk)
