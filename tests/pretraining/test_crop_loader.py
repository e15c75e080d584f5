"""Which windows are read, and that worker processes change nothing about it."""

from dataclasses import replace

import numpy as np
import pytest

from nnssl_reg.imageio.case_store import read_case
from nnssl_reg.pretraining.case_groups import CaseGroup, case_of
from nnssl_reg.pretraining.crop_loader import close_loader, crop_centre, open_loader


def batches(request, start: int, count: int, workers: int) -> list[dict]:
    loader = open_loader(request, start, workers)
    try:
        return [next(loader) for _ in range(count)]
    finally:
        close_loader(loader)


def test_every_step_has_its_own_windows_wherever_reading_begins(run):
    request = run.window_request
    all_steps, later = batches(request, 0, 5, workers=0), batches(request, 3, 2, workers=0)
    assert [batch["step"] for batch in all_steps] == [0, 1, 2, 3, 4]
    assert all_steps[0]["windows"].shape == (4, 1, *request.window_size)
    assert all_steps[0]["windows"].dtype == np.float32
    for a, b in zip(all_steps[3:], later):
        assert np.array_equal(a["windows"], b["windows"])
    assert not np.array_equal(all_steps[0]["windows"], all_steps[1]["windows"])


def test_worker_processes_give_the_same_windows_in_the_same_order(run):
    alone, shared = (batches(run.window_request, 2, 5, workers) for workers in (0, 2))
    assert [batch["step"] for batch in shared] == [2, 3, 4, 5, 6]
    assert all(np.array_equal(a["windows"], b["windows"]) for a, b in zip(alone, shared))


def test_a_window_holds_the_voxels_around_its_crop(run):
    request = replace(run.window_request, window_size=(8, 8, 8))
    window, unreadable = request.read(0)
    case = case_of(run.groups, 0, run.seed)[0]
    whole = read_case(case.parent, case.name)[0].array[0]
    assert unreadable == {}
    places = np.lib.stride_tricks.sliding_window_view(whole, (8, 8, 8))
    assert np.isclose(places, window[0], atol=1e-3).all(axis=(3, 4, 5)).any()


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_crops_stay_inside_the_case_and_seek_the_foreground(share):
    rng = np.random.default_rng(0)
    foreground = np.array([[30.0, 5.0, 7.0]])
    centres = np.array([crop_centre((40, 12, 6), (8, 8, 8), foreground, share, rng) for _ in range(300)])
    assert (centres[:, 0] >= 3.5).all() and (centres[:, 0] <= 35.5).all()
    assert (centres[:, 1] >= 3.5).all() and (centres[:, 1] <= 7.5).all()
    assert (centres[:, 2] == 2.5).all()  # shorter than the crop: the middle
    assert len(np.unique(centres[:, 0])) == (1 if share else 300)
    if share:
        assert centres[0].tolist() == [30.0, 5.0, 2.5]


def test_in_place_of_a_damaged_case_the_next_is_read_and_the_case_is_named(run):
    (group,) = run.groups
    damaged = group.folder / f"{group.names[1]}.b2nd"
    damaged.write_bytes(b"nothing")
    found = batches(run.window_request, 0, 5, workers=0)  # four turns of five cases
    assert {case for batch in found for case in batch["unreadable"]} == {str(damaged.with_suffix(""))}
    assert all("damaged" in reason for batch in found for reason in batch["unreadable"].values())
    sample = next(s for s in range(5) if case_of(run.groups, s, run.seed)[0].name == group.names[1])
    rest = replace(run.window_request, groups=(CaseGroup(group.folder, (group.names[2],) * 5),))
    assert np.array_equal(run.window_request.read(sample)[0], rest.read(sample)[0])


def test_cases_that_are_all_damaged_end_the_reading_with_the_reason(run):
    for name in run.groups[0].names:
        (run.groups[0].folder / f"{name}.b2nd").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"5 cases of .* one after the other cannot be read.*damaged"):
        batches(run.window_request, 0, 1, workers=0)
