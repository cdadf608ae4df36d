import dataclasses
import json
import math
import shutil
from xml.etree import ElementTree

import numpy as np
import pytest
from scipy.stats import norm
from torch import nn

from compress.advice import Advice
from compress.diagnosis import diagnose
from compress.diagnosis_record import record, write_record
from compress.roofline import Roofline
from predictors import Device, LatencyPredictor
from search.certainty import wilson
from search.comparison import handed_in, standings, with_values, write_comparison
from search.comparison.yardsticks import Yardstick
from search.history import Evaluation, read_history, write_history
from search.report.content import make_content
from search.report.figures import write_figures
from search.report.sources import read_sources, write_origin
from search.report.taken_out import FILE, note_taken_out, read_taken_out
from search.sweep import Sweep, Trial, write_sweep
from supernet.space import Arch, SearchSpace

SPACE = SearchSpace({"width": (8, 16, 24), "depth": (1, 2, 3), "kernel_size": (3, 5)})
SMALL, MIDDLE, LARGE, SLOW = (
    Arch({"width": width, "depth": depth, "kernel_size": kernel})
    for width, depth, kernel in ((8, 1, 3), (16, 1, 3), (24, 3, 3), (16, 1, 5))
)
SETTINGS = {"space": SPACE.fingerprint, "strategy": "evolution", "images": 100, "scores": ["accuracy"], "limits": {}}


def evaluation(arch, accuracy, macs, generation=0, name="accuracy"):
    scores = {} if accuracy is None else {name: accuracy}
    return Evaluation(arch, scores, {"macs": macs}, generation, "failed" if accuracy is None else None)


EVALUATIONS = [
    evaluation(LARGE, None, 400.0),
    evaluation(SMALL, 0.5, 100.0),
    evaluation(SLOW, 0.5, 200.0),
    evaluation(LARGE, 0.9, 400.0, 1),
    evaluation(MIDDLE, 0.8, 200.0, 1),
]


def predictor():
    archs = SPACE.decode(np.array([[w, d, k] for w in range(3) for d in range(3) for k in range(2)]))
    latency = [0.01 * arch["width"] * arch["depth"] * arch["kernel_size"] for arch in archs]
    return LatencyPredictor.fit(SPACE, archs, latency, device=Device("phone", "elsewhere"))


@pytest.fixture
def folder(tmp_path):
    """A search in `search`, of the training run in `run`, with a predictor of the device `phone` in `phone`."""
    write_history(tmp_path / "search" / "search.jsonl", SETTINGS, EVALUATIONS)
    predictor().save(tmp_path / "phone")
    (tmp_path / "phone" / "measurements.csv").write_text(
        f"arch,latency_ms\n{json_cell(SMALL)},0.3\n{json_cell(MIDDLE)},0.4\n"
    )
    (tmp_path / "run").mkdir()
    config = {"job": {"train": {"method": "sandwich"}}, "classes": ["a"], "images": {"holdout": 50}}
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    (tmp_path / "run" / "metrics.jsonl").write_text(
        '{"step": 1, "losses": [3.0, 2.0, 1.0]}\n{"step": 1, "accuracy": {"largest": 0.5, "random_0": 0.25}}\n{"st'
    )
    write_origin(tmp_path / "search", tmp_path / "run", [tmp_path / "phone"])
    return tmp_path


def json_cell(arch):
    return '"' + arch.to_json().replace('"', '""') + '"'


def arch_of(content, index):
    codes = content["candidates"]["codes"][index]
    return {name: values[code] for (name, values), code in zip(content["choices"].items(), codes) if code >= 0}


