"""The regressions against dense formulas."""

import numpy as np
import pytest
from scipy.optimize import approx_fprime

from predictors import additive, pairwise
from predictors.design import most_informative
from predictors.embedding import embedding
from predictors.transfer import additive_coefficients, components
from supernet.space import Choice, SearchSpace

SPACE = SearchSpace(
    {
        "depth": (1, 2),
        "kernel_size.1": (3, 5, 7),
        "kernel_size.2": Choice((3, 5, 7), when={"depth": (2,)}),
        "operation": ("a", "b", "c"),
    }
)
EMBEDDING = embedding(SPACE)
GENERATOR = np.random.default_rng(0)
CODES = SPACE.encode([SPACE.sample(GENERATOR) for _ in range(25)])
INDICATORS = EMBEDDING.indicators(CODES)
TARGETS = GENERATOR.normal(3, 2, 25)


def test_indicators_mark_active_values():
    row = EMBEDDING.indicators(np.array([[0, 2, -1, 1]]))[0]
    np.testing.assert_array_equal(row, [1, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0])


def test_views_have_mean_square_norm_one_over_random_architectures():
    for table in EMBEDDING.tables:
        points = (EMBEDDING.sample - EMBEDDING.centre) @ table
        assert (points**2).sum(axis=1).mean() == pytest.approx(1)


def test_the_shared_view_counts_values_of_choices_alike():
    shared = EMBEDDING.tables[0]
    one, other = EMBEDDING.indicators(np.array([[1, 0, 2, 0], [1, 2, 0, 0]])) @ shared
    np.testing.assert_allclose(one, other)


def dense_kernel(log_variances, first, second):
    additive_part = sum(
        np.exp(a) * ((first - EMBEDDING.centre) @ t) @ ((second - EMBEDDING.centre) @ t).T
        for a, t in zip(log_variances, EMBEDDING.tables)
    )
    return 1 + additive_part + np.exp(log_variances[-2]) * additive_part**2


def test_pairwise_is_the_gaussian_process_of_its_kernel():
    log_variances = np.array([-1.0, 0.5, -2.0, -1.5, -3.0])
    model = pairwise.condition(INDICATORS, TARGETS, EMBEDDING.centre, EMBEDDING.tables, log_variances)
    queries = EMBEDDING.sample[:50]
    kernel = dense_kernel(log_variances, INDICATORS, INDICATORS)
    noise = np.exp(-3.0) + pairwise.JITTER * kernel.trace() / 25
    inverse = np.linalg.inv(kernel + noise * np.eye(25))
    cross = dense_kernel(log_variances, queries, INDICATORS)
    mean = cross @ inverse @ (TARGETS - TARGETS.mean()) + TARGETS.mean()
    variance = dense_kernel(log_variances, queries, queries).diagonal() + np.exp(-3.0)
    variance = (variance - np.einsum("ij,jk,ik->i", cross, inverse, cross)) * TARGETS.var()
    found_mean, found_variance = model.predict(queries.astype(np.float32))
    np.testing.assert_allclose(found_mean, mean, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(found_variance, variance, rtol=1e-2)


def test_the_gradient_of_the_evidence_is_right():
    grams = [((INDICATORS - EMBEDDING.centre) @ t) @ ((INDICATORS - EMBEDDING.centre) @ t).T for t in EMBEDDING.tables]
    targets = (TARGETS - TARGETS.mean()) / TARGETS.std()
    at, centre = np.array([-1.0, 0.5, -2.0, -1.5, -2.0]), np.zeros(5)
    _, gradient = pairwise._negative_evidence(at, grams, targets, centre)
    numeric = approx_fprime(at, lambda x: pairwise._negative_evidence(x, grams, targets, centre)[0], 1e-6)
    np.testing.assert_allclose(gradient, numeric, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", ["additive", "pairwise"])
def test_left_out_is_what_a_fit_without_the_measurement_predicts(method):
    def model(part):
        targets = TARGETS[part]
        targets = (targets - TARGETS.mean()) / TARGETS.std()
        if method == "pairwise":
            variances = np.array([-1.0, 0.5, -2.0, -1.5, -3.0])
            return pairwise.condition(INDICATORS[part], targets, EMBEDDING.centre, EMBEDDING.tables, variances)
        # one model alone, so that the weights of the average do not depend on what is left out
        return additive.fit(INDICATORS[part], targets, EMBEDDING.centre, [0.1 * np.eye(11)], [(1.0,)])

    for i in (0, 7):
        others = np.delete(np.arange(25), i)
        predicted = model(others).predict(INDICATORS[i : i + 1].astype(np.float32))[0][0]
        assert model(np.arange(25)).left_out[i] == pytest.approx(predicted, abs=0.15)


def test_additive_with_one_model_is_ridge_regression(monkeypatch):
    monkeypatch.setattr(additive, "NOISES", (0.1,))
    model = additive.fit(INDICATORS, TARGETS, EMBEDDING.centre, [0.5 * np.eye(11)], [(1.0,)])
    scale = TARGETS.std()
    design = np.column_stack([(INDICATORS - EMBEDDING.centre) * np.sqrt(0.5), np.ones(25)])
    posterior = np.linalg.inv(design.T @ design / 0.1 + np.eye(12))
    weights = posterior @ design.T @ ((TARGETS - TARGETS.mean()) / scale) / 0.1
    queries = EMBEDDING.sample[:20]
    query_design = np.column_stack([(queries - EMBEDDING.centre) * np.sqrt(0.5), np.ones(20)])
    mean, variance = model.predict(queries.astype(np.float32))
    np.testing.assert_allclose(mean, query_design @ weights * scale + TARGETS.mean(), rtol=1e-5, atol=1e-5)
    expected = np.einsum("ij,jk,ik->i", query_design, posterior, query_design) + 0.1
    np.testing.assert_allclose(variance, expected * scale**2, rtol=1e-4)


def test_coefficients_of_an_additive_latency_reproduce_it():
    true = np.arange(11.0)
    coefficients, unexplained = additive_coefficients(EMBEDDING, (EMBEDDING.sample @ true + 1)[None])
    centred = EMBEDDING.sample - EMBEDDING.centre
    np.testing.assert_allclose(centred @ coefficients[0], centred @ true, atol=0.02)
    assert unexplained < 1e-5


def test_the_prior_spans_the_sources_and_is_positive():
    coefficients = GENERATOR.normal(size=(2, 11))
    span, other = components(EMBEDDING, coefficients)
    assert np.linalg.matrix_rank(span) == 2
    assert np.linalg.eigvalsh(other)[0] > 0
    covariance = np.cov(EMBEDDING.sample.T, bias=True)
    assert np.trace(span @ covariance) == pytest.approx(0.25)


def test_the_first_measurement_is_the_one_that_brute_force_finds():
    prior = np.diag(GENERATOR.uniform(0.1, 1, 11))
    points = np.column_stack([(EMBEDDING.sample - EMBEDDING.centre) @ np.sqrt(prior), np.ones(len(EMBEDDING.sample))])

    def remaining(i):
        design = np.column_stack([(INDICATORS[i] - EMBEDDING.centre)[None] @ np.sqrt(prior), [1.0]])
        posterior = np.linalg.inv(np.eye(12) + design.T @ design / 0.02)
        return np.einsum("ij,jk,ik->", points, posterior, points)

    assert most_informative(EMBEDDING, INDICATORS, prior, 1)[0] == np.argmin([remaining(i) for i in range(25)])
    assert len(set(most_informative(EMBEDDING, INDICATORS, prior, 10))) == 10
