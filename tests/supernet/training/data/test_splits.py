import itertools
import logging

import numpy as np
import pytest

from supernet.training.data.splits import held_out_counts, hold_out, warn_of_few_judges, warn_of_small_classes


def test_hand_worked_counts():
    assert held_out_counts(np.array([200, 3]), 0.1).tolist() == [19, 1]  # 20 of 203: 19.7 and 0.3
    assert held_out_counts(np.array([15, 14, 11]), 0.1).tolist() == [2, 1, 1]  # 4 of 40: 1.5, 1.4 and 1.1
    assert held_out_counts(np.array([5, 5, 5]), 0.1).tolist() == [1, 1, 1]  # each class has one, beyond the 2 of 15
    assert held_out_counts(np.array([1, 99]), 0.1).tolist() == [0, 10]  # the one image of a class is trained on
    assert held_out_counts(np.array([2, 2]), 0.9).tolist() == [1, 1]  # each class keeps one to train on
    assert held_out_counts(np.array([1, 1]), 0.5).tolist() == [0, 0]


def test_no_other_counts_are_nearer_to_the_part_of_each_class(numpy_generator):
    for _ in range(30):
        sizes = numpy_generator.integers(1, 12, size=4)
        part = numpy_generator.uniform(0.05, 0.95)
        found = held_out_counts(sizes, part)
        allowed = [range(min(1, size - 1), size) for size in sizes]
        assert all(count in choices for count, choices in zip(found, allowed))
        least, most = sum(choices[0] for choices in allowed), sum(choices[-1] for choices in allowed)
        assert found.sum() == min(max(round(part * sizes.sum()), 1, least), most)

        def distance(counts, sizes=sizes, part=part):
            return np.abs(np.array(counts) - part * sizes).sum()

        others = [counts for counts in itertools.product(*allowed) if sum(counts) == found.sum()]
        assert distance(found) == pytest.approx(min(map(distance, others)))


@pytest.mark.parametrize("seed", range(20))
def test_a_rare_class_is_held_out_with_every_seed(seed):
    labels = np.array([0] * 200 + [1] * 3)
    split = hold_out(labels, 0.1, np.random.default_rng(seed))
    assert sorted(split.train + split.holdout) == list(range(203))
    assert np.bincount(labels[split.holdout]).tolist() == [19, 1]


def test_the_images_held_out_follow_from_the_generator():
    labels = np.arange(60) % 3
    first, again, other = (hold_out(labels, 0.2, np.random.default_rng(seed)) for seed in (0, 0, 1))
    assert first == again
    assert set(first.holdout) != set(other.holdout)


def test_each_image_of_a_class_is_held_out_equally_often():
    labels = np.array([0] * 6 + [1] * 3)
    held = np.zeros(9)
    for seed in range(600):
        held[hold_out(labels, 1 / 3, np.random.default_rng(seed)).holdout] += 1
    assert np.abs(held / 600 - 1 / 3).max() < 0.06  # three standard errors of 0.019


def test_one_label_for_all_gives_the_plain_random_split():
    split = hold_out(np.zeros(50, dtype=int), 0.1, np.random.default_rng(3))
    order = np.random.default_rng(3).permutation(50).tolist()
    assert split == (order[5:], order[:5])


def test_nothing_to_hold_out_is_refused():
    with pytest.raises(ValueError, match="of 3 training images none can be held out to judge subnets by"):
        hold_out(np.arange(3), 0.5, np.random.default_rng(0))


def test_classes_of_few_images_are_named(caplog):
    labels = np.array([0] * 5 + [2] + [4] * 2)
    with caplog.at_level(logging.WARNING):
        warn_of_small_classes(labels, ("a", "b", "c", "d", "e"))
    assert caplog.messages == [
        "2 of 5 classes have no training image: b, d",
        "1 of 5 classes have one training image, so that none is held out: c",
    ]
    caplog.clear()
    warn_of_small_classes(np.array([0, 0, 1, 1]), ("a", "b"))
    assert caplog.messages == []


def test_too_few_images_to_judge_by_are_said(caplog):
    warn_of_few_judges(100, 10)  # a standard error of 5 points at most
    assert caplog.messages == []
    warn_of_few_judges(64, 10)
    warn_of_few_judges(900, 1000)
    assert [message.split(";")[0] for message in caplog.messages] == [
        "64 held-out images judge subnets of 10 classes: an accuracy by them has a standard error of up to 6 points",
        "900 held-out images judge subnets of 1000 classes: an accuracy by them has a standard error of up to 2 points",
    ]
