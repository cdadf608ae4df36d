"""Searches on lookup tables: every strategy, limits, failures, resume."""

import numpy as np
import pytest

from search.evaluator import Scored, evaluate_here
from search.history import Evaluation, History
from search.limits import minimise, neighbours, reachable
from search.loop import ask_and_tell
from search.pareto import front
from search.problem import Problem
from search.strategies import STRATEGIES, make_strategy
from search.strategies.evolution import Evolution, EvolutionConfig
from supernet import Choice, SearchSpace

SPACE = SearchSpace(
    {
        "depth": (1, 2, 3),
        "width": (4, 8, 12, 16),
        "kernel_size.1": Choice((3, 5, 7), when={"depth": (2, 3)}),
        "kernel_size.2": Choice((3, 5, 7), when={"depth": (3,)}),
        "act": ("relu", "swish"),
    }
)


def everything(space=SPACE):
    codes = np.stack(np.meshgrid(*(range(len(c.values)) for c in space.choices.values()), indexing="ij"), -1)
    return list(dict.fromkeys(space.decode(codes.reshape(-1, len(space.choices)))))


def macs(archs):
    return [float(a["depth"] * a["width"] ** 2 + a.get("kernel_size.1", 0) + a.get("kernel_size.2", 0)) for a in archs]


def quality(archs):
    return [
        np.sqrt(cost) + (a["act"] == "swish") + 0.3 * a.get("kernel_size.1", 0) - 0.01 * a.get("kernel_size.2", 0) ** 2
        for a, cost in zip(archs, macs(archs))
    ]


def problem(**options):
    return Problem(SPACE, ["quality"], {"macs": macs}, **options)


HERE = evaluate_here({"quality": quality})


def search(name="evolution", budget=60, p=None, seed=0, **options):
    p = p or problem()
    return ask_and_tell(p, make_strategy(name, p, seed, 12), HERE, budget, **options)


@pytest.mark.parametrize("name", STRATEGIES)
def test_no_architecture_is_evaluated_twice_nor_beyond_a_limit(name):
    p = problem(limits={"macs": 200.0})
    asked = []

    def evaluate(archs):
        asked.extend(archs)
        return HERE(archs)

    result = ask_and_tell(p, make_strategy(name, p, 0, 12), evaluate, 1000)
    assert len(set(asked)) == len(asked) == len(result.evaluations)
    assert max(macs(asked)) <= 200
    assert all(SPACE.validate(arch) == arch for arch in asked)
    admissible = [arch for arch in everything() if macs([arch])[0] <= 200]
    assert set(asked) == set(admissible)  # the budget is more than all of them


@pytest.mark.parametrize("name", STRATEGIES)
def test_the_same_seed_gives_the_same_search(name):
    assert search(name).evaluations == search(name).evaluations
    assert search(name, seed=1).evaluations != search(name).evaluations


@pytest.mark.parametrize("name", ["evolution", "screened", "once_for_all", "local"])
def test_search_beats_random_search(name):
    space = SearchSpace({f"c{i}": tuple(range(4)) for i in range(12)})

    def total(archs):
        return [float(sum(a.values())) for a in archs]

    best = {}
    for strategy in (name, "random"):
        p = Problem(space, ["total"])
        result = ask_and_tell(p, make_strategy(strategy, p, 0, 20), evaluate_here({"total": total}), 300)
        best[strategy] = result.generations[-1]
    assert best[name].best["total"] > best["random"].best["total"]


def test_the_whole_space_gives_the_true_front():
    archs = everything()
    assert len(archs) == SPACE.size
    true = front(np.stack([-np.array(quality(archs)), macs(archs)], axis=1))
    result = search(budget=1000)
    assert len(result.evaluations) == SPACE.size
    assert {e.arch for e in result.front} == {archs[index] for index in true}
    volumes = [generation.hypervolume for generation in result.generations]
    assert volumes == sorted(volumes)


@pytest.mark.parametrize(
    ("name", "lost"), [*((name, 40) for name in STRATEGIES), ("evolution", 1), ("evolution", 300), ("spos", 3000)]
)
def test_a_killed_search_resumes_to_the_same_result(tmp_path, name, lost):
    path = tmp_path / "history.jsonl"
    p = problem()
    whole = search(name, p=p)
    with History(path, p.describe()) as history:
        search(name, p=p, history=history)
    path.write_bytes(path.read_bytes()[:-lost])  # as if killed, perhaps in the middle of a line
    again = []

    def evaluate(archs):
        again.extend(archs)
        return HERE(archs)

    with History(path, p.describe(), resume=True) as history:
        known = set(history.past)
        resumed = ask_and_tell(p, make_strategy(name, p, 0, 12), evaluate, 60, history=history)
    assert resumed.evaluations == whole.evaluations
    assert resumed.generations == whole.generations
    assert known.isdisjoint(again)