def test_what_is_shown_of_a_search(folder):
    content = make_content(read_sources([folder / "search"]))
    assert [axis["name"] for axis in content["axes"]] == ["phone", "macs"]
    candidates = content["candidates"]
    lines = dict(zip(candidates["line"], range(4)))
    assert sorted(lines) == [2, 3, 4, 5]  # the first failed
    evaluations = read_history(folder / "search" / "search.jsonl")[1]
    assert all(arch_of(content, index) == evaluations[line - 1].arch for line, index in lines.items())
    assert content["fronts"][1] == [lines[2], lines[5], lines[4]]  # 100, 200 and 400 MACs; SLOW is beaten by MIDDLE
    assert candidates["measured"][0] == {lines[2]: 0.3, lines[5]: 0.4}
    np.testing.assert_allclose(
        candidates["costs"][0],
        predictor().predict([evaluations[line - 1].arch for line in candidates["line"]]).latency_ms,
        rtol=1e-4,
    )
    assert candidates["interval"][lines[2]] == pytest.approx(wilson(0.5, 50), abs=1e-5)  # 100 asked for, 50 there are
    (search,) = content["searches"]
    # the dearest is 400 MACs: first 0.5 from 1/4 on, then 0.5 in 1/4 to 1/2 and 0.8 in 1/2 to 1
    assert search["generations"] == [(3, pytest.approx(0.375)), (5, pytest.approx(0.525))]
    assert search["failed"] == 1
    assert search["command"][0].endswith(f"--history {folder}/search/search.jsonl --line ")
    shares = {row["choice"]: row for row in content["frequencies"][1]}
    assert shares["width"]["front"] == pytest.approx([1 / 3] * 3, abs=1e-4)
    assert shares["width"]["population"] == [0.25, 0.5, 0.25]
    assert shares["kernel_size"]["difference"] == 0.25
    (training,) = content["trainings"]
    assert training["metrics"] == {"accuracy": {"largest": [(1, 0.5)], "random 0": [(1, 0.25)]}}
    assert training["losses"] == {"largest": [(1, 3.0)], "random 1": [(1, 2.0)], "smallest": [(1, 1.0)]}
    (device,) = content["devices"]
    left_out = dict(zip(predictor().space.decode(predictor().codes), predictor().held_out_ms))
    assert device["points"][0] == (0.3, pytest.approx(left_out[SMALL], rel=1e-4), None, True)
    assert device["noise_percent"] is None


def test_a_latency_limit_that_the_front_may_break_is_said(folder):
    limited = SETTINGS | {"limits": {"phone": 0.35, "macs": 400.0}}
    write_history(folder / "search" / "search.jsonl", limited, EVALUATIONS)
    content = make_content(read_sources([folder / "search"]))
    predicted = predictor().predict([SMALL, MIDDLE, LARGE])
    expected = dict(zip([SMALL, MIDDLE, LARGE], norm.cdf((0.35 - predicted.latency_ms) / predicted.standard_error_ms)))
    found = {Arch(arch_of(content, i)): value for i, value in enumerate(content["candidates"]["within"][0])}
    for arch in (SMALL, MIDDLE, LARGE):
        assert found[arch] == pytest.approx(expected[arch], abs=1e-4)
    assert content["candidates"]["within"][1] is None  # a limit on MACs is kept exactly
    unsure, slower = content["notes"]
    assert unsure.startswith("2 of the front's 3 architectures are predicted within 0.35 ms on phone by less than 1.64")
    assert slower == "1 of the front's 2 measured architectures is slower than the limit of 0.35 ms on phone: 0.4 ms"
    assert make_content(read_sources([folder / "search"]))["notes"] == content["notes"]


def test_without_a_latency_limit_there_is_nothing_to_note(folder):
    content = make_content(read_sources([folder / "search"]))
    assert content["notes"] == []
    assert content["candidates"]["within"] == [None, None]


def test_the_noise_floor_is_that_of_two_measurements(folder):
    for index, latency in ((1, 1.0), (2, 1.1)):
        (folder / "phone" / f"noise_{index}.csv").write_text(f"arch,latency_ms\n{json_cell(SMALL)},{latency}\n")
    (device,) = make_content(read_sources([folder / "search"]))["devices"]
    assert device["noise_percent"] == pytest.approx(100 * 0.1 / 1.05, rel=1e-4)


def test_folders_may_be_moved_together(folder, tmp_path_factory):
    there = tmp_path_factory.mktemp("elsewhere") / "moved"
    shutil.move(folder, there)
    content = make_content(read_sources([there / "search"]))
    assert [axis["name"] for axis in content["axes"]] == ["phone", "macs"]
    assert content["trainings"]
    shutil.rmtree(there / "run")
    shutil.rmtree(there / "phone")
    content = make_content(read_sources([there / "search"]))
    assert [axis["name"] for axis in content["axes"]] == ["macs"]
    assert content["trainings"] == content["devices"] == []


