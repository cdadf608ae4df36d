"""Mixtures, their held-out predictions and the scale of their errors, by hand."""

from types import SimpleNamespace

import numpy as np
import pytest
from scipy.stats import norm

from predictors.regression import held_out, mixture
from predictors.regression.embedding import embedding
from predictors.regression.held_out import HeldOut, error_scale
from predictors.regression.regressors import Measured, Regressor, applicable
from supernet.space import SearchSpace

SPACE = SearchSpace({"width": (8, 16, 24), "depth": (1, 2, 3), "kernel_size": (3, 5, 7)})
OWN = embedding(SPACE)
CODES = np.array([[w, d, k] for w in range(3) for d in range(3) for k in range(3)])
NOTHING = np.zeros((0, OWN.size))


def measured(latency_ms, architectures=None):
    count = len(latency_ms)
    architectures = np.arange(count) if architectures is None else np.array(architectures)
    return Measured(OWN, OWN.indicators(CODES[architectures]), np.array(latency_ms, dtype=float), architectures)


def model(mean, variance):
    """A model that predicts these for everything, and for what is left out."""
    mean, variance = np.array(mean, dtype=float), np.array(variance, dtype=float)
    return SimpleNamespace(left_out=mean, left_out_variance=variance, predict=lambda indicators: (mean, variance))


def test_the_scale_of_errors_is_that_of_the_held_out_ones():
    # errors of 2 and 4 standard errors, one of these from an architecture measured twice: (4 + 16 + 3) / (2 + 3)
    found = HeldOut(np.array([12.0, 14.0, 14.0]), np.array([1.0, 1.0, 1.0]))
    scale = error_scale(measured([10.0, 10.0, 10.0], [0, 1, 1]), found)
    assert scale == pytest.approx(np.sqrt(23 / 5) * 4.302653 / norm.ppf(0.975), rel=1e-6)  # t with 2 degrees of freedom
    # many errors as large as they were said to be need no scale
    honest = HeldOut(np.full(27, 11.0), np.ones(27))
    assert error_scale(measured([10.0, 12.0] * 13 + [10.0]), honest) == pytest.approx(2.051831 / norm.ppf(0.975))


def test_a_mixture_adds_the_variance_between_its_scales():
    regressors = [Regressor("additive", log, NOTHING) for log in (True, False)]
    both = mixture.Mixture(
        regressors, [model([np.log(4.0)], [0.01]), model([6.0], [0.25])], np.array([0.75, 0.25]), least_ms=1.0
    )
    latency_ms, standard_error_ms = both.predict(np.zeros((1, OWN.size)))
    assert latency_ms[0] == pytest.approx(4.5)
    # within: 0.75 (4 * 0.1)^2 + 0.25 * 0.25; between: 0.75 * 0.5^2 + 0.25 * 1.5^2
    assert standard_error_ms[0] ** 2 == pytest.approx(0.12 + 0.0625 + 0.1875 + 0.5625)


def test_no_latency_is_predicted_that_is_not_positive():
    regressor = Regressor("additive", False, NOTHING)
    one = mixture.Mixture([regressor], [model([-3.0], [1.0])], np.ones(1), least_ms=0.5)
    assert one.predict(np.zeros((1, OWN.size)))[0] == 0.5


def test_regressors_are_weighed_by_the_densities_of_left_out_milliseconds(monkeypatch):
    latency = [2.0, 3.0]
    models = {True: model(np.log([2.2, 2.5]), [0.04, 0.04]), False: model([2.3, 2.8], [0.25, 0.16])}
    monkeypatch.setattr(mixture, "condition", lambda measured, regressor: models[regressor.logarithmic])
    regressors = [Regressor("additive", log, NOTHING) for log in (True, False)]
    densities = np.array(
        [
            norm.pdf(np.log(latency), np.log([2.2, 2.5]), 0.2) / latency,  # d log y = dy / y
            norm.pdf(latency, [2.3, 2.8], [0.5, 0.4]),
        ]
    )
    first = np.linspace(0, 1, 10_001)[1:-1]  # by brute force
    posterior = np.log(first[:, None] * densities[0] + (1 - first[:, None]) * densities[1]).sum(axis=1)
    posterior += 1.5 * np.log(first * (1 - first))  # three measurements that speak for both alike
    weights = mixture.average(measured(latency), regressors).weights
    assert weights[0] == pytest.approx(first[posterior.argmax()], abs=2e-4)
    assert weights.sum() == pytest.approx(1)


