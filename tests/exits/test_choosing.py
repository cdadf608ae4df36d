import itertools

import numpy as np
import pytest

from exits import Confidence, Entropy, Latencies, Patience, candidates, choose, cumulative_ms, exits_taken, tradeoff

# exits predict right or wrong by their margin: class 0 if the first number is the larger
LOGITS = np.log(np.array([[[0.9, 0.1], [0.9, 0.1]], [[0.6, 0.4], [0.2, 0.8]], [[0.3, 0.7], [0.1, 0.9]]]))
LABELS = np.array([0, 1, 0])


def test_latency_is_what_examples_take_on_average():
    found = tradeoff(Confidence(0.85), LOGITS, LABELS, [2.0, 5.0])
    assert found.taken == (1 / 3, 2 / 3)
    assert found.accuracy == pytest.approx(2 / 3)  # the third is wrong at both exits
    assert found.latency_ms == pytest.approx((2 + 5 + 5) / 3)
    assert found.latency_p95_ms == 5
    assert found.standard_error == pytest.approx((2 / 9 / 3) ** 0.5)


def test_the_95th_percentile_is_a_latency_that_95_percent_stay_within():
    logits = np.zeros((100, 2, 2))
    logits[:95, 0, 0] = 9  # sure at the first exit
    assert tradeoff(Confidence(0.9), logits, np.zeros(100), [1.0, 3.0]).latency_p95_ms == 1
    logits[94, 0, 0] = 0
    assert tradeoff(Confidence(0.9), logits, np.zeros(100), [1.0, 3.0]).latency_p95_ms == 3


def test_leaving_at_an_exit_takes_all_bodies_and_heads_before_it():
    latencies = Latencies((1.0, 2.0, 4.0), (0.5, 0.25))
    assert cumulative_ms(latencies).tolist() == [1.5, 3.75, 7.75]
    assert cumulative_ms(latencies, (1, 2)).tolist() == [3.25, 7.25]
    assert cumulative_ms(latencies, (0,)).tolist() == [1.5]
    with pytest.raises(ValueError, match="in order"):
        cumulative_ms(latencies, (1, 0))


def test_choose_finds_what_trying_everything_finds():
    generator = np.random.default_rng(0)
    labels = generator.integers(3, size=60)
    logits = generator.normal(size=(60, 3, 3)) + 1.5 * np.eye(3)[labels][:, None] * np.array([0.5, 1, 1.5])[:, None]
    latencies = Latencies((1.0, 1.0, 1.0), (0.1, 0.1))
    policies = [Patience(1), Entropy(0.5), Entropy(0.9), Confidence(0.7)]
    best = -1.0
    for kept in itertools.chain.from_iterable(itertools.combinations(range(3), n) for n in (1, 2, 3)):
        times = cumulative_ms(latencies, kept)
        for policy in [None, *policies]:
            taken = exits_taken(policy, logits[:, kept])
            right = logits[:, kept][np.arange(60), taken].argmax(1) == labels
            if times[taken].mean() <= 2.2:
                best = max(best, right.mean())
    chosen = choose(logits, labels, latencies, 2.2, policies)
    assert chosen.found.accuracy == pytest.approx(best)
    assert chosen.found.latency_ms <= 2.2
    again = tradeoff(chosen.found.policy, logits[:, chosen.kept], labels, cumulative_ms(latencies, chosen.kept))
    assert again == chosen.found


def test_a_limit_below_the_first_exit_is_refused():
    with pytest.raises(ValueError, match=r"not even the first exit is within 0.5 ms: it takes 2.500 ms"):
        choose(LOGITS, LABELS, Latencies((2.0, 3.0), (0.5,)), 0.5)


def test_candidates_let_different_parts_of_the_examples_leave():
    logits = np.random.default_rng(0).normal(size=(400, 3, 5))
    found = candidates(logits, count=5)
    left = [(exits_taken(policy, logits) == 0).mean() for policy in found if isinstance(policy, Entropy)]
    assert left == sorted(left)
    assert left[0] < 0.2 < 0.8 < left[-1]
    assert [policy for policy in found if isinstance(policy, Patience)] == [Patience(1), Patience(2)]


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"\[3, 2, 2\], \[3\] and \[1\]"):
        tradeoff(None, LOGITS, LABELS, [1.0])
