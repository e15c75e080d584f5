"""Arrays turned from the order of files, first axis fastest, to that of numpy and torch, last axis fastest, and back."""

import numpy as np

PLANES = 64  # copied together, so that what is read and what is written both stay in the cache


def in_order(array: np.ndarray, dtype, order: str) -> np.ndarray:
    """A copy of an array (X, Y, Z) as `dtype` in order "C" or "F": what np.array makes, several times faster where the orders
    differ."""
    out = np.empty(array.shape, dtype, order=order)
    for y in range(array.shape[1]):
        for x in range(0, array.shape[0], PLANES):
            out[x : x + PLANES, y] = array[x : x + PLANES, y]
    return out
