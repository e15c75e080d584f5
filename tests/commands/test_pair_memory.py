"""Predicted memory of registrations: near what a run takes, refused with a way out where it is far more than there is."""

import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from nnssl_reg.commands import pair_memory
from nnssl_reg.commands.entry import main
from nnssl_reg.commands.pair_memory import check_memory, memory_told
from nnssl_reg.commands.registration_setup import make_setup
from nnssl_reg.geometry.grid import Grid
from nnssl_reg.geometry.image import Image
from nnssl_reg.imageio.images import write_image
from nnssl_reg.imageio.json_files import write_json
from nnssl_reg.imageio.pairs import Pair
from nnssl_reg.planning.memory import registration_memory

RUN = """
import sys
from nnssl_reg.commands.entry import main
from nnssl_reg.geometry.host_memory import peak_bytes
main(sys.argv[1:], name="nnssl_register")
print("peak", peak_bytes() / 1e9)
heavy = {"timm", "dynamic_network_architectures"} & set(sys.modules)
print("heavy", *heavy)
"""


def setup_for(*grids: Grid):
    return make_setup(grids, torch.device("cpu"), kind="mind")


def cube(edge: int, spacing: float = 1.5) -> Grid:
    return Grid((edge,) * 3, np.diag([spacing] * 3 + [1.0]))


@pytest.mark.skipif(sys.platform == "win32", reason="the system does not tell a process' peak")
def test_the_prediction_is_near_the_peak_of_a_run_which_loads_no_network(tmp_path, turned_grid, body_image):
    for name in ("a", "b"):
        write_image(tmp_path / f"{name}.nii.gz", body_image(turned_grid((110, 100, 90), 1.0, (0, 3, 5))))
    flags = ["-f", "a.nii.gz", "-m", "b.nii.gz", "-o", "out", "--features", "mind", "--init", "moments", "--no_pbar",
             "--set", "registration.iterations=2"]  # fmt: skip
    for again in ([], ["--overwrite"]):  # what the first run may take to compile is not the registration's
        command = [sys.executable, "-c", RUN, *flags, *again]
        told = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    predicted, peak = float(re.search(r"Memory: about ([\d.]+) GB", told)[1]), float(re.search(r"peak ([\d.]+)", told)[1])
    assert 0.75 * peak < predicted < 1.35 * peak
    assert "heavy\n" in told  # MIND needs no network, which takes 0.2 GB and seconds to load


def test_memory_grows_with_the_voxels_and_holds_images_and_features():
    grid, setup = cube(100), setup_for(cube(100))
    one = registration_memory(grid, grid, setup.features, setup.registration)
    eight = registration_memory(cube(200), cube(200), setup.features, setup.registration)
    for part in ("images", "maps", "search"):
        assert getattr(eight, part) == pytest.approx(8 * getattr(one, part), rel=0.1)
    assert 4 * one.output < eight.output < 8 * one.output  # part of it is worked on in slabs
    assert one.images >= 2 * 4 * 100**3 and one.maps >= 2 * 24 * 4 * 50**3  # what is certainly held at one time
    assert one.peak(2) > one.peak()


def test_pairs_that_are_far_too_large_are_refused_with_a_spacing_that_fits(monkeypatch):
    grids = cube(900, 0.4), cube(900, 0.4)
    setup = setup_for(*grids)
    monkeypatch.setattr(pair_memory, "free_memory", lambda: 1e15)
    check_memory("fine", grids, setup)
    free = pair_memory.LOADED_LATER + 0.6 * pair_memory._memory(grids, setup).peak()
    monkeypatch.setattr(pair_memory, "free_memory", lambda: free)
    with pytest.raises(
        ValueError, match=r"p: registering 900 x 900 x 900 and .* takes about [\d.]+ GB, and [\d.]+ GB are free"
    ):
        check_memory("p", grids, setup)
    monkeypatch.setattr(pair_memory, "free_memory", lambda: 1e9)
    with pytest.raises(ValueError, match="the images alone are too large: crop them"):
        check_memory("p", grids, setup)


def test_what_refining_every_voxel_takes_is_counted_and_left_out_first(monkeypatch):
    grids = cube(100), cube(100)
    finely = ["features.mind_spacing_mm=0.5", "features.mind_stride=2"]
    setup = make_setup(grids, torch.device("cpu"), kind="mind", overrides=finely)
    plain = replace(setup, registration=replace(setup.registration, voxel_iterations=0))
    most, least = (pair_memory.LOADED_LATER + pair_memory._memory(grids, s).peak() for s in (setup, plain))
    assert least < most
    monkeypatch.setattr(pair_memory, "free_memory", lambda: least)
    monkeypatch.setattr(pair_memory, "CERTAIN", 1.0)
    with pytest.raises(ValueError, match="it fits: --set registration.voxel_iterations=0"):
        check_memory("p", grids, setup)
    check_memory("p", grids, plain)
    every = replace(setup.features, mind_stride=(1, 1, 1))
    finer, same = (registration_memory(*grids, every, s.registration).search for s in (setup, plain))
    assert finer == same  # cells are voxels already


