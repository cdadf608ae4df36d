"""Scores from few evaluations: the regressor that fits, and standard deviations that hold."""

import numpy as np
import pytest
from scipy.optimize import check_grad
from sklearn.preprocessing import PowerTransformer

from predictors.posterior import Points, ScorePosterior, left_out_density
from predictors.regression import matern
from predictors.regression.warp import Warp
from supernet import SearchSpace

SPACE = SearchSpace({**{f"c{i}": (1, 2, 3, 4) for i in range(5)}, "op": ("a", "b", "c")})


def points(archs):
    return Points(SPACE, archs, np.array([[sum(a[f"c{i}"] for i in range(5))] for a in archs], dtype=float))


def additive(archs):
    return np.array([a["c0"] - 2.0 * a["c1"] + 3.0 * (a["op"] == "b") for a in archs])


def interacting(archs):
    """Best where the sum of five choices is 12."""
    return np.array([2.0 * (a["op"] == "b") - (sum(a[f"c{i}"] for i in range(5)) - 12.0) ** 2 for a in archs])


def split(generator, train=60, test=100):
    archs = list(dict.fromkeys(SPACE.sample(generator) for _ in range(2 * (train + test))))
    return archs[:train], archs[train : train + test]


def test_effects_that_interact_are_seen_and_errors_are_as_large_as_said(numpy_generator):
    train, test = split(numpy_generator, 30)
    noisy = interacting(train) + 0.3 * numpy_generator.normal(size=30)
    posterior = ScorePosterior.fit(points(train), noisy)
    assert posterior.kind == "matern"
    mean, deviation = posterior.predict(points(test))
    found = posterior.warp(interacting(test))
    assert np.corrcoef(mean, found)[0, 1] > 0.9
    assert 0.5 < np.sqrt(np.mean(((found - mean) / deviation) ** 2)) < 1.5


def test_the_denser_of_two_regressors_is_taken(numpy_generator):
    train, test = split(numpy_generator, 12)
    noise = 0.3 * numpy_generator.normal(size=len(train))
    posteriors = [ScorePosterior.fit(points(train), f(train) + noise) for f in (additive, interacting)]
    assert [posterior.kind for posterior in posteriors] == ["additive", "matern"]
    mean, deviation = posteriors[0].predict(points(test))
    assert np.corrcoef(mean, additive(test))[0, 1] > 0.9
    assert (deviation > 0).all()
    assert posteriors[0].noise > 0


def test_what_is_left_out_is_what_a_posterior_without_it_predicts(numpy_generator):
    train, _ = split(numpy_generator, 12)
    posterior = ScorePosterior.fit(points(train), interacting(train))
    views, targets = [numpy_generator.normal(size=(12, 3)), numpy_generator.normal(size=(12, 1))], posterior.targets
    parameters = np.array([-1.0, 0.2, -0.5, 0.3, 0.1, -2.0])
    model = matern.condition(views, targets, parameters)
    density = 0.0
    for index in range(12):
        rest = np.arange(12) != index
        without = matern.condition([view[rest] for view in views], targets[rest], parameters)
        mean, variance = without.predict([view[[index]] for view in views])
        variance = variance + np.exp(-2.0) + matern.JITTER
        assert model.left_out[index] == pytest.approx(mean[0])
        assert model.left_out_variance[index] == pytest.approx(variance[0])
        density -= 0.5 * ((targets[index] - mean[0]) ** 2 / variance[0] + np.log(2 * np.pi * variance[0]))
    assert left_out_density(model, targets) == pytest.approx(density)


def test_the_gradient_of_the_evidence(numpy_generator):
    views, targets = [numpy_generator.normal(size=(15, d)) for d in (3, 1)], numpy_generator.normal(size=15)
    start = np.array([-1.0, 0.2, -0.5, 0.3, 0.1, -2.0])
    rest = (matern._inner(views, views), matern._squared_distances(views, views), targets, np.zeros(6))
    assert (
        check_grad(
            lambda p: matern._negative_evidence(p, *rest)[0], lambda p: matern._negative_evidence(p, *rest)[1], start
        )
        < 1e-4
    )


def test_believing_is_being_told(numpy_generator):
    train, test = split(numpy_generator, 20, 30)
    posterior = ScorePosterior.fit(points(train), interacting(train))
    mean, deviation = posterior.predict(points(test))
    believing = posterior.believing(points(test[:1]), mean[:1])
    after, surer = believing.predict(points(test))
    np.testing.assert_allclose(after, mean, atol=1e-5)
    assert surer[0] < 0.6 * deviation[0]
    assert (surer <= deviation + 1e-6).all()


def test_skewed_scores_become_normal_and_are_taken_back(numpy_generator):
    scores = 94 - np.exp(numpy_generator.normal(size=200))
    warp = Warp.fit(scores)
    reference = PowerTransformer(method="yeo-johnson").fit_transform((scores[:, None] - scores.mean()) / scores.std())
    np.testing.assert_allclose(warp(scores), reference[:, 0], atol=1e-3)
    np.testing.assert_allclose(warp.inverse(warp(scores)), scores)
    assert warp.power > 1
    assert np.isfinite(warp.inverse(np.array([-1e6, 1e6]))).all()
    same = Warp.fit(np.full(9, 0.3))
    np.testing.assert_allclose(same.inverse(same(np.array([0.1, 0.3]))), [0.1, 0.3])


def test_bad_evaluations_are_refused(numpy_generator):
    train, _ = split(numpy_generator, 10)
    with pytest.raises(ValueError, match="at least 8 evaluations, not 7"):
        ScorePosterior.fit(points(train[:7]), additive(train[:7]))
    with pytest.raises(ValueError, match="a score is nan"):
        ScorePosterior.fit(points(train), [*additive(train[1:]), np.nan])
    with pytest.raises(ValueError, match="10 architectures but 9 scores"):
        ScorePosterior.fit(points(train), additive(train[1:]))
