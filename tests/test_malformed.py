"""Files that were damaged: see benchmarks/malformed.py, which tries as many as one likes."""

import logging
import random
from collections import Counter

import pytest

from tests.benchmark import benchmark


@pytest.fixture(scope="module")
def malformed():
    with benchmark("malformed") as module:
        yield module


@pytest.mark.filterwarnings("ignore")  # Pillow's, on images that were cut off
def test_what_is_damaged_ends_in_one_line_or_is_read_right(malformed, tmp_path):
    logging.disable()
    try:
        found = list(malformed.examine(156, tmp_path))
    finally:
        logging.disable(logging.NOTSET)
    assert [(subject.name, number, outcome.what) for subject, number, outcome in found if outcome.is_wrong] == []
    counts = Counter(outcome.what for _, _, outcome in found)
    assert min(counts["refused"] - 80, counts["read right"] - 10) > 0, counts


@pytest.mark.parametrize(
    ("read", "what"),
    [
        (lambda path: {}["name"], "KeyError"),
        (lambda path: path.read_text() + "x", "read wrong"),
        (lambda path: path.read_text(), "read right"),
        (lambda path: int(path.read_text()), "refused"),
    ],
)
def test_readers_are_found_out(malformed, tmp_path, read, what):
    (tmp_path / "file").write_text("saved")
    subject = malformed.Subject("file", "file", read, lambda found, saved: found == saved)
    outcome = malformed.outcome(subject, tmp_path / "file", "saved")
    assert outcome.what.startswith(what)
    assert outcome.is_wrong == (what in ("KeyError", "read wrong"))


def test_an_error_of_several_lines_is_wrong(malformed, tmp_path):
    def read(path):
        raise ValueError("one\ntwo")

    assert malformed.outcome(malformed.Subject("file", "file", read), tmp_path, None).is_wrong


def test_damage_follows_from_its_seed_and_changes_something(malformed):
    content = b'{"width": [8, 16], "depth": {"least": 1}}\n'
    found = [malformed.damaged(content, random.Random(seed), ".json") for seed in range(50)]
    assert found == [malformed.damaged(content, random.Random(seed), ".json") for seed in range(50)]
    assert len(set(found)) > 40
