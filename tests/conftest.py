import numpy as np
import pytest
import torch

torch.set_num_threads(1)  # bit for bit: with several, MKL chooses how to split a sum by how busy the machine is


@pytest.fixture
def numpy_generator():
    return np.random.default_rng(0)
