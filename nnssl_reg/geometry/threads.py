"""Compiled kernels on several threads: each takes slabs of the work, and Python's lock is let go while they run."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial

import numba
import numpy as np
import torch

# contract lets a multiply and an add fuse, reassoc lets sums use vectors; NaN keeps its meaning
FAST = {"contract", "reassoc", "nsz"}
LEAST_BYTES = 2**18  # of arrays that are worth a second thread, which takes some 0.05 ms to hear of it
SLABS = 4  # per thread, so that none waits long for another which was held up

# kernels assign slices by loops: numba compiles a second for the error of each assignment whose shapes might differ
compiled = partial(numba.njit, nogil=True, cache=True, error_model="numpy")


def on_threads(kernel: Callable, count: int, *arguments) -> None:
    """Call kernel(first, last, *arguments) for slabs that together make up range(count), on as many threads as torch uses.

    Where the arrays among the arguments are small, one call on this thread does it. The kernel may write only what belongs to
    its slab, so that results do not depend on the threads.
    """
    threads = min(torch.get_num_threads(), count)
    if threads <= 1 or sum(a.nbytes for a in arguments if isinstance(a, np.ndarray)) < LEAST_BYTES:
        kernel(0, count, *arguments)
        return
    slabs = min(SLABS * threads, count)
    bounds = [count * i // slabs for i in range(slabs + 1)]
    waiting = iter(list(zip(bounds[:-1], bounds[1:])))  # shared: whoever is free takes the next

    def work() -> None:
        for first, last in waiting:
            kernel(first, last, *arguments)

    helpers = [_pool(os.getpid(), threads).submit(work) for _ in range(threads - 1)]
    work()
    for helper in helpers:
        if not helper.cancel():  # one that has not begun, for the threads are another caller's, has nothing left to do
            helper.result()


@cache
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    """A forked process has no threads of its parent's pool, so it gets its own."""
    return ThreadPoolExecutor(threads - 1)