def test_regressors_that_are_each_right_on_half_share_the_weight():
    density = np.log([[1.0, 1e-9] * 20, [1e-9, 1.0] * 20])
    assert mixture.stacked(density, np.array([0.5, 0.5])) == pytest.approx([0.5, 0.5])


def test_a_method_keeps_the_weight_of_the_prior_alone_where_another_is_always_better():
    weights = mixture.stacked(np.log([[1.0] * 9, [1e-9] * 9]), np.array([0.5, 0.5]))
    assert weights == pytest.approx([0.95, 0.05])  # (9 + 1/2) and 1/2, of 10


def test_the_prior_is_for_sources():
    """Three measurements: with two sources 0.225 of them for two regressors without, with many 0.05."""

    def prior(count):
        both = np.ones((count, OWN.size)), NOTHING
        return [Regressor("additive", log, sources) for sources in both for log in (True, False)]

    assert mixture._prior(prior(2)) == pytest.approx([1.1625, 1.1625, 0.3375, 0.3375])
    assert mixture._prior(prior(20)) == pytest.approx([1.425, 1.425, 0.075, 0.075])
    regressors = prior(1)
    assert mixture._prior(regressors[2:]) == pytest.approx([1.5, 1.5])


def test_of_more_than_a_thousand_measurements_a_thousand_are_left_out(monkeypatch):
    models = {kind: model(np.full(n, 2.0), np.ones(n)) for kind, n in (("additive", 1200), ("pairwise", 1000))}
    monkeypatch.setattr(mixture, "condition", lambda measured, regressor: models[regressor.kind])
    regressors = [Regressor(kind, False, NOTHING) for kind in models]
    found = mixture.average(measured(np.full(1200, 2.0), np.arange(1200) % 27), regressors)
    assert [len(values) for values in found.left_out()] == [1000, 1000]


@pytest.mark.parametrize(
    ("count", "transfer", "kinds"),
    [
        (7, True, [("additive", 1)]),  # too few to do without sources
        (8, True, [("additive", 1), ("additive", 0)]),
        (29, False, [("additive", 0)]),
        (30, True, [("additive", 1), ("additive", 0), ("pairwise", 1), ("pairwise", 0)]),
    ],
)
def test_what_is_tried_depends_on_how_many_there_are(count, transfer, kinds):
    transfers = [Regressor("additive", log, np.ones((1, OWN.size))) for log in (False, True)] if transfer else []
    found = [(r.kind, len(r.sources), r.logarithmic) for r in applicable(OWN, transfers, count)]
    assert len(found) == 2 * len(kinds)
    assert set(found) == {(*kind, log) for kind in kinds for log in (True, False)}


def test_each_architecture_is_predicted_by_a_fit_without_it():
    architectures = [*range(23), 3, 3]
    latency = np.arange(1.0, 26.0)
    seen = []

    def fit(part):
        seen.append(part)
        mean = part.latency_ms.mean()
        return SimpleNamespace(predict=lambda indicators: (np.full(len(indicators), mean), np.ones(len(indicators))))

    found = held_out.held_out(measured(latency, architectures), fit, fitted=None)
    assert len(seen) == held_out.FOLDS
    for i, architecture in enumerate(architectures):
        others = [other % held_out.FOLDS != architecture % held_out.FOLDS for other in architectures]
        assert found.latency_ms[i] == pytest.approx(latency[others].mean())


def test_of_many_measurements_what_the_fit_leaves_out_is_held_out(monkeypatch):
    monkeypatch.setattr(held_out, "MOST", 10)
    fitted = SimpleNamespace(left_out=lambda: (np.full(11, 2.0), np.ones(11)))
    found = held_out.held_out(measured(np.ones(11)), None, fitted)
    np.testing.assert_array_equal(found.latency_ms, np.full(11, 2.0))
