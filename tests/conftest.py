import os

import numpy as np
import pytest
import torch

os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's 15 lets its workers starve beside the other tests

torch.set_num_threads(1)  # bit for bit: with several, MKL chooses how to split a sum by how busy the machine is


@pytest.fixture
def numpy_generator():
    return np.random.default_rng(0)
