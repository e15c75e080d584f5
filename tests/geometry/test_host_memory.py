"""Tensors as arrays in the computer's memory, and what its allocator keeps."""

import platform
import subprocess
import sys

import numpy as np
import psutil
import pytest
import torch

from nnssl_reg.geometry.host_memory import give_back_free_pages, on_host, peak_bytes


def test_an_array_of_the_cpu_is_its_own_memory():
    values = torch.arange(24.0).reshape(2, 3, 4)
    assert np.shares_memory(on_host(values), values.numpy())


@pytest.mark.gpu
def test_an_array_of_a_gpu_is_a_copy_in_pinned_memory():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    values = torch.arange(24.0, device="cuda").reshape(2, 3, 4).transpose(0, 2)
    found = on_host(values)
    assert torch.from_numpy(found).is_pinned() and np.array_equal(found, values.cpu().numpy())


def test_gaps_that_nothing_uses_are_given_back():
    kept = [np.ones(12_500) for _ in range(2000)]  # 100 kB each, from the heap
    kept = kept[::200]
    before = psutil.Process().memory_info().rss
    give_back_free_pages()
    given_back = before - psutil.Process().memory_info().rss
    assert len(kept) == 10 and (platform.libc_ver()[0] != "glibc" or given_back > 1e8)


@pytest.mark.skipif(sys.platform == "win32", reason="the system does not tell it")
def test_the_peak_is_the_most_there_was_and_no_other_programs():
    held = np.ones(40_000_000)  # 320 MB
    most = peak_bytes()
    assert most >= held.nbytes
    del held
    assert peak_bytes() >= 0.99 * most  # it does not fall, but for pages that the system counts late
    script = (
        "import psutil; from nnssl_reg.geometry.host_memory import *; print(peak_bytes(), psutil.Process().memory_info()[0])"
    )
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    peak, now = map(int, told.split())
    assert now <= 1.01 * peak < 1.5 * now  # of a small program that a large one started
