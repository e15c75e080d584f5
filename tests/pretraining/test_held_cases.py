"""Windows cut out of held cases are those that are read from the files."""

import multiprocessing
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch

from nnssl_reg.imageio.case_store import open_case, read_crop
from nnssl_reg.pretraining.crop_loader import close_loader, held_batches, open_loader
from nnssl_reg.pretraining.held_cases import HeldCases, cut_held, room_for

CPU = torch.device("cpu")


def cases(run) -> list:
    (group,) = run.groups
    return [group.folder / name for name in group.names]


def test_held_cases_give_the_same_windows_as_files(run):
    held, read = held_batches(run.window_request, 2, CPU), open_loader(run.window_request, 2, 0)
    for ours, theirs in islice(zip(held, read), 6):
        assert ours["step"] == theirs["step"] and ours["unreadable"] == theirs["unreadable"] == {}
        assert ours["windows"].dtype == torch.float32
        assert np.array_equal(ours["windows"].numpy(), theirs["windows"])


@pytest.mark.parametrize("start", [(-3, 2, 4), (9, -2, 11), (2, 1, 3), (-20, 0, 0), (0, 0, 30)])
def test_outside_a_held_case_is_its_minimum(run, start):
    case = cases(run)[0]
    held, _, _ = HeldCases(CPU).opened(case)
    assert np.array_equal(
        cut_held(held, start, (6, 7, 8)).numpy(), read_crop(open_case(case.parent, case.name), start, (6, 7, 8))
    )


def test_what_no_longer_fits_is_read_again(run):
    first, second = cases(run)[:2]
    held = HeldCases(CPU, limit=1)
    voxels = held.opened(first)[0].voxels
    assert held.opened(first)[0].voxels is voxels
    held.opened(second)
    again = held.opened(first)[0].voxels
    assert again is not voxels and torch.equal(again, voxels)


def test_a_damaged_case_is_left_out_of_held_ones_too(run):
    (group,) = run.groups
    damaged = group.folder / f"{group.names[1]}.b2nd"
    damaged.write_bytes(b"nothing")
    found = list(islice(held_batches(run.window_request, 0, CPU), 5))
    assert {case for batch in found for case in batch["unreadable"]} == {str(damaged.with_suffix(""))}


def test_cases_that_the_gpu_has_no_room_for_are_read_from_their_files_and_none_is_called_unreadable(run, monkeypatch, caplog):
    opened = HeldCases.opened

    def full(self, case):
        if len(self._held) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return opened(self, case)

    monkeypatch.setattr(HeldCases, "opened", full)
    held, read = held_batches(run.window_request, 0, CPU, workers=1), open_loader(run.window_request, 0, 0)
    for ours, theirs in islice(zip(held, read), 5):
        assert ours["step"] == theirs["step"] and ours["unreadable"] == {}
        assert np.array_equal(np.asarray(ours["windows"]), theirs["windows"])
    close_loader(held)
    assert [record.getMessage()[:38] for record in caplog.records] == ["cpu has no room to hold the cases; the"]
    assert multiprocessing.active_children() == []


def test_only_a_gpu_with_room_holds_cases(run, monkeypatch):
    files = sum(case.with_name(f"{case.name}.b2nd").stat().st_size for case in cases(run))
    assert not room_for(cases(run), CPU)
    for free, fits in ((21 * files, True), (19 * files, False)):  # 4 bytes of a fifth of the memory for each byte of a file
        monkeypatch.setattr("torch.cuda.mem_get_info", lambda device, free=free: (free, free))
        assert room_for(cases(run), torch.device("cuda")) is fits
    many = replace(run.window_request.groups[0], names=run.groups[0].names * 500).names
    assert not room_for([run.groups[0].folder / name for name in many], torch.device("cuda"))
