"""A tiny configuration and a tiny store of cases to train on."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from nnssl_reg.geometry.grid import Grid
from nnssl_reg.geometry.image import Image
from nnssl_reg.imageio.case_store import CaseProperties, GridRecord, write_case
from nnssl_reg.planning.fingerprint import case_fingerprint, merge
from nnssl_reg.planning.planner import plan
from nnssl_reg.planning.plans import Configuration, PretrainingPlan
from nnssl_reg.pretraining.case_groups import CaseGroup
from nnssl_reg.pretraining.training_state import Run


def planned() -> Configuration:
    """What the planner says for small images of noise."""
    rng = np.random.default_rng(0)
    image = Image(rng.uniform(0, 100, (1, 14, 12, 16)).astype(np.float32), Grid((14, 12, 16), np.eye(4)))
    measured = {f"Case_{i:04d}": case_fingerprint(image, "0", "MR") for i in range(5)}
    return plan(merge("Dataset999_Waves", measured, {"0": "MR"}), 8).configurations["3d_fullres"]


TINY = planned()
PRETRAINING = replace(
    TINY.pretraining,
    crop_size=(8, 8, 8), batch_size=4, steps=6, steps_per_epoch=3, prototypes=32, head_hidden_dim=16, head_bottleneck_dim=8,
    learning_rate=1e-3, final_learning_rate=1e-5, warmup_steps=2, layer_decay=0.9, weight_decay=0.04, final_weight_decay=0.2,
    gradient_clip=3.0, teacher_momentum=0.9, final_teacher_momentum=0.99, student_temperature=0.1, teacher_temperature=0.04,
    final_teacher_temperature=0.07, teacher_temperature_steps=2, centering="sinkhorn", mask_ratio=(0.4, 0.6), loss_tokens=6,
    class_weight=1.0, patch_weight=1.0, visible_weight=1.0, koleo_weight=0.1, zoom=(0.9, 1.1), rotation_degrees=10.0,
    intensity_strength=1.0, foreground_share=0.5, workers=0,
)  # fmt: skip

CONFIGURATION = replace(
    TINY,
    image=replace(TINY.image, spacing_mm=(1.0, 1.0, 1.0)),
    network=replace(
        TINY.network, embed_dim=24, depth=2, num_heads=2, patch_size=(4, 4, 4), register_tokens=2, drop_path_rate=0.1
    ),
    pretraining=PRETRAINING,
)


def store_cases(folder: Path, count: int) -> tuple[str, ...]:
    """Cases of different sizes made of waves; returns their names."""
    folder.mkdir(parents=True, exist_ok=True)
    names = []
    for i in range(count):
        shape = (14 + i % 3, 12, 16)
        x, y, z = np.meshgrid(*map(np.arange, shape), indexing="ij")
        array = (np.sin(x / (2 + i % 4)) * np.cos(y / 3) * np.sin(z / 4 + i)).astype(np.float32)[None]
        record, name = GridRecord.of(Grid(shape, np.eye(4))), f"Case_{i:04d}_0000"
        points = np.argwhere(array[0] > 0.5)[:50].tolist()
        box = [[0, n] for n in shape]
        properties = CaseProperties(name, "0", "MR", f"{name}.nii.gz", "raw", "plans", record, box, record, {}, points)
        write_case(folder, array, properties, (8, 8, 8))
        names.append(name)
    return tuple(names)


def run_in(folder: Path) -> Run:
    """A run on five tiny cases, on the CPU."""
    names = store_cases(folder / "cases", 5)
    return Run(CONFIGURATION, "3d_fullres", "Dataset999_Waves", (CaseGroup(folder / "cases", names),), 3, torch.device("cpu"))


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return run_in(tmp_path)


@pytest.fixture(scope="module")
def run_of_module(tmp_path_factory) -> Run:
    """The same run for all tests of a module."""
    return run_in(tmp_path_factory.mktemp("module"))


@pytest.fixture(name="plan")
def pretraining_plan() -> PretrainingPlan:
    return PRETRAINING


@pytest.fixture
def configuration() -> Configuration:
    return CONFIGURATION


@pytest.fixture
def change():
    """change(run, batch_size=2, ...): the run with other values in its pretraining plan."""

    def changed(run: Run, **values) -> Run:
        return replace(
            run, configuration=replace(run.configuration, pretraining=replace(run.configuration.pretraining, **values))
        )

    return changed