class Scripted:
    """Asks for the same generations whatever it is told, and keeps what it is told."""

    def __init__(self, generations):
        self.generations, self.told, self.notes = iter(generations), [], {}

    def ask(self):
        return next(self.generations, [])

    def tell(self, archs, scores):
        self.told.append((list(archs), scores.tolist()))
        self.notes = {"told": float(len(self.told))}


def test_every_generation_is_recorded_told_and_summed_up(tmp_path):
    """Two scores, evaluated last to first; a failure of one of them, one of the past, a budget within a generation."""
    archs = [
        SPACE.validate({"depth": 1, "width": width, "act": act}) for act in ("relu", "swish") for width in (4, 8, 12)
    ]
    scores = {arch: row for arch, row in zip(archs, [(1, 9), (3, 4), (2, np.nan), (5, 5), (4, 8), (0, 0)])}
    p = Problem(SPACE, ["a", "b"], {"macs": macs}, objectives=["a", "macs"], reference={"a": -1.0, "macs": 400.0})
    evaluated, seen = [], []

    def evaluate(fresh):
        evaluated.extend(fresh)
        for index in reversed(range(len(fresh))):
            yield Scored(index, dict(zip("ab", scores[fresh[index]])))

    history = History(tmp_path / "history.jsonl", p.describe())
    known = Evaluation(archs[1], {"a": 3, "b": 4}, {"macs": 64.0}, 0)
    history.append(known)
    strategy = Scripted([archs[:3], archs[3:5], archs[5:]])
    result = ask_and_tell(
        p, strategy, evaluate, 4, history=history, on_evaluation=lambda e, count: seen.append((e.arch, count))
    )
    history.close()

    assert evaluated == [archs[0], archs[2], archs[3]]
    assert [e.arch for e in result.evaluations] == archs[:4]
    assert [e.generation for e in result.evaluations] == [0, 0, 0, 1]
    assert [dict(e.scores) for e in result.evaluations] == [{"a": 1, "b": 9}, {"a": 3, "b": 4}, {}, {"a": 5, "b": 5}]
    assert [e.error for e in result.evaluations] == [None, None, "b is nan", None]
    assert [e.costs["macs"] for e in result.evaluations] == [16.0, 64.0, 144.0, 16.0]
    assert seen == [(archs[2], 2), (archs[0], 3), (archs[3], 4)]  # beside the one of the past
    assert [told for told, _ in strategy.told] == [archs[:3], archs[3:4]]
    assert strategy.told[0][1][:2] == [[1, 9], [3, 4]]
    assert np.isnan(strategy.told[0][1][2]).all()
    first, second = result.generations
    assert (first.index, first.evaluated, first.failed, dict(first.notes)) == (0, 3, 1, {"told": 1.0})
    assert (second.index, second.evaluated, second.failed, dict(second.notes)) == (1, 4, 1, {"told": 2.0})
    assert dict(first.best) == {"a": 3, "b": 9}
    assert dict(second.best) == {"a": 5, "b": 9}
    # from a score of -1 up, and from a cost of 400 down in parts of it
    assert first.hypervolume == pytest.approx(2 * (1 - 16 / 400) + 2 * (1 - 64 / 400))
    assert second.hypervolume == pytest.approx(6 * (1 - 16 / 400))
    assert [e.arch for e in result.front] == [archs[3]]


def test_values_belong_to_their_architectures_with_several_scores():
    archs = everything()[:5]
    evaluator = evaluate_here({"quality": quality, "macs": macs, "again": quality})
    found = {outcome.index: outcome.scores for outcome in evaluator(archs)}
    for index, arch in enumerate(archs):
        assert found[index] == {"quality": quality([arch])[0], "macs": macs([arch])[0], "again": quality([arch])[0]}


def test_failures_are_recorded_with_their_reason():
    def fragile(archs):
        if any(arch["width"] == 8 for arch in archs):
            raise RuntimeError("eight")
        return [float("nan") if arch["width"] == 12 else 1.0 for arch in archs]

    p = Problem(SPACE, ["x"], {"macs": macs})
    result = ask_and_tell(p, Evolution(p, 0, EvolutionConfig(20)), evaluate_here({"x": fragile}), 1000)
    assert len(result.evaluations) == SPACE.size
    errors = {8: "x: RuntimeError: eight", 12: "x is nan"}
    for evaluation in result.evaluations:
        assert evaluation.error == errors.get(evaluation.arch["width"])
    assert result.generations[-1].failed == sum(arch["width"] in errors for arch in everything())
    assert {e.arch["width"] for e in result.front} == {4}


