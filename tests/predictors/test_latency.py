import hashlib
import json

import numpy as np
import pytest
from scipy.stats import spearmanr

from predictors import Device, LatencyPredictor
from predictors.latency import FILE, load_devices, suggest
from predictors.regression.embedding import embedding
from predictors.regression.regressors import Measured, condition
from supernet.families import FAMILIES
from supernet.space import SearchSpace

FAMILY = FAMILIES["ofa_mobilenet_v3"](num_classes=10)
SPACE = FAMILY.space
GENERATOR = np.random.default_rng(0)
ARCHS = [SPACE.sample(GENERATOR) for _ in range(700)]
OPERATIONS = tuple(f"op{i}" for i in range(6))
CELLS = SearchSpace({f"layer{i}": OPERATIONS for i in range(12)})


def mobile(arch):
    """A made-up device: a fixed cost, one for each layer, and one by the work."""
    return 2 + 0.1 * sum(value for name, value in arch.items() if "depth" in name) + FAMILY.macs(arch) / 3e7


def noisy(latency_ms, spread, seed=0):
    return np.array(latency_ms) * np.random.default_rng(seed).normal(1, spread, len(latency_ms))


TRUE = np.array([mobile(arch) for arch in ARCHS])


def MACS(archs):
    return [FAMILY.macs(arch) for arch in archs]


def test_a_hundred_measurements_predict_the_rest():
    predictor = LatencyPredictor.fit(SPACE, ARCHS[:100], noisy(TRUE[:100], 0.01))
    latency_ms, standard_error_ms = predictor.predict(ARCHS[100:])
    error = latency_ms / TRUE[100:] - 1
    assert np.abs(error).mean() < 0.03
    assert spearmanr(latency_ms, TRUE[100:]).statistic > 0.98
    surprise = (latency_ms - noisy(TRUE[100:], 0.01, 1)) / standard_error_ms
    assert 0.7 < surprise.std() < 1.5
    assert predictor.error_percent == pytest.approx(100 * np.abs(error).mean(), rel=0.6)


def test_costs_as_sources_make_it_better():
    sources = [lambda archs: [FAMILY.macs(arch) for arch in archs]]
    errors = [
        np.abs(LatencyPredictor.fit(SPACE, ARCHS[:40], TRUE[:40], s).cost(ARCHS[100:]) / TRUE[100:] - 1).mean()
        for s in ((), sources)
    ]
    assert errors[1] < 0.7 * errors[0]


def test_a_source_that_is_the_same_everywhere_says_nothing():
    with_source = LatencyPredictor.fit(SPACE, ARCHS[:40], TRUE[:40], [lambda archs: [5.0] * len(archs)])
    np.testing.assert_array_equal(
        with_source.cost(ARCHS), LatencyPredictor.fit(SPACE, ARCHS[:40], TRUE[:40]).cost(ARCHS)
    )


def test_encoded_architectures_are_as_good_as_architectures():
    from_codes = LatencyPredictor.fit(SPACE, SPACE.encode(ARCHS[:50]), TRUE[:50])
    from_archs = LatencyPredictor.fit(SPACE, ARCHS[:50], TRUE[:50])
    np.testing.assert_array_equal(from_codes.cost(SPACE.encode(ARCHS)), from_archs.cost(ARCHS))


@pytest.mark.parametrize("count", [30, 400])
def test_what_is_loaded_predicts_what_was_saved(tmp_path, count):
    device = Device("phone", "onnxruntime", threads=2)
    source = [lambda archs: [FAMILY.macs(arch) for arch in archs]]
    predictor = LatencyPredictor.fit(SPACE, ARCHS[:count], noisy(TRUE[:count], 0.02), source, device)
    predictor.save(tmp_path / "phone")
    loaded = LatencyPredictor.load(tmp_path / "phone", SPACE)
    for one, other in zip(predictor.predict(ARCHS), loaded.predict(ARCHS)):
        np.testing.assert_allclose(one, other, rtol=1e-6)
    assert loaded.device == device
    assert list(load_devices(tmp_path)) == ["phone"]


WORK = np.outer(np.random.default_rng(7).uniform(0.5, 2, 12), (0.1, 0.5, 1.0, 2.0, 3.0, 4.0))
CELL_CODES = CELLS.encode([CELLS.sample(GENERATOR) for _ in range(1500)])


def lookup_device(seed):
    """A device of additive latencies [layers, operations]: work times how slow it is at the layer and the operation."""
    generator = np.random.default_rng(seed)
    return np.outer(generator.uniform(0.8, 1.25, 12), generator.uniform(0.5, 1.5, 6)) * WORK + generator.uniform(0, 0.1)


def on(table, codes):
    return 1 + table[np.arange(12), codes].sum(axis=1)


@pytest.fixture(scope="module")
def sources():
    part = CELL_CODES[:500]
    return [LatencyPredictor.fit(CELLS, part, on(lookup_device(seed), part)) for seed in range(4)]


