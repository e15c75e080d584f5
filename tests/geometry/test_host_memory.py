"""Tensors as arrays in the computer's memory."""

import numpy as np
import pytest
import torch

from nnssl_reg.geometry.host_memory import on_host


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
