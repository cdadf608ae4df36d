import math

import numpy as np
import pytest

from exits import Confidence, Entropy, Patience, exits_taken
from exits.policies import from_json, to_json


def predicting(*classes: int) -> np.ndarray:
    """Logits [1, E, 3] of exits that predict these classes."""
    return np.eye(3)[list(classes)][None]


@pytest.mark.parametrize(
    ("classes", "patience", "exit"),
    [
        ((0, 0, 0, 0), 1, 1),
        ((0, 0, 0, 0), 2, 2),
        ((0, 1, 1, 1), 2, 3),
        ((0, 0, 1, 1), 2, 3),  # the counter begins anew at the third exit
        ((0, 1, 0, 1), 1, 3),  # which never agree: the last exit
        ((2, 2, 0, 0), 1, 1),
        ((0, 0), 5, 1),
    ],
)
def test_patience_counts_exits_that_agree_with_the_one_before(classes, patience, exit):
    assert exits_taken(Patience(patience), predicting(*classes)).tolist() == [exit]


def test_patience_of_a_regression_is_by_tolerance():
    outputs = np.array([1.0, 1.4, 1.5, 1.55])[None, :, None]
    assert exits_taken(Patience(1, tolerance=0.2), outputs).tolist() == [2]
    assert exits_taken(Patience(2, tolerance=0.2), outputs).tolist() == [3]


def test_patience_is_the_loop_of_the_paper():
    logits = np.random.default_rng(0).normal(size=(200, 7, 2))
    expected = []
    for example in logits:
        counter, before = 0, None
        for exit, own in enumerate(example):  # noqa: B007, which ends with the exit taken
            counter = counter + 1 if before is not None and own.argmax() == before else 0
            before = own.argmax()
            if counter == 3:
                break
        expected.append(exit)
    assert exits_taken(Patience(3), logits).tolist() == expected
    assert len(set(expected)) > 2


def test_entropy_is_in_nats_and_stops_below_the_threshold():
    logits = np.log(np.array([[[0.5, 0.25, 0.25], [0.8, 0.1, 0.1], [1 / 3] * 3]]))
    entropies = [1.5 * math.log(2), -0.8 * math.log(0.8) - 0.2 * math.log(0.1)]
    assert exits_taken(Entropy(entropies[0] + 1e-9), logits).tolist() == [0]
    assert exits_taken(Entropy(entropies[0] - 1e-9), logits).tolist() == [1]
    assert exits_taken(Entropy(entropies[1] - 1e-9), logits).tolist() == [2]


def test_confidence_is_the_highest_probability():
    logits = np.log(np.array([[[0.5, 0.25, 0.25], [0.8, 0.1, 0.1], [1 / 3] * 3]])) + 1000  # of any scale
    assert exits_taken(Confidence(0.49), logits).tolist() == [0]
    assert exits_taken(Confidence(0.51), logits).tolist() == [1]
    assert exits_taken(Confidence(0.81), logits).tolist() == [2]


def test_without_a_policy_all_take_the_last_exit():
    assert exits_taken(None, predicting(0, 0, 0)).tolist() == [2]


@pytest.mark.parametrize("policy", [None, Patience(2), Patience(1, 0.5), Entropy(0.3), Confidence(0.9)])
def test_policies_are_kept_as_json(policy):
    assert from_json(to_json(policy)) == policy


@pytest.mark.parametrize(("kind", "value"), [(Patience, 0), (Entropy, -0.1), (Confidence, 1.5)])
def test_thresholds_that_mean_nothing_are_refused(kind, value):
    with pytest.raises(ValueError, match=str(value)):
        kind(value)


def test_what_is_no_policy_is_refused():
    with pytest.raises(ValueError, match="there are patience, entropy, confidence"):
        from_json({"policy": "luck"})