def test_a_sweeps_strategies_stand_side_by_side(tmp_path):
    limits = {"limits": {"macs": 400.0}, "objectives": ["macs"]}
    results = [("evolution", 0, 0.9), ("evolution", 1, 0.7), ("random", 0, 0.6)]
    trials = [
        Trial(
            {"strategy": strategy, "device": "macs", "limit_ms": 400.0, "seed": seed},
            {},
            [evaluation(SMALL, best, 200.0), evaluation(LARGE, 0.1, 400.0)],
            None,
            {**SETTINGS, **limits},
        )
        for strategy, seed, best in results
    ]
    write_sweep(Sweep(trials, []), tmp_path, {"macs": "macs"}, "accuracy")
    content = make_content(read_sources([tmp_path]))
    assert content["groups"] == ["evolution", "random"]
    assert [search["group"] for search in content["searches"]] == [0, 0, 1]
    evolution, random = content["comparison"]
    assert evolution["task"] == "macs, macs ≤ 400"
    assert (evolution["best"], random["best"]) == ((0.8, pytest.approx(0.14142)), (0.6, None))
    assert evolution["hypervolume"][0] == pytest.approx((0.45 + 0.35) / 2)
    assert [len(front) for front in content["group_fronts"][0]] == [1, 1]
    assert read_history(tmp_path / "trials" / "0002.jsonl")[1] == trials[2].evaluations
    assert content["standings"] == []


def test_strategies_stand_by_what_a_sweep_judged_them(tmp_path):
    own = [evaluation(SMALL, -3.0, 200.0, name="dna"), evaluation(LARGE, -2.0, 400.0, name="dna")]
    settings = {"device": "macs", "limit_ms": math.inf, "seed": 0}
    trials = [
        Trial({"strategy": "dna", **settings}, {}, own, None, {**SETTINGS, "score": "dna", "scores": ["dna"]}, 3.0),
        Trial({"strategy": "random", **settings}, {}, [evaluation(SMALL, 0.6, 200.0)], None, SETTINGS, 2.0),
    ]
    found, values = [handed_in(trial, "macs", 1) for trial in trials], {LARGE: 0.8, SMALL: 0.6}
    sweep = with_values(Sweep(trials, []), found, Yardstick("accuracy", list, {}), values)
    write_sweep(sweep, tmp_path, {"macs": "macs"}, "accuracy")
    rows = standings(found, values, {"macs": {LARGE: 400.0, SMALL: 200.0}}, {})
    write_comparison(tmp_path, rows, "accuracy", found, values, {})
    content = make_content(read_sources([tmp_path]))
    assert content["groups"] == ["dna", "random"]
    assert content["left_out"] == []
    assert content["candidates"]["score"] == [0.8, 0.6]  # of dna, what was handed in
    assert [search["failed"] for search in content["searches"]] == [0, 0]
    first, second = content["standings"]
    assert (first["strategy"], first["judged_by"], first["limit_ms"], first["value"]) == ("dna", "accuracy", None, 0.8)
    assert (second["strategy"], second["regret"], second["told_apart"]) == ("random", 0.2, "no")
    assert (second["standard_error"], second["seconds"]) == (None, 2.0)


def test_what_a_sweep_measured_is_shown(folder):
    write_history(folder / "sweep" / "trials" / "0000.jsonl", SETTINGS, EVALUATIONS)
    write_origin(folder / "sweep", folder / "run", [folder / "phone"])
    (folder / "sweep" / "measured").mkdir()
    (folder / "sweep" / "measured" / "front_phone.csv").write_text(f"arch,latency_ms\n{json_cell(LARGE)},0.9\n")
    (folder / "sweep" / "front_phone.csv").write_text("accuracy,phone\n0.9,0.8\n")  # which is predicted
    candidates = make_content(read_sources([folder / "sweep"]))["candidates"]
    assert candidates["measured"][0][candidates["line"].index(4)] == 0.9


def test_searches_by_another_score_are_left_out(folder):
    other = [dataclasses.replace(e, scores={"synflow": -3.0}) for e in EVALUATIONS]
    write_history(folder / "other" / "search.jsonl", SETTINGS, other)
    content = make_content(read_sources([folder / "other", folder / "search"]))
    assert content["score"] == {"name": "accuracy", "percent": True}
    assert content["left_out"] == ["other"]
    alone = make_content(read_sources([folder / "other"]))
    assert alone["score"] == {"name": "synflow", "percent": False}
    assert alone["candidates"]["interval"] == [None] * 5


def test_bad_folders_are_named(folder, tmp_path):
    with pytest.raises(ValueError, match="holds no search and no sweep"):
        read_sources([folder / "phone"])
    write_history(tmp_path / "empty" / "search.jsonl", SETTINGS, EVALUATIONS[:1])
    with pytest.raises(ValueError, match="no architecture was evaluated successfully"):
        make_content(read_sources([tmp_path / "empty"]))
    (folder / "search" / "search.json").write_text("[]")
    with pytest.raises(ValueError, match=r"search\.json is damaged"):
        read_sources([folder / "search"])


