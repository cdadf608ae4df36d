"""What is said of how sure a front is, of hand-made values of examples."""

import numpy as np
import pytest

from search.certainty import mcnemar, wilson
from search.front import front_certainty
from search.history import Evaluation
from search.scores.accuracy import Judged
from supernet.space import Arch

SMALL, MIDDLE, LARGE = (Arch({"width": width}) for width in (8, 16, 24))


def right(count, of):
    """Right about the first `count` examples, so that of two networks the better is right wherever the other is."""
    values = (np.arange(of) < count).astype(float)
    return Judged(float(values.mean()), values)


def evaluation(arch, score, name="accuracy"):
    return Evaluation(arch, {name: score}, {"macs": float(arch["width"])}, 0)


def sure(counts, of, considered=3, fresh=None, fresh_of=0):
    archs = [SMALL, MIDDLE, LARGE][: len(counts)]
    judged = {arch: right(count, of) for arch, count in zip(archs, counts)}
    confirmed = fresh and {arch: right(count, fresh_of) for arch, count in zip(archs, fresh)}
    front = [evaluation(arch, judged[arch].score) for arch in archs]
    return front_certainty("accuracy", front, considered, judged, confirmed)


def test_few_images_give_few_digits_and_wide_intervals():
    rows = sure([50, 52], 61, considered=40).columns()
    assert rows[1] == {
        "accuracy": 0.85,
        "accuracy, low": round(wilson(52 / 61, 61)[0], 2),
        "accuracy, high": round(wilson(52 / 61, 61)[1], 2),
        "as good as the best": "yes",
    }
    assert sure([7000, 7531], 10000).columns()[1]["accuracy"] == 0.753


def test_what_is_worse_beyond_doubt_is_not_marked():
    found = sure([400, 490, 492], 500)
    assert [row["as good as the best"] for row in found.columns()] == ["no", "yes", "yes"]
    assert found.notes() == [
        "1 of the front's 2 other architectures cannot be told apart from the best by 500 held-out examples (paired "
        "tests at 5 %, corrected for the 3 architectures that the best was picked from)"
    ]
    assert mcnemar(8, 0) < 0.05 / 2
    assert [row["as good as the best"] for row in sure([400, 484, 492], 500).columns()] == ["no", "no", "yes"]
    assert sure([400, 484, 492], 500).notes() == []
    assert sure([400, 484, 492], 500, considered=1000).as_good == [False, True, True]


def test_examples_that_are_too_few_for_the_choice_say_so_and_how_many_would_do():
    *_, line = sure([50, 52], 61, considered=40).notes()
    # 2 of 61 examples tell the two apart; z is 3.22 for 5 % of 39 tests, and 0.84 for a power of 80 %
    detectable = (3.222 + 0.842) * np.sqrt((2 / 61 - (2 / 61) ** 2) / 61)
    assert line == (
        "61 held-out examples are too few for this choice: the front spans 0.033 in accuracy, and they tell "
        f"differences of {detectable:.2g} apart; some 490 would do: judge by more (--images), or hold out more in "
        "training (--holdout)"
    )
    assert 480 < 61 * (detectable / (2 / 61)) ** 2 <= 490
    assert len(sure([400, 490], 500).notes()) == 0


def test_fresh_examples_say_how_far_the_best_fell_and_need_no_correction_for_the_search():
    found = sure([380, 392], 400, considered=1000, fresh=[370, 380], fresh_of=400)
    assert [row["accuracy, confirmed"] for row in found.columns()] == [0.93, 0.95]
    assert found.columns()[1]["accuracy, confirmed, low"] == round(wilson(0.95, 400)[0], 2)
    assert found.as_good == [False, True]  # 10 of 400, in one test
    assert sure([380, 392], 400, considered=1000).as_good == [True, True]
    by_chance = np.hypot(*(np.ptp(wilson(rate, 400)) / 2 for rate in (0.98, 0.95)))
    assert found.notes()[-1] == (
        "accuracy of the best: 0.95 on fresh held-out examples, 0.03 less than the 0.98 that it was picked by (by "
        f"chance alone up to {by_chance:.2f})"
    )
    better = sure([380, 392], 400, fresh=[370, 398], fresh_of=400)
    assert "0.015 more than" in better.notes()[-1]


def test_a_score_that_is_no_mean_over_examples_has_no_interval_and_says_so():
    front = [evaluation(SMALL, 0.5, "iou"), evaluation(LARGE, 0.7512345, "iou")]
    judged = {e.arch: Judged(e.scores["iou"], None) for e in front}
    found = front_certainty("iou", front, 5, judged, judged | {LARGE: Judged(0.7, None)})
    assert found.columns()[1] == {"iou": 0.7512345, "iou, confirmed": 0.7}
    assert found.as_good is None
    assert found.notes() == [
        "iou is no mean over examples: how sure it is, and what it can tell apart, is unknown",
        "iou of the best: 0.7000 on fresh held-out examples, 0.0512 less than the 0.7512 that it was picked by",
    ]


def test_values_other_than_right_and_wrong_have_intervals_too(numpy_generator):
    values = numpy_generator.normal(size=(2, 300)) + np.array([[0.0], [1.0]])
    judged = {arch: Judged(float(own.mean()), own) for arch, own in zip((SMALL, LARGE), values)}
    front = [evaluation(arch, own.score) for arch, own in judged.items()]
    found = front_certainty("accuracy", front, 10, judged)
    assert found.as_good == [False, True]
    assert found.columns()[1]["accuracy"] == pytest.approx(1.0, abs=0.2)


def test_a_front_that_was_not_judged_again_says_nothing():
    assert front_certainty("accuracy", [evaluation(SMALL, 0.5)], 3, {}) is None
    assert front_certainty("accuracy", [], 3, {}) is None
