"""Which cases are kept from training, and the probe that is made of them."""

import hashlib
import logging
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

from nnssl_reg.features.encode import encode
from nnssl_reg.features.pca import joint_pca
from nnssl_reg.geometry.image import FeatureMap, Image
from nnssl_reg.imageio.case_store import CaseProperties, read_case, read_properties
from nnssl_reg.planning.foreground import is_ct
from nnssl_reg.pretraining.crop_loader import crop_centre
from nnssl_reg.pretraining.probe import Probe, ProbePair, make_pair
from nnssl_reg.pretraining.training_state import Run

HELD_OUT_FROM = 8  # cases; fewer are all trained on
PATIENTS = 4  # held out at most, and at most one of eight
PAIRS = 8  # of a probe, in turn from its cases
log = logging.getLogger("nnssl_reg")
CHANNEL = re.compile(r"_\d{4}$")


def split(names: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The cases to train on, and those to probe: of the patients whose names have the smallest hashes, all channels.

    What is probed is not trained on, unless there are fewer than HELD_OUT_FROM cases or all are of one patient.
    """
    patients = sorted(
        {patient_of(name) for name in names}, key=lambda p: hashlib.sha1(p.encode(), usedforsecurity=False).digest()
    )
    chosen = set(patients[: max(1, min(PATIENTS, len(patients) // 8))])
    probed = tuple(name for name in names if patient_of(name) in chosen)
    if len(names) < HELD_OUT_FROM or len(patients) == 1:
        return tuple(names), probed
    return tuple(name for name in names if patient_of(name) not in chosen), probed


def patient_of(name: str) -> str:
    """A case's name without its channel."""
    return CHANNEL.sub("", name)


def build_probe(run: Run, cases: Sequence[Path]) -> Probe | None:
    """A probe of these cases (folder / name), the same for the same seed; None where nothing in them could be found again."""
    known = {}
    for case in cases:
        try:
            read_case(case.parent, case.name)
            known[case] = read_properties(case.parent, case.name)
        except (ValueError, OSError) as error:
            log.warning("%s is not probed: %s", case, error)
    pairs = [probe_pair(run, known, i) for i in range(PAIRS)] if known else []
    pairs = [pair for pair in pairs if len(pair.asked)]
    if not pairs:
        return None
    plan = run.configuration.features
    project = partial(joint_pca, components=plan.components)
    return Probe(pairs, partial(_encode, window_size=run.configuration.pretraining.crop_size, device=run.device), project)


def probe_pair(run: Run, known: dict[Path, CaseProperties], number: int) -> ProbePair:
    """Pair `number` of a probe: a crop on the body of one of the cases, in turn.

    In every other turn what is deformed is another contrast of the same patient, if there is one.
    """
    turn, place = divmod(number, len(known))
    case = list(known)[place]
    source, properties = read_case(case.parent, case.name)
    others = other_contrasts(properties, [p for c, p in known.items() if c.parent == case.parent])
    deformed = read_case(case.parent, others[turn // 2 % len(others)])[0] if others and turn % 2 == 0 else source
    plan = run.configuration.pretraining
    points = np.array(properties.foreground_points, dtype=float).reshape(-1, 3)
    centre = crop_centre(source.grid.shape, plan.crop_size, points, 1.0, np.random.default_rng([run.seed, 3, number]))
    start = np.round(centre - (np.array(plan.crop_size) - 1) / 2).astype(int)
    return make_pair(source, deformed, start, plan.crop_size, run.configuration.network.patch_size, (run.seed, 4, number))


def other_contrasts(properties: CaseProperties, known: Sequence[CaseProperties]) -> list[str]:
    """Other MR channels of the same patient whose files had the same voxels, so that they show the same places.

    CT is never paired with MR: they are taken in different scanners, and one grid does not mean one place.
    """
    if is_ct(properties.channel_name):
        return []
    others = [other for other in known if other.name != properties.name and not is_ct(other.channel_name)]
    same_patient = [other for other in others if patient_of(other.name) == patient_of(properties.name)]
    return [other.name for other in same_patient if other.original_grid == properties.original_grid]


def _encode(image: Image, encoder: nn.Module, window_size, device: torch.device) -> FeatureMap:
    return encode(image, encoder, window_size=window_size, window_overlap=0.0, token_shifts=(1, 1, 1), device=device)
