"""What tests of commands share: a tiny untrained model in a training output folder."""

from dataclasses import fields

import pytest
import torch

from nnssl_reg.commands import found_models
from nnssl_reg.imageio.json_files import write_json
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

PRETRAINING = {"crop_size": (8, 8, 8), "mask_ratio": (0.4, 0.6), "zoom": (1.0, 1.0), "centering": "sinkhorn", "prototypes": 8}
FEATURES = {"window_size": (64, 64, 64), "window_overlap": 0.25, "token_shifts": (1, 1, 1), "components": 6,
            "mind_spacing_mm": (4.0, 4.0, 4.0), "mind_scales": ((1, 2),), "mind_stride": (2, 2, 2)}  # fmt: skip
REGISTRATION = {"coarse_spacing_mm": 16.0, "search_radius_mm": 32.0, "iterations": 10, "symmetric": False, "init": "identity"}


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
def model_folder():
    """model_folder(results, dataset, plans, configuration, channels) -> the folder of a tiny model with random weights."""
    return _model_folder


@pytest.fixture
def filled_section():
    """filled_section(PretrainingPlan, prototypes=8, ...): a section with these values, 1 for all others."""
    return lambda section, **values: filled(section, values)