def test_ten_measurements_do_with_other_devices_as_sources(sources):
    ten, rest = CELL_CODES[:10], CELL_CODES[10:]
    misses = []
    for seed in range(90, 95):
        table = lookup_device(seed)
        predictors = [LatencyPredictor.fit(CELLS, ten, on(table, ten), s) for s in (sources, ())]
        misses.append([1 - spearmanr(predictor.cost(rest), on(table, rest)).statistic for predictor in predictors])
    transferred, alone = np.mean(misses, axis=0)
    assert transferred < 0.1
    assert transferred < 0.7 * alone, (transferred, alone)


def test_suggested_measurements_are_better_than_random_ones(sources):
    suggested = sources[0].suggest(8, others=sources[1:])
    assert len(set(suggested)) == 8
    gains = []
    for seed in range(90, 98):
        table = lookup_device(seed)
        picks = [CELLS.encode(suggested), CELL_CODES[seed : seed + 8]]
        scores = [
            spearmanr(LatencyPredictor.fit(CELLS, p, on(table, p), sources).cost(CELL_CODES), on(table, CELL_CODES))
            for p in picks
        ]
        gains.append(scores[0].statistic - scores[1].statistic)
    assert np.mean(gains) > 0


def test_suggestions_come_from_the_candidates_and_need_no_source():
    candidates = ARCHS[:20]
    assert set(suggest(SPACE, 5, candidates=candidates)) <= set(candidates)
    with pytest.raises(ValueError, match="between 1 and 20 of the candidates can be suggested, not 21"):
        suggest(SPACE, 21, candidates=candidates)


@pytest.mark.parametrize("wrong", [0.0, -1.0, float("nan"), float("inf")])
def test_latencies_are_positive_numbers(wrong):
    with pytest.raises(ValueError, match="a latency is a positive number of milliseconds"):
        LatencyPredictor.fit(SPACE, ARCHS[:10], [*TRUE[:9], wrong])


def test_too_few_or_too_many_are_refused(sources):
    with pytest.raises(ValueError, match="at least 8 different architectures measured, not 7"):
        LatencyPredictor.fit(SPACE, ARCHS[:7], TRUE[:7])
    with pytest.raises(ValueError, match="at least 3 different architectures measured, not 2"):
        LatencyPredictor.fit(CELLS, CELL_CODES[:2], [1.0, 2.0], sources)
    with pytest.raises(ValueError, match="10 architectures but 9 latencies"):
        LatencyPredictor.fit(SPACE, ARCHS[:10], TRUE[:9])


@pytest.mark.parametrize("different", [1, 2, 7])
def test_measurements_of_the_same_architectures_are_no_more(different):
    again = [ARCHS[i % different] for i in range(20)]
    latency = noisy(np.full(20, 5.0), 0.01)
    with pytest.raises(ValueError, match=rf"at least 8 different .* not {different} \(20 measurements"):
        LatencyPredictor.fit(SPACE, again, latency)
    if different < 3:
        with pytest.raises(ValueError, match=rf"at least 3 different .* not {different} \(20 measurements"):
            LatencyPredictor.fit(SPACE, again, latency, [MACS])


def test_a_space_smaller_than_the_minimum_is_measured_whole():
    space = SearchSpace({"depth": (1, 2), "width": (8, 16)})
    archs = [space.validate({"depth": d, "width": w}) for d in (1, 2) for w in (8, 16)]
    LatencyPredictor.fit(space, archs, [1.0, 2.0, 2.0, 4.0])
    with pytest.raises(ValueError, match="at least 4 different"):
        LatencyPredictor.fit(space, archs[:3], [1.0, 2.0, 2.0])


def test_latencies_that_are_all_the_same_are_refused():
    with pytest.raises(ValueError, match="all 10 latencies are 5 ms"):
        LatencyPredictor.fit(SPACE, ARCHS[:10], [5.0] * 10)


def test_repeated_measurements_do_not_make_errors_look_small():
    repeated = [arch for arch in ARCHS[:10] for _ in range(4)]
    latency = noisy([mobile(arch) for arch in repeated], 0.02)
    once = LatencyPredictor.fit(SPACE, ARCHS[:10], latency[::4], [MACS])
    predictor = LatencyPredictor.fit(SPACE, repeated, latency, [MACS])
    true_percent = 100 * np.abs(predictor.cost(ARCHS[100:]) / TRUE[100:] - 1).mean()
    assert predictor.error_percent > 0.5 * true_percent
    assert predictor.error_percent == pytest.approx(once.error_percent, rel=0.5)
    found = {}
    for code, held_out in zip(predictor.codes, predictor.held_out_ms):
        found.setdefault(tuple(code), set()).add(round(float(held_out), 9))
    assert all(len(values) == 1 for values in found.values())  # all repeats of an architecture are held out together


