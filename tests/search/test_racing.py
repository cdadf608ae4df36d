"""Races: nothing on the front is rejected, told by brute force on tables of what networks make of examples."""

import os
import signal
import subprocess
import sys
from contextlib import closing, nullcontext
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from search.certainty import worse_p_values
from search.evaluator import Scored
from search.history import Evaluation, History, Rejection, read_history
from search.judgements import Judgements
from search.loop import ask_and_tell
from search.pareto import front
from search.problem import Problem
from search.racing import Racing, looks
from search.scores.accuracy import Judged
from search.strategies import make_strategy
from supernet import SearchSpace

LINE = SearchSpace({"number": tuple(range(12))})
GRID = SearchSpace({"width": tuple(range(1, 25)), "kind": (0, 1, 2, 3)})


class Table:
    """Judges by a table of 0 and 1, a row an architecture, and counts the examples that were looked at."""

    def __init__(self, values, row):
        self.values, self.row, self.looked_at, self.calls = values, row, 0, 0

    def __call__(self, archs, examples):
        self.calls += 1
        for index, arch in enumerate(archs):
            own = self.values[self.row(arch), examples]
            self.looked_at += len(own)
            yield Scored(index, {"accuracy": Judged(float(own.mean()), own)})


def by_number(arch):
    return arch["number"]


def by_numbers(archs):
    return [float(arch["number"]) for arch in archs]


def line():
    return Problem(LINE, ["accuracy"], {"macs": by_numbers})


def networks(generator, accuracies, examples, agreement=0.8):
    """Networks of these accuracies in expectation [n, N], which mostly are right about the same examples."""
    easy = generator.random(examples)
    own = np.where(generator.random((len(accuracies), examples)) < agreement, easy, generator.random(examples))
    return (own < np.asarray(accuracies)[:, None]).astype(float)


def exact_front(values, costs):
    return set(front(np.column_stack([costs, -values.mean(axis=1)])).tolist())


def test_looks_double():
    assert looks(2000) == [250, 500, 1000, 2000]
    assert looks(1200, 500) == [500, 1000, 1200]
    assert [looks(250), looks(100)] == [[250], [100]]


def test_p_values_are_those_of_the_exact_test_and_of_the_paired_t_test():
    draw = np.random.default_rng(0)
    first, second = networks(draw, [0.6, 0.5], 40), networks(draw, [0.7, 0.6, 0.5], 40)
    found = worse_p_values(first, second)
    for i, own in enumerate(first):
        for j, other in enumerate(second):
            alone, others = int((own > other).sum()), int((own < other).sum())
            p_value = stats.binomtest(alone, alone + others, 0.5, "less").pvalue
            assert found[i, j] == pytest.approx(p_value, rel=1e-12)
    first, second = draw.normal(size=(2, 30)), draw.normal(0.3, size=(3, 30))
    expected = [[stats.ttest_rel(a, b, alternative="less").pvalue for b in second] for a in first]
    np.testing.assert_allclose(worse_p_values(first, second), expected, rtol=1e-9)
    assert worse_p_values(first[:1], first[:1] + 1)[0, 0] == pytest.approx(0)
    assert worse_p_values(first[:1], first[:1])[0, 0] == 1


