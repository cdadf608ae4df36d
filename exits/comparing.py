"""Fixed depth, patience, entropy and confidence at equal expected latency: chosen on some examples, judged on
others.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from exits.choosing import Chosen, Tradeoff, candidates, choose, rank, tradeoff
from exits.network import Exits
from exits.parts import Latencies, cumulative_ms
from exits.policies import Confidence, Entropy, Patience
from supernet.artifacts.atomic import write_atomically
from supernet.tasks import Task
from supernet.training.data.batch import Batch

# N examples, E exits, K classes

KINDS = {"fixed": (), "patience": (Patience,), "entropy": (Entropy,), "confidence": (Confidence,)}
"""Kinds of policies; "fixed" is a network that ends early, for all examples alike."""

Answers = tuple[np.ndarray, np.ndarray]  # logits [N, E, K] of all exits, and labels [N]


@torch.inference_mode()
def answers(network: Exits, task: Task, batches: Iterable[Batch]) -> Answers:
    """Those of `network`, which is in eval mode, to batches of examples and labels."""
    found = [(network(*task.inputs(batch, None)), batch[1]) for batch in batches]
    return torch.cat([logits for logits, _ in found]).numpy(), torch.cat([labels for _, labels in found]).numpy()


@dataclass(frozen=True)
class Compared:
    """What one kind of policy is worth within a limit."""

    kind: str
    limit_ms: float  # of the expected latency
    chosen: Chosen  # on the held-out examples
    judged: Tradeoff  # on the others


def compare(held_out: Answers, tested: Answers, latencies: Latencies, limits_ms: Sequence[float]) -> list[Compared]:
    """For each limit and each of `KINDS` the exits and the threshold that are best on the `held_out` examples within
    it, and what these give on the `tested` ones; nothing for a limit that not even the first exit keeps."""
    found = []
    for limit_ms in limits_ms:
        for kind, classes in KINDS.items() if limit_ms >= _first_ms(latencies) else ():
            policies = [policy for policy in candidates(held_out[0]) if isinstance(policy, classes)]
            chosen = choose(*held_out, latencies, limit_ms, policies)
            latency_ms = cumulative_ms(latencies, chosen.kept)
            judged = tradeoff(chosen.found.policy, tested[0][:, chosen.kept], tested[1], latency_ms)
            found.append(Compared(kind, limit_ms, chosen, judged))
    return found


def choose_network(
    networks: Mapping[str, tuple[np.ndarray, Latencies]], labels: np.ndarray, limit_ms: float
) -> tuple[str, Chosen]:
    """The joint choice of a network, such as one of several widths, its exits and its policy: the name of the one whose
    `choose` is best on the same held-out examples, and that choice; of equal ones the fastest.

    `networks` gives the logits [N, E, K] and the latencies of each. ValueError if none is within `limit_ms`.
    """
    check_limit([latencies for _, latencies in networks.values()], limit_ms)
    found = {
        name: choose(logits, labels, latencies, limit_ms)
        for name, (logits, latencies) in networks.items()
        if _first_ms(latencies) <= limit_ms
    }
    best = max(found, key=lambda name: rank(found[name].found))
    return best, found[best]


def check_limit(latencies: Iterable[Latencies], limit_ms: float) -> None:
    """ValueError unless the first exit of some network, of which these are the latencies, is within `limit_ms`."""
    least = min(map(_first_ms, latencies))
    if least > limit_ms:
        raise ValueError(
            f"not even the first exit of any network is within {limit_ms:.3g} ms: the fastest takes {least:.3g} ms"
        )


def _first_ms(latencies: Latencies) -> float:
    return float(cumulative_ms(latencies, (0,))[0])


def compare_networks(compared: Mapping[str, Sequence[Compared]]) -> list[tuple[str, Compared]]:
    """Of what `compare` found for each network, on the same examples and within the same limits, for each limit and
    kind that of the network that is best on the held-out examples, with its name; of equal ones the fastest."""
    best: dict[tuple[float, str], tuple[str, Compared]] = {}
    for name, own in compared.items():
        for one in own:
            known = best.get((one.limit_ms, one.kind))
            if known is None or rank(one.chosen.found) > rank(known[1].chosen.found):
                best[one.limit_ms, one.kind] = name, one
    return [best[limit, kind] for limit, kind in sorted(best, key=lambda key: (key[0], list(KINDS).index(key[1])))]


def plot_compared(path: str | Path, compared: Sequence[Compared], whole: Sequence[Tradeoff]) -> None:
    """Write an SVG of the accuracy against the expected latency on the judged examples, a line a kind of policy, with
    standard errors; whole networks are stars."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for kind, marker in zip(KINDS, "so^D"):
        own = sorted((one.judged for one in compared if one.kind == kind), key=lambda judged: judged.latency_ms)
        values = [[one.latency_ms for one in own], *_percent(own)]
        axes.errorbar(values[0], values[1], values[2], marker=marker, capsize=2, label=kind)
    spent = [one.latency_ms for one in whole]
    axes.errorbar(spent, *_percent(whole), fmt="k*", markersize=12, label="whole network")
    axes.set_xlabel("expected latency (ms)")
    axes.set_ylabel("accuracy (%)")
    axes.grid(alpha=0.3)
    axes.legend()
    with write_atomically(path) as temporary:
        figure.savefig(temporary, format="svg", metadata={"Date": None})


def _percent(tradeoffs: Sequence[Tradeoff]) -> tuple[list[float], list[float]]:
    return [100 * one.accuracy for one in tradeoffs], [100 * one.standard_error for one in tradeoffs]
