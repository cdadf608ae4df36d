import numpy as np
import pytest


@pytest.fixture
def numpy_generator():
    return np.random.default_rng(0)