def test_the_exact_test_holds_for_examples_drawn_without_replacement():
    """Of two networks that are equally good on all of 60 examples, by the hypergeometric distribution."""
    for total, seen in ((60, 15), (60, 30), (60, 45)):
        for discordant in (4, 10, 30, 60):
            drawn = np.arange(discordant + 1)
            chance = stats.hypergeom.pmf(drawn, total, discordant, seen)
            for level in (0.001, 0.01, 0.1):
                rejected = 0.0
                for m, weight in zip(drawn, chance):
                    k = np.arange(m + 1)
                    p_values = stats.binom.cdf(k, m, 0.5)
                    rejected += weight * stats.hypergeom.pmf(k, discordant, discordant // 2, m)[p_values < level].sum()
                assert rejected <= level


def races(count, confidence):
    """Of races among networks about equally good, where a mistake is as easy as it gets, first of those of even and
    then of those of odd numbers, how often each was on the front so far, was on it and rejected, and was rejected,
    [3, 8]."""
    draw, problem = np.random.default_rng(0), Problem(LINE, ["accuracy"], {"macs": by_numbers})
    archs, numbers = list(LINE.decode(np.arange(8)[:, None])), np.arange(8)
    counts = np.zeros((3, 8))
    for _ in range(count):
        values = networks(draw, 0.6 - 0.4 * (draw.random(8) < 0.2), 64, agreement=0.5)
        racing = Racing(problem, Table(values, by_number), 64, confidence, first_look=4)
        for known, own in ((numbers[::2], numbers[::2]), (numbers, numbers[1::2])):
            out = np.array([each.rejected is not None for each in racing([archs[number] for number in own])])
            on_front = np.isin(own, known[list(exact_front(values[known], known.astype(float)))])
            counts[:, own] += [on_front, on_front & out, out]
    return counts


def test_each_of_the_front_is_kept_in_two_thousand_races():
    on_front, lost, rejected = races(1000, 0.5)  # two each
    assert (lost <= 0.5 * on_front).all()
    assert lost.sum() > 0
    assert rejected.sum() > 1000


def test_by_what_looks_better_alone_the_front_is_not_kept(monkeypatch):
    monkeypatch.setattr("search.racing.worse_p_values", lambda *rows: (worse_p_values(*rows) > 0.5).astype(float))
    on_front, lost, _ = races(100, 0.8)
    assert lost[1::2].sum() > 0.2 * on_front[1::2].sum()


def grid(seed=0, examples=1000):
    """A search space of 96 networks, and what each makes of the examples."""
    draw = np.random.default_rng(seed)
    archs = [arch for arch in GRID.decode(np.stack(np.meshgrid(range(24), range(4), indexing="ij"), -1).reshape(-1, 2))]
    row = {arch: index for index, arch in enumerate(archs)}
    accuracies = [0.4 + 0.08 * np.log(arch["width"]) + 0.06 * arch["kind"] for arch in archs]
    problem = Problem(GRID, ["accuracy"], {"macs": lambda archs: [float(arch["width"]) for arch in archs]})
    return problem, Table(networks(draw, accuracies, examples), row.__getitem__)


def searched(problem, table, racing, strategy="evolution", budget=60, history=None, on_evaluation=None):
    """A search with races, or with all examples for every architecture."""

    def exact(archs):
        for each in table(archs, np.arange(table.values.shape[1])):
            yield each._replace(scores={"accuracy": each.scores["accuracy"].score})

    strategy = make_strategy(strategy, problem, 0, 12)
    if not racing:
        return ask_and_tell(problem, strategy, exact, budget)
    with closing(Judgements(history)) if history else nullcontext() as kept:
        if kept is not None and len(kept):
            history.forget_last_generation()
        past = history.past if history else {}
        races = Racing(problem, table, table.values.shape[1], 0.95, past=past, first_look=50, kept=kept)
        return ask_and_tell(problem, strategy, races, budget, history=history, on_evaluation=on_evaluation)


@pytest.mark.parametrize("limits", [{}, {"macs": 15.0}])
def test_the_front_of_a_whole_search_is_that_of_all_examples_for_fewer(limits):
    for seed in range(5):
        problem, table = grid(seed)
        problem = Problem(GRID, ["accuracy"], problem.costs, limits)
        result = searched(problem, table, racing=True)
        spent, table.looked_at = table.looked_at, 0
        archs = [evaluation.arch for evaluation in result.evaluations]
        exact = table.values[[table.row(arch) for arch in archs]].mean(axis=1)
        members = front(np.column_stack([problem.price(archs)[:, 0], -exact]))
        assert {e.arch for e in result.front} == {archs[index] for index in members}
        assert {e.scores["accuracy"] for e in result.front} == {np.float32(exact[index]) for index in members}
        assert spent < 0.75 * len(archs) * table.values.shape[1]


def test_a_rejected_architecture_is_below_its_rival_and_has_no_score():
    problem, table = grid()
    result = searched(problem, table, racing=True)
    left_out = [evaluation for evaluation in result.evaluations if evaluation.rejected]
    judged = [evaluation for evaluation in result.evaluations if evaluation.scores]
    assert len(left_out) > 5
    assert len(left_out) + len(judged) == len(result.evaluations)
    off = []
    for evaluation in left_out:
        known = evaluation.rejected
        assert (evaluation.scores, evaluation.error) == ({}, None)
        assert known.examples in (50, 100, 200, 400, 800)
        cheaper = [e for e in judged if e.costs["macs"] <= evaluation.costs["macs"]]
        assert known.scores["accuracy"] < max(e.scores["accuracy"] for e in cheaper)
        exact = table.values[table.row(evaluation.arch)].mean()
        off.append((known.scores["accuracy"] - exact) / known.standard_errors["accuracy"])
    assert -2 < np.mean(off) < 0  # since it is when they look worst that architectures are rejected
    assert np.abs(off).max() < 4
    assert result.generations[-1].failed == 0


def test_strategies_hear_estimates():
    problem, table = grid()
    told = {}

    class Listening:
        def __init__(self):
            self.inner = make_strategy("evolution", problem, 0, 12)

        def ask(self):
            return self.inner.ask()

        def tell(self, archs, scores):
            told.update(zip(archs, scores[:, 0]))
            self.inner.tell(archs, scores)

    racing = Racing(problem, table, 1000, 0.95, first_look=50)
    for evaluation in ask_and_tell(problem, Listening(), racing, 48).evaluations:
        known = evaluation.rejected or evaluation
        assert told[evaluation.arch] == known.scores["accuracy"]


class Killed(BaseException):
    """What no code catches."""


class Dying(Table):
    """A table that kills the search when it has judged so many architectures at a look, before it says of the next."""

    def __init__(self, table, after):
        super().__init__(table.values, table.row)
        self.after = after

    def __call__(self, archs, examples):
        for outcome in super().__call__(archs, examples):
            if self.after == 0:
                self.looked_at -= len(examples)
                raise Killed
            self.after -= 1
            yield outcome


@pytest.mark.parametrize("after", [0, 5, 17, 60, 90, 140])
def test_a_search_that_was_killed_in_a_race_judges_nothing_twice(after, tmp_path):
    problem, table = grid()
    whole = searched(problem, table, racing=True).evaluations
    path, dying = tmp_path / "search.jsonl", Dying(table, after)
    with pytest.raises(Killed), History(path, problem.describe()) as history:
        searched(problem, dying, racing=True, history=history)
    again = Table(table.values, table.row)
    with History(path, problem.describe(), resume=True) as history:
        resumed = searched(problem, again, racing=True, history=history).evaluations
    assert resumed == whole == read_history(path)[1]
    assert dying.looked_at + again.looked_at == table.looked_at


@pytest.mark.parametrize("budget", [30, 36])
def test_a_search_that_was_killed_while_it_wrote_a_generation_down_goes_on(budget, tmp_path):
    problem, table = grid()
    whole = searched(problem, table, racing=True).evaluations

    def killed(evaluation, count):
        if count == budget:
            raise Killed

    path, again = tmp_path / "search.jsonl", Table(table.values, table.row)
    with pytest.raises(Killed), History(path, problem.describe()) as history:
        searched(problem, again, racing=True, history=history, on_evaluation=killed)
    with History(path, problem.describe(), resume=True) as history:
        resumed = searched(problem, again, racing=True, history=history).evaluations
    assert resumed == whole == read_history(path)[1]
    assert again.looked_at == table.looked_at


KILLED = """
import os, signal
from test_racing import Dying, History, grid, searched

class Dead(Dying):
    def __call__(self, archs, examples):
        try:
            yield from super().__call__(archs, examples)
        except BaseException:
            os.kill(os.getpid(), signal.SIGKILL)

problem, table = grid()
with History("search.jsonl", problem.describe()) as history:
    searched(problem, Dead(table, 70), racing=True, history=history)
"""


@pytest.mark.exhaustive  # others kill searches within this process
def test_what_was_judged_outlives_the_process(tmp_path):
    paths = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    command = [sys.executable, "-c", KILLED]
    assert subprocess.run(command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": paths}).returncode == -signal.SIGKILL
    problem, table = grid()
    whole = searched(problem, table, racing=True).evaluations
    spent, table.looked_at = table.looked_at, 0
    with History(tmp_path / "search.jsonl", problem.describe(), resume=True) as history:
        assert searched(problem, table, racing=True, history=history).evaluations == whole
    assert 0 < table.looked_at < spent


def test_without_what_was_judged_the_front_is_judged_again(tmp_path):
    problem, table = grid()
    whole = searched(problem, table, racing=True).evaluations
    path = tmp_path / "search.jsonl"
    with History(path, problem.describe()) as history:
        searched(problem, table, racing=True, budget=36, history=history)
    path.with_suffix(".judged").unlink()
    with History(path, problem.describe(), resume=True) as history:
        resumed = searched(problem, table, racing=True, history=history).evaluations
    assert resumed == whole == read_history(path)[1]


def test_judgements_of_another_search_and_damaged_ones_count_for_nothing(tmp_path, caplog):
    path, first, values = tmp_path / "search.jsonl", LINE.smallest, np.array([1.0, 0.0, 0.25])
    with History(path, {"search": 1}) as history, closing(Judgements(history)) as kept:
        kept.append(first, 0, values)
        kept.append(first, 3, values[:2])
        kept.append(LINE.largest, 0, values)
    with History(path, {"search": 1}, resume=True) as history:
        kept = Judgements(history)
        assert len(kept) == 3
        np.testing.assert_array_equal(kept.get(first, 0, 5), [*values, *values[:2]])
        assert kept.get(first, 0, 4) is kept.get(first, 5, 6) is kept.get(LINE.largest, 0, 5) is None
    lines = kept.path.read_bytes().splitlines(keepends=True)
    kept.path.write_bytes(b"".join([*lines[:2], b'{"arch": 1}\n', lines[3]]))
    with History(path, {"search": 1}, resume=True) as history, closing(Judgements(history)) as kept:
        assert len(kept) == 1
        assert "search.judged is damaged from line 3 on" in caplog.text
        kept.append(LINE.largest, 0, values[:1])
    assert kept.path.read_bytes().startswith(b"".join(lines[:2]))
    path.unlink()
    with History(path, {"search": 2}) as history, closing(Judgements(history)) as kept:
        assert not len(kept)
        kept.append(first, 0, values)
    assert kept.path.read_bytes().splitlines()[0] == path.read_bytes().splitlines()[0]


def test_what_fails_on_the_way_has_failed_and_leaves_the_race():
    values = networks(np.random.default_rng(0), np.linspace(0.5, 0.9, 12), 400)

    def judge(archs, examples):
        for each in Table(values, by_number)(archs, examples):
            number = archs[each.index]["number"]
            if number == 3 and len(examples) == 100:
                yield Scored(each.index, {}, "RuntimeError: no")
            elif number == 4:
                yield Scored(each.index, {"accuracy": Judged(float("nan"), each.scores["accuracy"].per_example)})
            else:
                yield each

    racing = Racing(line(), judge, 400, 0.95, first_look=50)
    found = list(racing(LINE.decode(np.arange(12)[:, None])))
    assert [each.error for each in found if each.error] == ["RuntimeError: no", "accuracy is nan"]
    assert found[3].rejected is None


def test_a_race_needs_examples_a_confidence_and_one_score():
    problem = line()
    with pytest.raises(ValueError, match=r"between 0 and 1, such as 0\.9, not 95"):
        Racing(problem, None, 10, 95)
    with pytest.raises(ValueError, match="by a single score, not by a, b"):
        Racing(Problem(LINE, ["a", "b"]), None, 10, 0.9)
    whole = Racing(problem, lambda archs, examples: [Scored(0, {"accuracy": Judged(0.5, None)})], 10, 0.9)
    with pytest.raises(ValueError, match="the mean over examples, and accuracy is none"):
        list(whole([LINE.smallest]))


def test_a_rejection_is_read_as_it_was_written():
    evaluation = Evaluation(LINE.smallest, {}, {"macs": 1.0}, 2, rejected=Rejection({"a": 0.5}, {"a": 0.01}, 250))
    assert Evaluation.from_json(evaluation.to_json()) == evaluation
    assert "rejected" not in Evaluation(LINE.smallest, {"a": 0.5}, {}, 0).to_json()
