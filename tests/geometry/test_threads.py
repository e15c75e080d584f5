"""Kernels on threads: every part is done once, whoever does it; errors arrive; a fork and callers at one time do no harm."""

import multiprocessing
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from nnssl_reg.geometry.threads import LEAST_BYTES, compiled, on_threads


@compiled()
def count_up(first, last, out):
    for i in range(first, last):
        out[i] += i


@pytest.fixture
def three_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


LARGE = np.zeros(LEAST_BYTES, np.uint8)  # an argument that makes more than one thread worth while


@compiled()
def count_up_beside(first, last, out, large):
    for i in range(first, last):
        out[i] += i


@pytest.mark.parametrize("count", [0, 1, 2, 11, 12, 13, 1000])
def test_every_item_is_done_once(three_threads, count):
    few, many = np.zeros(count), np.zeros(count)
    on_threads(count_up, count, few)
    on_threads(count_up_beside, count, many, LARGE)
    assert np.array_equal(few, np.arange(count)) and np.array_equal(many, few)


def test_little_work_stays_on_one_thread(three_threads):
    calls = []
    on_threads(lambda first, last, values: calls.append((first, last)), 12, LARGE[1:])
    assert calls == [(0, 12)]


def test_the_work_is_shared_by_as_many_threads_as_torch_uses(three_threads):
    meeting, seen = threading.Barrier(3, timeout=20), set()

    def kernel(first, last, large):
        if threading.get_ident() not in seen:
            seen.add(threading.get_ident())
            meeting.wait()

    on_threads(kernel, 12, LARGE)
    assert len(seen) == 3


def test_an_error_of_any_slab_is_raised(three_threads):
    def kernel(first, last, large):
        if first <= 7 < last:
            raise ValueError("slab of 7")

    with pytest.raises(ValueError, match="slab of 7"):
        on_threads(kernel, 12, LARGE)


def test_callers_at_one_time_do_not_mix(three_threads):
    outs = [np.zeros(500) for _ in range(8)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda out: on_threads(count_up_beside, 500, out, LARGE), outs))
    assert all(np.array_equal(out, np.arange(500)) for out in outs)


def test_a_caller_does_not_wait_for_the_threads_that_another_keeps_busy(three_threads):
    go_on, begun = threading.Event(), threading.Barrier(4, timeout=20)

    def slow(first, last, large):
        if first < 3:
            begun.wait()
        go_on.wait(timeout=20)

    other, out = threading.Thread(target=on_threads, args=(slow, 3, LARGE)), np.zeros(500)
    other.start()
    begun.wait()
    quick = threading.Thread(target=on_threads, args=(count_up_beside, 500, out, LARGE))
    quick.start()
    quick.join(timeout=10)
    done = not quick.is_alive()
    go_on.set()
    other.join()
    quick.join()
    assert done and np.array_equal(out, np.arange(500))


def _sum_in_child(queue):
    out = np.zeros(100)
    on_threads(count_up_beside, 100, out, LARGE)
    queue.put(out.sum())


@pytest.mark.skipif(sys.platform == "win32", reason="there is no fork")
def test_a_forked_process_has_threads_of_its_own(three_threads):
    on_threads(count_up_beside, 100, np.zeros(100), LARGE)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_sum_in_child, args=(queue,))
    child.start()
    assert queue.get(timeout=60) == 4950
    child.join()
