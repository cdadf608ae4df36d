"""How many processes load images where nobody says it."""

import os

import pytest

from supernet.training.data.loading import FEWEST_IMAGES, MOST_WORKERS, workers_for


@pytest.mark.parametrize(
    ("cores", "processes", "images", "expected"),
    [
        (8, 1, 10_000, 8),
        (8, 4, 10_000, 2),
        (64, 2, 10_000, MOST_WORKERS),
        (1, 1, 10_000, 0),
        (8, 8, 10_000, 0),
        (8, 1, FEWEST_IMAGES - 1, 0),
        (8, 1, FEWEST_IMAGES, 8),
    ],
)
def test_a_process_a_core_of_each_training_process(monkeypatch, cores, processes, images, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(cores)))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    assert workers_for(images) == expected
    assert workers_for(images, in_memory=True) == 0
