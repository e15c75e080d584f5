"""Cases kept from training: the same ones for the same names, whole patients, and contrasts that show the same places."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from nnssl_reg.commands.held_out import build_probe, other_contrasts, probe_pair, split
from nnssl_reg.geometry.grid import Grid
from nnssl_reg.imageio.case_store import CaseProperties, GridRecord, write_case
from nnssl_reg.planning.plans import Configuration, FeaturesPlan, ImagePlan, NetworkPlan, PretrainingPlan, RegistrationPlan
from nnssl_reg.pretraining import probe
from nnssl_reg.pretraining.case_groups import CaseGroup
from nnssl_reg.pretraining.training_state import Run, start

SHAPE = (20, 18, 16)


def case(folder, name: str, channel: str = "MR", shape=SHAPE, array: np.ndarray | None = None) -> CaseProperties:
    """A stored case of waves, or of an array."""
    folder.mkdir(exist_ok=True)
    x, y, z = np.meshgrid(*map(np.arange, SHAPE), indexing="ij")
    array = np.sin(x / 3) * np.cos(y / 4) * np.sin(z / 2) if array is None else array
    grid = GridRecord.of(Grid(SHAPE, np.eye(4)))
    original = GridRecord.of(Grid(shape, np.eye(4)))
    box, points = [[0, n] for n in SHAPE], [[10, 9, 8], [6, 6, 6]]
    properties = CaseProperties(name, name[-1], channel, "x.nii.gz", "raw", "plans", original, box, grid, {}, points)
    write_case(folder, array[None].astype(np.float32), properties, (8, 8, 8))
    return properties


@pytest.fixture
def run(tmp_path, filled_section) -> Run:
    """A run on tiny crops."""
    pretraining = filled_section(PretrainingPlan, crop_size=(12, 12, 8), centering="sinkhorn", prototypes=8)
    plan = Configuration(ImagePlan((1.0, 1.0, 1.0), SHAPE, 1.0, {}), NetworkPlan(24, 1, 2, (2, 2, 2), 1, 0.0), pretraining,
                         filled_section(FeaturesPlan, components=4), filled_section(RegistrationPlan))  # fmt: skip
    return Run(plan, "3d_fullres", "Dataset001_X", (CaseGroup(tmp_path / "cases", ("A_0000",)),), 3, torch.device("cpu"))


@pytest.mark.parametrize(("patients", "held"), [(8, 1), (15, 1), (16, 2), (32, 4), (500, 4)])
def test_one_patient_of_eight_and_four_at_most_are_held_out_whatever_the_order_of_names(patients, held):
    names = [f"Case_{i:04d}_{c:04d}" for i in range(patients) for c in range(2)]
    trained, probed = split(names)
    assert len(probed) == 2 * held and len(trained) == 2 * (patients - held)
    assert {name[:-5] for name in trained}.isdisjoint(name[:-5] for name in probed)
    again, probed_again = split(names[::-1])
    assert set(again) == set(trained) and set(probed_again) == set(probed)


def test_few_cases_and_a_single_patient_are_all_trained_on_and_probed():
    names = [f"Case_{i:04d}_0000" for i in range(7)]
    trained, probed = split(names)
    assert list(trained) == names and len(probed) == 1 and set(probed) <= set(names)
    channels = [f"Case_0000_{i:04d}" for i in range(9)]
    assert split(channels) == (tuple(channels), tuple(channels))


def test_another_contrast_is_one_of_the_same_patient_on_the_same_voxels_and_no_ct(tmp_path):
    known = [case(tmp_path / "cases", *described) for described in
             (("A_0000",), ("A_0001",), ("A_0002", "CT"), ("A_0003", "MR", (9, 9, 9)), ("B_0000",))]  # fmt: skip
    assert other_contrasts(known[0], known) == ["A_0001"]
    assert other_contrasts(known[2], known) == [] == other_contrasts(known[4], known)


def test_a_pair_of_contrasts_shows_the_one_deformed_and_the_other_as_it_is(run, tmp_path, monkeypatch):
    monkeypatch.setattr(probe, "STRENGTH", 0.0)
    folder = run.groups[0].folder
    known = {
        folder / name: case(folder, name, array=np.full(SHAPE, value)) for name, value in (("A_0000", 0.25), ("A_0001", 0.5))
    }
    pair = probe_pair(run, known, 0)
    np.testing.assert_allclose(pair.moving.array, 0.25)
    assert set(np.unique(pair.fixed.array)) <= {0.5}
    np.testing.assert_allclose(probe_pair(run, known, 2).fixed.array, 0.25, atol=1e-6)  # every other turn one contrast alone


def test_the_probe_is_the_same_every_time_and_follows_the_seed(run, tmp_path):
    folder = run.groups[0].folder
    for name in ("A_0000", "B_0000"):
        case(folder, name)
    encoder = start(run).pair.teacher.encoder
    first, again, other = (
        build_probe(r, (folder / "A_0000", folder / "B_0000"))(encoder) for r in (run, run, replace(run, seed=4))
    )
    assert first == again != other
    assert 0 <= first.recall <= 1 and 0 < first.error_mm < 20


def test_cases_without_anything_in_them_are_not_probed(run):
    folder = run.groups[0].folder
    case(folder, "A_0000", array=np.zeros(SHAPE))
    assert build_probe(run, (folder / "A_0000",)) is None


def test_a_case_that_cannot_be_read_is_not_probed_and_said(run, caplog):
    folder = run.groups[0].folder
    for name in ("A_0000", "B_0000"):
        case(folder, name)
    alone = build_probe(run, (folder / "A_0000",))
    (folder / "B_0000.b2nd").write_bytes(b"nothing")
    both = build_probe(run, (folder / "B_0000", folder / "A_0000"))
    assert "B_0000" in caplog.text
    assert all(np.array_equal(a.moving.array, b.moving.array) for a, b in zip(alone.pairs, both.pairs))
