import numpy as np
import pytest

from exits import (
    Latencies,
    choose,
    choose_network,
    compare,
    compare_networks,
    cumulative_ms,
    plot_compared,
    tradeoff,
)
from exits.comparing import KINDS


def answers(seed, count=80, strength=(0.7, 1.2, 2.0)):
    draw = np.random.default_rng(seed)
    labels = draw.integers(3, size=count)
    signal = np.eye(3)[labels][:, None] * np.array(strength)[:, None]
    return draw.normal(size=(count, len(strength), 3)) * 0.8 + 2 * signal, labels


LATENCIES = Latencies((1.0, 1.0, 1.0), (0.1, 0.1))


def test_kinds_are_chosen_on_some_examples_and_judged_on_others():
    held_out, tested = answers(0), answers(1)
    found = compare(held_out, tested, LATENCIES, [0.5, 1.5, 2.5])
    assert [(one.kind, one.limit_ms) for one in found] == [(kind, limit) for limit in (1.5, 2.5) for kind in KINDS]
    for one in found:
        assert one.chosen.found.latency_ms <= one.limit_ms
        latency_ms = cumulative_ms(LATENCIES, one.chosen.kept)
        assert one.judged == tradeoff(one.chosen.found.policy, tested[0][:, one.chosen.kept], tested[1], latency_ms)
    (fixed,) = (one for one in found if one.kind == "fixed" and one.limit_ms == 2.5)
    assert fixed.chosen.found.policy is None
    depths = {exit: (held_out[0][:, exit].argmax(1) == held_out[1]).mean() for exit in (0, 1)}  # within 2.5 ms
    assert fixed.chosen.found.accuracy == max(depths.values())


def test_the_joint_choice_is_that_of_the_best_network():
    labels = answers(0)[1]
    weak, strong = (answers(0, strength=strength)[0] for strength in ((0.2, 0.4, 0.6), (0.7, 1.2, 2.0)))
    slow = Latencies((2.0, 2.0, 2.0), (0.2, 0.2))
    networks = {"narrow": (weak, LATENCIES), "wide": (strong, slow)}
    for limit_ms in (1.2, 2.2, 4.0):
        by_hand = {
            name: choose(logits, labels, latencies, limit_ms)
            for name, (logits, latencies) in networks.items()
            if cumulative_ms(latencies, (0,))[0] <= limit_ms
        }
        name, chosen = choose_network(networks, labels, limit_ms)
        assert chosen == by_hand[name]
        assert chosen.found.accuracy == max(one.found.accuracy for one in by_hand.values())
    assert choose_network(networks, labels, 1.2)[0] == "narrow"
    assert choose_network(networks, labels, 4.0)[0] == "wide"
    with pytest.raises(
        ValueError, match=r"not even the first exit of any network is within 0\.5 ms: the fastest takes 1\.1"
    ):
        choose_network(networks, labels, 0.5)


def test_of_each_kind_there_is_the_network_that_is_best_on_held_out_examples():
    (strong, labels), (weak, _) = answers(0), answers(0, strength=(0.2, 0.4, 0.6))
    tested = answers(1)
    limits = [1.2, 4.0]
    slow = Latencies((2.0, 2.0, 2.0), (0.2, 0.2))
    own = {
        "narrow": compare((weak, labels), tested, LATENCIES, limits),
        "wide": compare((strong, labels), tested, slow, limits),
    }
    found = compare_networks(own)
    assert [(one.limit_ms, one.kind) for _, one in found] == [(limit, kind) for limit in limits for kind in KINDS]
    for name, one in found:
        rivals = [own[n][i] for n in own for i in range(len(own[n])) if own[n][i].kind == one.kind]
        within = [rival for rival in rivals if rival.limit_ms == one.limit_ms]
        assert one in own[name]
        assert one.chosen.found.accuracy == max(rival.chosen.found.accuracy for rival in within)
    assert {name for name, one in found if one.limit_ms == 1.2} == {"narrow"}
    assert {name for name, one in found if one.limit_ms == 4.0} == {"wide"}


def test_all_kinds_are_in_one_picture(tmp_path):
    held_out, tested = answers(0), answers(1)
    whole = tradeoff(None, tested[0][:, -1:], tested[1], [3.0])
    plot_compared(tmp_path / "exits.svg", compare(held_out, tested, LATENCIES, [1.5, 2.5]), [whole])
    picture = (tmp_path / "exits.svg").read_text()
    assert all(f"<!-- {name} -->" in picture for name in [*KINDS, "whole network", "expected latency (ms)"])
