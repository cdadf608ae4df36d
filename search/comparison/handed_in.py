"""What a search hands in to be judged: the best of its front by its own score."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from search import pareto
from search.history import Evaluation
from search.sweep import Trial


class HandedIn(NamedTuple):
    trial: Trial
    front: list[Evaluation]  # by the trial's own score, the best first, which is its choice


def handed_in(trial: Trial, cost: str, count: int) -> HandedIn:
    """Up to `count` of a trial's front of its own score, higher is better, and `cost`: those of the highest scores.
    None if nothing was evaluated successfully."""
    found = [evaluation for evaluation in trial.evaluations if evaluation.scores]
    values = np.array([[-next(iter(e.scores.values())), e.costs[cost]] for e in found]).reshape(len(found), 2)
    return HandedIn(trial, [found[index] for index in pareto.front(values)[:count]])
