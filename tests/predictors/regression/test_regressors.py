"""The regressions against dense formulas."""

import numpy as np
import pytest
from scipy.optimize import approx_fprime
from scipy.stats import multivariate_normal

from predictors.design import most_informative
from predictors.regression import additive, pairwise
from predictors.regression.embedding import embedding
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


ONCE = np.arange(25)
REPEATED = np.array([0, 1, 2, 0, 3, 4, 5, 0, 6, 1, *range(7, 22)])  # one architecture three times, another twice
LOG_VARIANCES = np.array([-1.0, 0.5, -2.0, -1.5, -3.0])


def without_its_own(covariance, targets, architectures):
    """Means and variances of the targets, each conditional on those of all other architectures, one by one."""
    found = []
    for i in range(len(targets)):
        others = architectures != architectures[i]
        weights = np.linalg.solve(covariance[np.ix_(others, others)], covariance[others, i])
        found.append((weights @ targets[others], covariance[i, i] - weights @ covariance[others, i]))
    return np.array(found).T


@pytest.mark.parametrize("architectures", [ONCE, REPEATED], ids=["once", "repeated"])
@pytest.mark.parametrize("count", [8, 25], ids=["fewer than values", "more than values"])
def test_left_out_by_additive_is_what_fits_without_the_architecture_predict(count, architectures, monkeypatch):
    indicators, targets, architectures = INDICATORS[:count], TARGETS[:count], architectures[:count]
    noises, factors, part = (0.03, 0.3), (0.2, 2.0), 0.5 * np.eye(11)
    monkeypatch.setattr(additive, "NOISES", noises)
    model = additive.fit(indicators, targets, EMBEDDING.centre, [part], [factors], architectures)
    standardised = (targets - targets.mean()) / targets.std()
    centred = indicators - EMBEDDING.centre
    evidence, found = [], []
    for factor in factors:
        for noise in noises:
            covariance = 1 + factor * centred @ part @ centred.T + noise * np.eye(count)
            evidence.append(multivariate_normal(cov=covariance).logpdf(standardised))
            found.append(without_its_own(covariance, standardised, architectures))
    weights = np.exp(evidence) / np.exp(evidence).sum()
    means, variances = np.moveaxis(np.array(found), 1, 0)
    mean = weights @ means
    variance = weights @ (variances + (means - mean) ** 2)
    np.testing.assert_allclose(model.left_out, mean * targets.std() + targets.mean(), rtol=1e-6)
    np.testing.assert_allclose(model.left_out_variance, variance * targets.var(), rtol=1e-6)


@pytest.mark.parametrize("architectures", [ONCE, REPEATED], ids=["once", "repeated"])
def test_left_out_by_pairwise_is_what_fits_without_the_architecture_predict(architectures):
    model = pairwise.condition(INDICATORS, TARGETS, EMBEDDING.centre, EMBEDDING.tables, LOG_VARIANCES, architectures)
    kernel = dense_kernel(LOG_VARIANCES, INDICATORS, INDICATORS)
    covariance = kernel + (np.exp(-3.0) + pairwise.JITTER * kernel.trace() / 25) * np.eye(25)
    mean, variance = without_its_own(covariance, (TARGETS - TARGETS.mean()) / TARGETS.std(), architectures)
    np.testing.assert_allclose(model.left_out, mean * TARGETS.std() + TARGETS.mean(), rtol=1e-6)
    np.testing.assert_allclose(model.left_out_variance, variance * TARGETS.var(), rtol=1e-6)


def test_beyond_what_a_variance_accounts_for_left_out_is_what_is_predicted(monkeypatch):
    monkeypatch.setattr(pairwise, "MOST_FOR_VARIANCE", 20)
    model = pairwise.condition(INDICATORS, TARGETS, EMBEDDING.centre, EMBEDDING.tables, LOG_VARIANCES)
    _, variance = model.predict(INDICATORS[20:].astype(np.float32))
    np.testing.assert_allclose(model.left_out_variance[20:], variance, rtol=1e-3)
    first = pairwise.condition(INDICATORS[:20], TARGETS[:20], EMBEDDING.centre, EMBEDDING.tables, LOG_VARIANCES)
    ratio = TARGETS.var() / TARGETS[:20].var()  # the variances are in units of that of the targets
    np.testing.assert_allclose(model.left_out_variance[:20], first.left_out_variance * ratio, rtol=1e-6)


def test_all_measurements_that_a_variance_accounts_for_reduce_it():
    """Two hundred of them, whose pairs take more directions: what is left out is predicted by the others."""
    space = SearchSpace({f"choice_{i}": ("a", "b", "c", "d") for i in range(8)})
    own = embedding(space)
    generator = np.random.default_rng(0)
    indicators = own.indicators(space.encode([space.sample(generator) for _ in range(201)]))
    targets = generator.normal(3, 2, 201)
    log_variances = np.array([0.0, 0.0, 0.0, -2.0, -5.0])
    left_out = pairwise.condition(indicators, targets, own.centre, own.tables, log_variances)
    others = pairwise.condition(indicators[:-1], targets[:-1], own.centre, own.tables, log_variances)
    variance = others.predict(indicators[-1:].astype(np.float32))[1] / targets[:-1].var()
    np.testing.assert_allclose(variance, left_out.left_out_variance[-1:] / targets.var(), rtol=1e-3)


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

    assert most_informative(EMBEDDING, INDICATORS, prior, 1, EMBEDDING.sample)[0] == np.argmin(
        [remaining(i) for i in range(25)]
    )
    assert len(set(most_informative(EMBEDDING, INDICATORS, prior, 10, EMBEDDING.sample))) == 10


def test_what_is_taken_in_any_case_counts_for_what_is_chosen_after_it():
    prior = np.eye(EMBEDDING.size)
    free = most_informative(EMBEDDING, INDICATORS, prior, 3, EMBEDDING.sample)
    assert most_informative(EMBEDDING, INDICATORS, prior, 3, EMBEDDING.sample, free[:2]) == free
    last = next(i for i in range(25) if i not in free)
    forced = most_informative(EMBEDDING, INDICATORS, prior, 3, EMBEDDING.sample, [last])
    assert forced[0] == last
    assert len(set(forced)) == 3
