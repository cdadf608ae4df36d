import torch

from supernet.training.data.batch import chunk, dropped, examples_in, in_chunks, joined, split, take, whole_batches

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


def test_the_first_examples_are_dropped():
    parts = split(BATCH, 2)
    for count in range(7):
        left = list(dropped(parts, count))
        assert sum(map(examples_in, left)) == max(5 - count, 0)
        if left:
            assert torch.equal(joined(left)["tokens"], BATCH["tokens"][count:])
    assert next(dropped([BATCH], 0)) is BATCH


def sizes(chunks):
    return [[len(batch) for batch in part] for part in chunks]


def test_chunks_are_full_but_for_the_last_two_which_are_alike():
    numbers = torch.arange(23)
    for split_into in ([10, 10, 3], [23], [1] * 23):
        found = list(in_chunks(numbers.split(split_into), 6))
        assert [sum(part) for part in sizes(found)] == [6, 6, 6, 5]
        assert torch.equal(torch.cat([torch.cat(part) for part in found]), numbers)
    assert sizes(in_chunks(numbers.split(10), 6)) == [[6], [4, 2], [6], [2, 3]]
    assert sizes(in_chunks(numbers.split(10), 20)) == [[10, 2], [8, 3]]
    assert sizes(in_chunks(numbers.split(10), 23)) == sizes(in_chunks(numbers.split(10), None)) == [[10, 10, 3]]
    assert list(in_chunks([], 5)) == [[]]


def test_chunks_of_whole_batches():
    numbers = torch.arange(23)
    assert sizes(whole_batches(numbers.split(5), 11)) == [[5, 5], [5, 5], [3]]
    assert sizes(whole_batches(numbers.split(10), 6)) == [[10], [10], [3]]
    assert sizes(whole_batches(numbers.split(10), None)) == [[10, 10, 3]]
