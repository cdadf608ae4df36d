"""Random numbers that follow from a seed and a place, so that nothing depends on what was drawn before.

Every draw of a training run belongs to a stream (the order of the images, their augmentation, the subnets, dropout)
and a place in it (an epoch, a step, an image). A resumed run therefore draws what an uninterrupted one does.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from enum import IntEnum

import numpy as np
import torch


class Stream(IntEnum):
    ORDER = 0
    AUGMENTATION = 1
    SUBNETS = 2  # of a step, or of a process in it; NumPy seeds the first process as it does the step
    DROPOUT = 3
    SPLIT = 4
    CALIBRATION = 5
    EVALUATION = 6
    PHASE = 7
    PEER = 8
    BLOCK = 9
    PATHS = 10
    SCORES = 11
    WEIGHTS = 12
    COMPANIONS = 13
    RACE = 14
    MEMBERS = 15
    INVERSION = 16
    MIXING = 17
    RESOLUTION = 18  # of a run of steps


VERSION = 2
"""How draws follow from a seed; until version 1 phases, peers and blocks had the seeds that follow the training's."""


def part_seed(seed: int, stream: Stream, *place: int) -> int:
    """The seed of a part of a training that has streams of its own, such as the third phase: below 2^63.

    Phases of trainings with neighbouring seeds have nothing in common, as they would by the seed `seed + index`.
    """
    return int(np.random.SeedSequence([seed, stream, *place]).generate_state(1, np.uint64)[0] >> 1)


def generator(seed: int, stream: Stream, *place: int) -> np.random.Generator:
    """The generator of a place in a stream; different places have independent generators."""
    return np.random.default_rng([seed, stream, *place])


@contextlib.contextmanager
def torch_seed(device: torch.device, seed: int, stream: Stream, *place: int) -> Iterator[None]:
    """Within the context, torch's global generators of the CPU and of `device` are those of a place; outside they are
    as they were.

    For what takes no generator: dropout and stochastic depth.
    """
    with torch.random.fork_rng([] if device.type == "cpu" else [device], device_type=device.type):
        torch.manual_seed(part_seed(seed, stream, *place))
        yield


# NumPy's within `global_seeds`: saving the state outside, or making a generator each time, takes longer
_INSIDE = np.random.MT19937(0)


@contextlib.contextmanager
def global_seeds(seed: int, stream: Stream, *place: int) -> Iterator[None]:
    """Like `torch_seed`, for Python's and NumPy's global generators as well, and torch's on the CPU alone.

    For image transforms, which draw from all three. Not to be nested. A normal number that NumPy has in store outside,
    since it draws them in pairs, is lost.
    """
    python_state, numpy_generator = random.getstate(), np.random.get_bit_generator()
    assert numpy_generator is not _INSIDE, "global_seeds is nested"
    with torch.random.fork_rng(devices=[]):
        value = part_seed(seed, stream, *place)
        try:
            random.seed(value)
            np.random.set_bit_generator(_INSIDE)
            np.random.seed(value % 2**32)  # noqa: NPY002
            torch.default_generator.manual_seed(value)
            yield
        finally:
            random.setstate(python_state)
            np.random.set_bit_generator(numpy_generator)
