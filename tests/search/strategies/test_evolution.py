"""Who has children, and what the children have of their parents."""

import numpy as np
import pytest

from search.problem import Problem
from search.strategies.evolution import Evolution, EvolutionConfig
from search.strategies.single_objective import SingleObjectiveConfig, SingleObjectiveEvolution, once_for_all, spos
from supernet import SearchSpace
from supernet.space import Arch

CHOICES = 60
SPACE = SearchSpace({f"c{index}": (0, 1, 2, 3) for index in range(CHOICES)})  # no two children are alike by chance
ONES, TWOS = (Arch(dict.fromkeys(SPACE.choices, value)) for value in (1, 2))


def children(count, scores=(1.0, 0.0), **settings):
    """The children of two parents, all ones and all twos, by default the ones are the better: codes [count, c]."""
    evolution = Evolution(Problem(SPACE, ["quality"]), 0, EvolutionConfig(2, count, **settings))
    evolution.tell([ONES, TWOS], np.array(scores)[:, None])
    archs = evolution.ask()
    assert len(archs) == count
    return SPACE.encode(archs)


@pytest.mark.parametrize("better", [1, 2])
def test_the_better_of_two_drawn_members_is_the_parent(better):
    scores = (1.0, 0.0) if better == 1 else (0.0, 1.0)
    codes = children(800, scores, mutation_rate=0.1, crossover_rate=0.0)
    of_better = ((codes == better).mean(axis=1) > 0.5).mean()
    # it wins unless the other one is drawn twice: 3/4, and a standard deviation of 0.015
    assert of_better == pytest.approx(0.75, abs=0.06)


def test_a_child_of_two_has_every_choice_from_either():
    codes = children(400, mutation_rate=0.0, crossover_rate=1.0)
    assert set(codes.ravel()) == {1, 2}
    ones = (codes == 1).mean(axis=1)
    ones = ones[(ones > 0) & (ones < 1)]  # but for a copy of either parent, which nobody asked for before
    assert len(ones) >= len(codes) - 2
    assert ones.mean() == pytest.approx(0.5, abs=0.02)
    assert ones.std() == pytest.approx(0.5 / CHOICES**0.5, rel=0.2)
    assert (codes == 1).mean(axis=0) == pytest.approx(0.5, abs=0.15)


def test_children_have_two_parents_as_often_as_said():
    codes = children(800, mutation_rate=0.05, crossover_rate=0.6)
    ones = (codes == 1).mean(axis=1)
    mixed = ((ones > 0.2) & (ones < 0.8)).mean()
    # of two winners of tournaments 6 in 16 are different ones
    assert mixed == pytest.approx(0.6 * 6 / 16, abs=0.06)


def test_choices_change_as_often_as_said():
    codes = children(400, mutation_rate=0.1, crossover_rate=0.0)
    parents = np.where((codes == 1).mean(axis=1) > 0.5, 1, 2)[:, None]
    changed = codes != parents
    assert changed.mean() == pytest.approx(0.1, abs=0.01)
    # uniformly to any of the three others
    for parent in (1, 2):
        found = codes[(parents == parent) & changed]
        shares = np.bincount(found, minlength=4) / len(found)
        assert shares == pytest.approx([1 / 3 if value != parent else 0 for value in range(4)], abs=0.06)


def test_a_generation_of_one_objective_has_mutants_and_children_of_two():
    settings = SingleObjectiveConfig(population=10, parents=2, mutants=300, crossovers=200, mutation_rate=0.1)
    evolution = SingleObjectiveEvolution(Problem(SPACE, ["quality"]), 0, settings)
    worse = [Arch(dict.fromkeys(SPACE.choices, 3)), SPACE.smallest]
    evolution.tell([worse[0], ONES, worse[1], TWOS], np.array([[0.1], [0.9], [np.nan], [0.8]]))
    assert evolution.parents == [ONES, TWOS]
    codes = SPACE.encode(evolution.ask())
    mutants, mixed = codes[:300], codes[300:]
    assert len(mixed) == 200
    share = (mutants == 1).mean(axis=1)
    assert ((share > 0.7) | (share < 0.2)).all()  # of one parent, with a tenth changed
    assert (share > 0.5).mean() == pytest.approx(0.5, abs=0.1)  # parents are drawn uniformly
    parents = np.where(share > 0.5, 1, 2)[:, None]
    assert (mutants != parents).mean() == pytest.approx(0.1, abs=0.01)
    assert set(mixed.ravel()) == {1, 2}
    share = (mixed == 1).mean(axis=1)
    share = share[(share > 0) & (share < 1)]
    assert len(share) >= 198
    assert share.std() == pytest.approx(0.5 / CHOICES**0.5, rel=0.2)


def test_failed_architectures_are_nobodys_parents():
    evolution = SingleObjectiveEvolution(Problem(SPACE, ["quality"]), 0, SingleObjectiveConfig(parents=3))
    evolution.tell([SPACE.smallest, ONES, TWOS], np.array([[np.nan], [0.1], [np.inf]]))
    assert evolution.parents == [ONES]


def test_the_next_parents_are_the_best_of_parents_and_children():
    problem = Problem(SPACE, ["quality"], {"size": lambda archs: [float(sum(arch.values())) + 1 for arch in archs]})
    evolution = Evolution(problem, 0, EvolutionConfig(2))
    threes = Arch(dict.fromkeys(SPACE.choices, 3))
    evolution.tell([ONES, TWOS], np.array([[0.5], [0.6]]))
    evolution.tell([threes, SPACE.smallest], np.array([[0.55], [0.1]]))  # the threes are worse than the twos in both
    assert threes not in evolution.population
    assert set(evolution.population) < {SPACE.smallest, ONES, TWOS}
    evolution.tell([threes], np.array([[0.9]]))  # and now an end of the front
    assert set(evolution.population) == {SPACE.smallest, threes}


def test_the_first_generation_has_both_ends_of_the_space_and_random_architectures():
    first = Evolution(Problem(SPACE, ["quality"]), 0, EvolutionConfig(10, 3)).ask()
    assert first[:2] == [SPACE.smallest, SPACE.largest]
    assert len(set(first)) == 10
    shares = np.bincount(SPACE.encode(first[2:]).ravel(), minlength=4) / (8 * CHOICES)
    assert shares == pytest.approx([0.25] * 4, abs=0.08)


def test_the_published_generations():
    # a quarter are parents, half of a generation are mutants
    assert once_for_all(100) == SingleObjectiveConfig(100, 25, 50, 50, 0.1)
    assert once_for_all(7) == SingleObjectiveConfig(7, 1, 3, 4, 0.1)
    # 50 candidates, of which the best 10 have 25 mutants and 25 children of two
    assert spos() == SingleObjectiveConfig(50, 10, 25, 25, 0.1)