def test_the_flags_that_are_offered_make_it_fit(monkeypatch):
    grids = cube(200, 1.0), cube(200, 1.0)
    setup = make_setup(
        grids, torch.device("cpu"), kind="mind", overrides=["features.mind_spacing_mm=0.4", "features.mind_stride=1"]
    )
    need = pair_memory._memory(grids, setup)
    monkeypatch.setattr(pair_memory, "free_memory", lambda: pair_memory.LOADED_LATER + 0.3 * need.peak())
    with pytest.raises(ValueError) as refused:
        check_memory("p", grids, setup)
    overrides = re.findall(r"--set ([\w.]+=[\d.,]+\d)", str(refused.value))
    assert len(overrides) == 2
    check_memory("p", grids, make_setup(grids, torch.device("cpu"), kind="mind",
                                        overrides=["features.mind_stride=1", *overrides]))  # fmt: skip


def test_a_close_call_is_warned_of_and_goes_on(monkeypatch, caplog):
    grids = cube(120), cube(120)
    setup = setup_for(*grids)
    need = pair_memory.LOADED_LATER + pair_memory._memory(grids, setup).peak()
    monkeypatch.setattr(pair_memory, "free_memory", lambda: 0.9 * need)
    check_memory("p", grids, setup)
    assert "GB are free" in caplog.text


def test_a_pair_that_does_not_fit_is_a_row_and_the_others_go_on(tmp_path, turned_grid, body_image, monkeypatch, capsys):
    for name, shape in (("a", (20, 22, 24)), ("b", (24, 20, 22)), ("huge", (60, 60, 60))):
        write_image(tmp_path / f"{name}.nii.gz", body_image(turned_grid(shape, 4.5)))
    write_json(
        tmp_path / "pairs.json", [{"fixed": f"{name}.nii.gz", "moving": "b.nii.gz", "id": name} for name in ("huge", "a")]
    )
    monkeypatch.setattr(pair_memory, "LOADED_LATER", 0)
    monkeypatch.setattr(pair_memory, "free_memory", lambda: 8e6)
    flags = ("-i", tmp_path / "pairs.json", "-o", tmp_path / "out", "--features", "mind", "--init", "identity", "--no_pbar",
             "--no_figures", "-device", "cpu", "--set", "registration.iterations=1")  # fmt: skip
    assert main([*map(str, flags)], name="nnssl_register") == 1
    said = capsys.readouterr().out
    assert "(huge), 0.0 GB are free" in said and "failed: huge: huge: registering 60 x 60 x 60" in said
    assert (tmp_path / "out" / "a_warped.nii.gz").is_file() and not (tmp_path / "out" / "huge_warped.nii.gz").exists()


def test_files_that_cannot_be_read_do_not_stop_the_prediction(tmp_path):
    (tmp_path / "x.nii.gz").write_bytes(b"no image")
    pair = Pair("x", tmp_path / "x.nii.gz", tmp_path / "x.nii.gz")
    assert "no pair is readable" in memory_told([pair], setup_for(cube(40)))


def test_with_a_gpu_main_memory_need_not_hold_what_the_gpu_does_which_is_asked_itself(monkeypatch, caplog):
    grids = cube(160), cube(160)
    setup = replace(setup_for(*grids), device=torch.device("cuda"))
    need = pair_memory._memory(grids, setup)
    monkeypatch.setattr(pair_memory, "LOADED_LATER", 0)
    monkeypatch.setattr(pair_memory, "free_memory", lambda: need.images + need.output)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 1e9)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (need.maps + need.search + 13 * 160**3 - 1e9, 8e10))
    check_memory("p", grids, setup)
    assert caplog.text == ""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (0, 8e10))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 0.5 * need.search)
    check_memory("p", grids, setup)
    assert "GB of cuda" in caplog.text and "-device cpu" in caplog.text
    monkeypatch.setattr(pair_memory, "free_memory", lambda: 0.5 * (need.images + need.output))
    with pytest.raises(ValueError, match="the images are too large: crop them"):
        check_memory("p", grids, setup)


def test_the_line_on_memory_tells_of_the_gpu_too(tmp_path, monkeypatch):
    write_image(tmp_path / "a.nii.gz", Image(np.arange(30**3, dtype=np.float32).reshape(1, 30, 30, 30), cube(30, 4.0)))
    pair = Pair("a", tmp_path / "a.nii.gz", tmp_path / "a.nii.gz")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (7e9, 8e9))
    told = memory_told([pair], replace(setup_for(cube(30, 4.0)), device=torch.device("cuda", 1)))
    assert re.search(r"GB at most, [\d.]+ GB are free; on cuda:1 about [\d.]+ GB, 7.0 GB are free", told)
