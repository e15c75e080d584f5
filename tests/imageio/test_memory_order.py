"""The same values in the other order, as the type that is asked for."""

import numpy as np
import pytest

from nnssl_reg.imageio.memory_order import PLANES, in_order


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("shape", [(1, 1, 1), (PLANES + 3, 5, 7), (2, 3, 200)])
def test_values_stay_and_lie_as_asked(order, shape):
    stored = np.random.default_rng(0).integers(-1000, 1000, shape).astype(">i2")
    for array in (np.asfortranarray(stored), stored, stored[::-1, :, ::-1]):
        out = in_order(array, np.float32, order)
        assert np.array_equal(out, array) and out.dtype == np.float32 and out.flags[f"{order}_CONTIGUOUS"]
