import numpy as np
import pytest

from predictors.accuracy import AccuracyPredictor, rank_correlation
from search.evaluator import evaluate_here
from search.loop import ask_and_tell
from search.problem import Problem
from search.strategies.evolution import EvolutionConfig
from search.strategies.screening import ScreenedEvolution
from supernet import Choice, SearchSpace

SPACE = SearchSpace(
    {"depth": (1, 2), **{f"c{i}": tuple(range(4)) for i in range(10)}, "last": Choice((1, 2), when={"depth": (2,)})}
)


def additive(archs):
    return [sum((i + 1) * a[f"c{i}"] for i in range(10)) + 5.0 * a.get("last", 0) for a in archs]


def test_an_additive_score_is_learnt_exactly(numpy_generator):
    archs = [SPACE.sample(numpy_generator) for _ in range(200)]
    predictor = AccuracyPredictor(SPACE, archs[:100], additive(archs[:100]))
    np.testing.assert_allclose(predictor(archs[100:]), additive(archs[100:]), rtol=1e-3)
    assert rank_correlation(predictor(archs[100:]), additive(archs[100:])) > 0.99


def test_bad_evaluations_are_refused(numpy_generator):
    archs = [SPACE.sample(numpy_generator) for _ in range(12)]
    with pytest.raises(ValueError, match="at least 10 evaluations, not 9"):
        AccuracyPredictor(SPACE, archs[:9], additive(archs[:9]))
    with pytest.raises(ValueError, match="a score is nan"):
        AccuracyPredictor(SPACE, archs, [float("nan"), *additive(archs[1:])])
    with pytest.raises(ValueError, match="12 architectures but 11 scores"):
        AccuracyPredictor(SPACE, archs, additive(archs[1:]))


def test_rank_correlation_by_hand():
    assert rank_correlation([1, 2, 3], [10, 20, 30]) == 1.0
    assert rank_correlation([1, 2, 3], [3, 2, 1]) == -1.0
    assert rank_correlation([1, 2, 3], [1, 3, 2]) == pytest.approx(1 / 3)
    assert np.isnan(rank_correlation([1.0], [2.0]))


def test_screening_finds_the_best_with_few_evaluations_and_reports_its_correlation():
    problem = Problem(SPACE, ["score"])
    strategy = ScreenedEvolution(problem, 0, EvolutionConfig(60), rounds=5)
    result = ask_and_tell(problem, strategy, evaluate_here({"score": additive}), 180)
    assert result.generations[-1].best["score"] == additive([SPACE.largest])[0]
    assert [list(generation.notes) for generation in result.generations] == [
        [],
        ["rank_correlation"],
        ["rank_correlation"],
    ]
    assert result.generations[-1].notes["rank_correlation"] > 0.8
