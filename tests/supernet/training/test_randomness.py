import random

import numpy as np
import pytest
import torch

from supernet.training.randomness import Stream, global_seeds, part_seed


def draws() -> tuple[float, float, float]:
    return random.random(), np.random.rand(), torch.rand(1).item()  # noqa: NPY002


def test_what_is_drawn_follows_from_the_place_alone():
    with global_seeds(0, Stream.AUGMENTATION, 1, 2):
        first = draws()
    draws()
    with global_seeds(0, Stream.AUGMENTATION, 1, 2):
        assert draws() == first
    for place in ((0, Stream.AUGMENTATION, 1, 3), (0, Stream.DROPOUT, 1, 2), (1, Stream.AUGMENTATION, 1, 2)):
        with global_seeds(*place):
            assert not set(draws()) & set(first)


def test_outside_everything_goes_on_even_after_an_error():
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    torch.manual_seed(1)
    expected = [draws() for _ in range(3)]
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    torch.manual_seed(1)
    found = [draws()]
    with global_seeds(0, Stream.AUGMENTATION):
        draws()
    found.append(draws())
    with pytest.raises(KeyError), global_seeds(0, Stream.AUGMENTATION):
        raise KeyError
    assert [*found, draws()] == expected


def test_nesting_is_refused():
    with (
        pytest.raises(AssertionError, match="nested"),
        global_seeds(0, Stream.AUGMENTATION),
        global_seeds(1, Stream.AUGMENTATION),
    ):
        pass


def test_parts_of_trainings_with_neighbouring_seeds_have_no_seed_in_common():
    seeds = {
        part_seed(seed, stream, index)
        for seed in range(10)
        for stream in (Stream.PHASE, Stream.PEER, Stream.BLOCK)
        for index in range(10)
    }
    assert len(seeds | set(range(20))) == 320
    assert max(seeds) < 2**63  # torch.manual_seed takes it
    assert part_seed(3, Stream.PHASE, 1) == part_seed(3, Stream.PHASE, 1)