def test_another_space_is_refused(sources):
    predictor = LatencyPredictor.fit(SPACE, ARCHS[:10], TRUE[:10])
    with pytest.raises(ValueError, match="layer0"):
        predictor.predict([CELLS.largest])
    with pytest.raises(ValueError, match=r"codes have shape \[n, 46\] in this space, not \[1500, 12\]"):
        predictor.predict(CELL_CODES)
    with pytest.raises(ValueError, match="code 6 of choice 'layer0' is not among -1 to 5"):
        sources[0].predict(np.full((1, 12), 6))
    with pytest.raises(ValueError, match="codes are integers, not float64"):
        sources[0].predict(np.zeros((1, 12)))
    with pytest.raises(ValueError, match="a source is a predictor for the same space"):
        LatencyPredictor.fit(SPACE, ARCHS[:10], TRUE[:10], sources)


def damaged(text, how):
    if how == "truncated":
        return text[: len(text) // 2]
    content = json.loads(text)
    if how == "edited":
        content["latency_ms"][0] *= 2
    elif how == "another version":
        content["version"] = 99
    elif how == "another file":
        content = [1, 2]
    return json.dumps(content)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("truncated", "no latency predictor, or damaged"),
        ("another file", "no latency predictor, or damaged"),
        ("edited", "edited or damaged after it was saved"),
        ("another version", "is a latency predictor of format 99, and this version of the package reads 1 to 3"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path, how, message):
    LatencyPredictor.fit(SPACE, ARCHS[:10], TRUE[:10]).save(tmp_path)
    path = tmp_path / FILE
    path.write_text(damaged(path.read_text(), how))
    with pytest.raises(ValueError, match=message):
        LatencyPredictor.load(tmp_path)


def test_a_folder_without_a_predictor_is_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match=r"devices is no folder of a latency predictor: it has no predictor\.json"):
        LatencyPredictor.load(tmp_path / "devices")


def test_a_file_of_another_space_is_refused(tmp_path, sources):
    sources[0].save(tmp_path)
    with pytest.raises(ValueError, match="is for another search space"):
        LatencyPredictor.load(tmp_path, SPACE)


def test_a_file_of_version_1_predicts_as_it_did(tmp_path):
    """Version 1 had one method and no held-out predictions."""
    predictor = LatencyPredictor.fit(SPACE, ARCHS[:12], noisy(TRUE[:12], 0.02), [MACS], Device("phone", "torch"))
    predictor.save(tmp_path)
    content = json.loads((tmp_path / FILE).read_text())
    for name in ("sha256", "held_out_ms", "held_out_error_ms", "quantity", "fitted_ms"):
        del content[name]
    method = content.pop("methods")[0]
    del method["weight"]
    content |= {"version": 1, **method}
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    (tmp_path / FILE).write_text(json.dumps({"sha256": digest, **content}))
    loaded = LatencyPredictor.load(tmp_path, SPACE)
    assert loaded.device.name == "phone"
    measured = Measured(
        embedding(SPACE), embedding(SPACE).indicators(loaded.codes), loaded.latency_ms, np.arange(len(loaded.codes))
    )
    alone = condition(measured, predictor.mixture.regressors[0])
    mean, _ = alone.predict(embedding(SPACE).indicators(SPACE.encode(ARCHS), np.float32))
    expected = np.exp(mean) if predictor.mixture.regressors[0].logarithmic else mean
    np.testing.assert_allclose(loaded.cost(ARCHS), expected, rtol=1e-5)
    assert 0 < loaded.error_percent < 50


@pytest.mark.parametrize("space", [SPACE, SearchSpace({"depth": (1, 2, 3), "width": (8, 16, 32)})])
def test_the_smallest_and_the_largest_are_suggested(space):
    suggested = suggest(space, 3)
    assert {space.smallest, space.largest} < set(suggested)
    assert len(suggest(space, 1)) == 1
    others = [arch for arch in suggest(space, 5) if arch not in (space.smallest, space.largest)]
    assert set(suggest(space, 2, candidates=others)) <= set(others)


def test_outliers_are_pulled_in_and_what_is_loaded_knows_it(tmp_path):
    """One in twenty measurements takes twice as long, as on a phone that is too hot."""
    measured = noisy(TRUE[:300], 0.02)
    hot = measured.copy()
    hot[::20] *= 2
    true = TRUE[300:]
    clean, robust = (LatencyPredictor.fit(SPACE, ARCHS[:300], latency) for latency in (measured, hot))
    error, robust_error = (np.abs(each.cost(ARCHS[300:]) / true - 1).mean() for each in (clean, robust))
    assert robust_error < 1.25 * error
    robust.save(tmp_path)
    loaded = LatencyPredictor.load(tmp_path)
    np.testing.assert_allclose(loaded.cost(ARCHS), robust.cost(ARCHS), rtol=1e-6)
    np.testing.assert_array_equal(loaded.latency_ms, robust.latency_ms)
    assert sorted(robust.latency_ms) == sorted(hot)  # what was measured is kept