def test_a_search_of_failures_alone_ends():
    def broken(archs):
        raise RuntimeError("no")

    for name in STRATEGIES:
        p = problem()
        result = ask_and_tell(p, make_strategy(name, p, 0, 12), evaluate_here({"quality": broken}), 30)
        assert len(result.evaluations) == 30
        assert result.front == []
        assert result.generations[-1].hypervolume == 0.0


def test_limits_out_of_reach_are_named_before_anything_is_evaluated():
    def never(archs):
        raise AssertionError("evaluated")

    smallest = min(macs(everything()))
    p = problem(limits={"macs": smallest - 0.5})
    with pytest.raises(ValueError, match=rf"macs <= 15.5; the smallest reachable value is {smallest:g}$"):
        ask_and_tell(p, make_strategy("random", p, 0), never, 10)
    costs = {"up": lambda archs: [a["width"] for a in archs], "down": lambda archs: [20 - a["width"] for a in archs]}
    with pytest.raises(ValueError, match=r"macs <= 15.5; the smallest reachable value is"):
        ask_and_tell(p, Scripted([[SPACE.smallest]]), never, 10)  # whatever asks
    p = Problem(SPACE, ["quality"], costs, {"up": 8, "down": 8})
    with pytest.raises(ValueError, match="no architecture meets all of them; the nearest has up = "):
        ask_and_tell(p, make_strategy("random", p, 0), never, 10)


def test_the_smallest_cost_is_found_where_it_is_not_that_of_the_smallest_architecture():
    space = SearchSpace({f"c{i}": tuple(range(5)) for i in range(8)})

    def far(archs):  # least at 3 everywhere
        return [1.0 + sum((value - 3) ** 2 for value in arch.values()) for arch in archs]

    p = Problem(space, ["x"], {"far": far}, {"far": 1.5})
    arch, least = minimise(p, lambda prices: prices[:, 0], np.random.default_rng(0))
    assert least == 1.0
    assert set(arch.values()) == {3}
    assert reachable(p, np.random.default_rng(0)) == arch
    zeros = evaluate_here({"x": lambda archs: [0.0] * len(archs)})
    result = ask_and_tell(p, make_strategy("evolution", p, 0, 5), zeros, 5)
    assert result.evaluations[0].arch == arch  # one in 390,625 meets the limit


def test_neighbours_differ_in_one_choice():
    for arch in everything():
        around = neighbours(SPACE, arch)
        assert len(around) == sum(len(SPACE.choices[name].values) - 1 for name in arch)
        for other in around:
            assert SPACE.validate(other) == other
            shared = [name for name in arch if name in other]
            assert sum(arch[name] != other[name] for name in shared) == 1


def test_problem_names_what_is_wrong():
    with pytest.raises(ValueError, match="a limit on 'latency', but there are only macs"):
        problem(limits={"latency": 1.0})
    with pytest.raises(ValueError, match="an objective 'x', but there are only quality, macs"):
        problem(objectives=["x"])
    with pytest.raises(ValueError, match="the limit on macs is 0"):
        problem(limits={"macs": 0.0})
    with pytest.raises(ValueError, match="at least one score"):
        Problem(SPACE, [])
    with pytest.raises(ValueError, match="there is no strategy 'simulated'; the strategies are evolution, "):
        make_strategy("simulated", problem(), 0)
    with pytest.raises(ValueError, match="evaluates at least 1"):
        ask_and_tell(problem(), make_strategy("random", problem(), 0), HERE, 0)


def test_costs_that_are_no_objectives_are_recorded():
    p = problem(objectives=["quality"])
    result = ask_and_tell(p, make_strategy("once_for_all", p, 0, 20), HERE, 40)
    assert [evaluation.costs["macs"] for evaluation in result.evaluations] == macs([e.arch for e in result.evaluations])
    assert {e.scores["quality"] for e in result.front} == {max(e.scores["quality"] for e in result.evaluations)}


def test_hypervolume_counts_costs_as_parts_of_their_reference():
    p = problem(limits={"macs": 200.0})
    values = p.values(np.array([[3.0], [5.0], [9.0]]), np.array([[50.0], [100.0], [300.0]]))
    assert p.hypervolume(values) == 3 * 0.75 + 2 * 0.5
    assert problem().reference.tolist() == [0.0, macs([SPACE.largest])[0]]


def test_scores_that_report_one_by_one_are_recorded_one_by_one(tmp_path):
    class Slow:
        def __call__(self, archs):
            raise AssertionError("each is there")

        def each(self, archs):
            for index in reversed(range(len(archs))):
                if index == 3:
                    raise KeyboardInterrupt
                yield index, 1.0

    p = Problem(SPACE, ["x"])
    with History(tmp_path / "history.jsonl", p.describe()) as history:
        with pytest.raises(KeyboardInterrupt):
            ask_and_tell(p, make_strategy("random", p, 0, 10), evaluate_here({"x": Slow()}), 10, history=history)
        assert len(history.past) == 6
