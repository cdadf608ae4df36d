import torch

from supernet.training.data.batch import chunk, examples_in, joined, split, take

BATCH = {"tokens": torch.arange(10).view(5, 2), "more": (torch.arange(5.0), "plain")}


def same(a, b):
    return a["tokens"].equal(b["tokens"]) and a["more"][0].equal(b["more"][0]) and a["more"][1] == b["more"][1]


def test_a_batch_is_taken_apart_and_joined_again():
    parts = split(BATCH, 2)
    assert [examples_in(part) for part in parts] == [2, 2, 1]
    assert parts[1]["tokens"].tolist() == [[4, 5], [6, 7]]
    assert parts[1]["more"][0].tolist() == [2, 3]
    assert all(part["more"][1] == "plain" for part in parts)
    assert same(joined(parts), BATCH)
    assert [examples_in(part) for part in chunk(BATCH, 2)] == [3, 2]
    assert chunk(BATCH, 1) == [BATCH]


def test_only_the_first_examples_are_taken():
    def batches():
        yield BATCH
        yield BATCH
        raise AssertionError("no more are needed")

    assert [examples_in(part) for part in take(batches(), 7)] == [5, 2]
    assert [examples_in(part) for part in take(batches(), 10)] == [5, 5]
    assert [examples_in(part) for part in take(split(BATCH, 2), None)] == [2, 2, 1]
    assert next(take(batches(), 7)) is BATCH