def test_figures_are_written(folder, tmp_path):
    content = make_content(read_sources([folder / "search"]))
    paths = write_figures(content, tmp_path / "figures")
    names = {path.stem for path in paths}
    assert names == {"front_phone", "front_macs", "hypervolume", "predicted_phone", "accuracy_run", "losses_run"}
    for path in paths:
        if path.suffix == ".svg":
            ElementTree.parse(path)
        else:
            assert path.read_bytes().startswith(b"\x89PNG")


def test_a_diagnosis_beside_a_search_is_shown(tmp_path):
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))
    found = diagnose(model, (3, 16, 16), Roofline(1e9, {1: 4e9, 100: 2e9}), 8, {"stored_bytes": 100})
    advice = [Advice("int4", "smaller", ("flash",), 0.1, 50, 25)]
    write_record(tmp_path, record(found, advice, "tiny", "phone"))
    write_history(tmp_path / "search.jsonl", SETTINGS, EVALUATIONS)
    (shown,) = make_content(read_sources([tmp_path]))["diagnoses"]
    assert (shown["network"], shown["device"], shown["bottlenecks"]) == ("tiny", "phone", ["flash", "compute"])
    assert (shown["peak_gflops"], shown["bandwidth_gb"]) == (2.0, [4.0, 2.0])
    assert [point[0] for point in shown["points"]] == ["0", "4"]
    assert all(height <= 2.0 and height <= 4.0 * intensity for _, intensity, height, _ in shown["points"])
    assert shown["advice"][0]["stored_bytes"] == 25


def test_scores_that_are_no_numbers_are_left_out(tmp_path):
    odd = [evaluation(SMALL, math.nan, 50.0), *EVALUATIONS, evaluation(SLOW, math.nan, 10.0, 2)]
    write_history(tmp_path / "search.jsonl", SETTINGS, odd)
    content = make_content(read_sources([tmp_path]))
    assert None not in content["candidates"]["score"]
    assert [content["candidates"]["line"][index] for index in content["fronts"][0]] == [3, 6, 5]
    write_history(tmp_path / "search.jsonl", SETTINGS, [evaluation(SMALL, math.nan, 1.0)])
    with pytest.raises(ValueError, match="no architecture was evaluated successfully"):
        make_content(read_sources([tmp_path]))


def test_choices_are_in_the_order_of_the_space_whichever_architectures_have_them(tmp_path):
    archs = [
        {"stem": 8, "depth": 2, "1.kernel": 3, "head": 4},
        {"stem": 8, "side": 1, "head": 8},
        {"first": 1, "stem": 16},
    ]
    found = [Evaluation(Arch(arch), {"accuracy": 0.5}, {"macs": 1.0}, 0) for arch in archs]
    write_history(tmp_path / "search.jsonl", {}, found)
    names = list(make_content(read_sources([tmp_path]))["choices"])
    assert names == ["first", "stem", "side", "depth", "1.kernel", "head"]


def test_facts_say_how_it_was_found(folder):
    facts = {entry["name"]: dict(entry["pairs"]) for entry in make_content(read_sources([folder / "search"]))["facts"]}
    assert facts["search search"].items() >= {"found by": "evolution", "architectures evaluated": "5"}.items()
    assert facts["search search"]["judged by at most"] == "100 held-out images"
    assert "command" in facts["search search"]
    assert facts["training run"] == {"images held out": "50", "classes": "1", "method": "sandwich"}


def test_what_was_taken_out_has_its_score_on_test_images(folder):
    search = folder / "search"
    assert set(make_content(read_sources([search]))["candidates"]["tested"]) == {None}
    note_taken_out(search, MIDDLE, folder / "old", {"accuracy": 0.1}, 50)
    note_taken_out(search, MIDDLE, folder / "mine", {"accuracy": 0.75, "macs": 200.0}, 400)
    note_taken_out(search, SMALL, folder / "small", {"f1": 0.75}, 400)
    with (search / FILE).open("a") as file:
        file.write('{"arch": ')  # killed meanwhile
    content = make_content(read_sources([search]))
    tested = {content["candidates"]["line"][i]: own for i, own in enumerate(content["candidates"]["tested"]) if own}
    assert tested == {5: {"score": 0.75, "interval": pytest.approx(wilson(0.75, 400), abs=1e-5), "folder": "../mine"}}
    (search / FILE).write_text('{"arch": {"width": []}, "folder": "a", "facts": {}, "test_examples": 1}\n')
    with pytest.raises(ValueError, match=r"taken_out\.jsonl, line 1, is damaged"):
        read_taken_out(search)
