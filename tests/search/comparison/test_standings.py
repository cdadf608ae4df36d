"""What searches hand in, and how strategies stand, worked by hand."""

import csv
import math

import pytest

from search.comparison import Yardstick, handed_in, standings, with_values, write_comparison
from search.history import Evaluation
from search.sweep import Sweep, Trial
from supernet import Arch

A, B, C, D = (Arch({"a": index}) for index in range(4))
LATENCY_MS = {"phone": {A: 1.0, B: 2.0, C: 3.0, D: 2.5}}
VALUES = {A: 0.5, B: 0.7, C: 0.9, D: 0.8}
ACCURACY = Yardstick("accuracy", lambda archs: [VALUES[arch] for arch in archs], {"yardstick": "test", "images": 5})


def evaluation(arch, score, error=None):
    return Evaluation(arch, {} if error else {"own": score}, {"phone": LATENCY_MS["phone"][arch]}, 0, error)


def trial(strategy, seed, *evaluations, limit_ms=2.5, seconds=10.0):
    settings = {"strategy": strategy, "device": "phone", "limit_ms": limit_ms, "seed": seed}
    return Trial(settings, {}, list(evaluations), None, {}, seconds)


def test_the_best_of_the_front_by_the_searchs_own_score_are_handed_in():
    found = [evaluation(A, 1.0), evaluation(B, 3.0), evaluation(D, 3.0), evaluation(C, 9.0), evaluation(C, 0, "died")]
    assert [e.arch for e in handed_in(trial("dna", 0, *found), "phone", 5).front] == [C, B, A]  # B dominates D
    assert [e.arch for e in handed_in(trial("dna", 0, *found), "phone", 2).front] == [C, B]
    assert handed_in(trial("dna", 0, found[-1]), "phone", 5).front == []


def stand(*trials, values=VALUES, **measured):
    found = [handed_in(trial, "phone", 5) for trial in trials]
    return standings(found, values, LATENCY_MS, measured)


def test_strategies_stand_by_what_they_chose():
    first, second = stand(
        trial("random", 0, evaluation(A, 2.0)),
        trial("dna", 0, evaluation(A, 1.0), evaluation(B, 2.0), seconds=1.0),
        trial("random", 1, evaluation(B, 2.0), evaluation(A, 3.0), seconds=20.0),
        trial("dna", 1, evaluation(B, 1.0), seconds=3.0),
        phone={A: 1.5, B: 2.5},
    )
    assert (first["strategy"], first["seeds"], first["failed"], first["told_apart"]) == ("dna", 2, 0, "")
    assert (first["value"], first["standard_error"]) == (0.7, 0.0)
    assert first["regret"] == pytest.approx(0.1)  # D is known, whoever found it; C is beyond the limit
    assert (first["evaluations"], first["seconds"]) == (1.5, 2.0)
    assert (first["latency_ms"], first["measured_ms"]) == (2.0, 2.5)
    assert (second["strategy"], second["value"], second["told_apart"]) == ("random", 0.5, "no")
    assert (second["latency_ms"], second["measured_ms"], second["seconds"]) == (1.0, 1.5, 15.0)


def test_differences_below_two_standard_errors_are_not_told_apart():
    errors = [trial("macs", 0, evaluation(A, 1.0)), trial("macs", 1, evaluation(B, 1.0))]
    first, second = stand(trial("dna", 0, evaluation(B, 1.0)), trial("dna", 1, evaluation(B, 1.0)), *errors)
    assert second["value"] == pytest.approx(0.6)
    assert second["standard_error"] == pytest.approx(0.1)  # the deviation of 0.5 and 0.7 is 0.1 sqrt(2)
    assert (first["strategy"], second["told_apart"]) == ("dna", "no")  # 0.1 is not beyond 0.2
    first, second = stand(trial("dna", 0, evaluation(B, 1.0)), trial("macs", 0, evaluation(A, 1.0)))
    assert math.isnan(second["standard_error"])
    assert second["told_apart"] == "no"
    values = {A: 0.1, B: 0.7, C: 0.72}
    sure = [trial("dna", seed, evaluation(B if seed else C, 1.0), limit_ms=3.0) for seed in range(3)]
    alike = [trial("macs", seed, evaluation(A, 1.0), limit_ms=3.0) for seed in range(3)]
    first, second = stand(*sure, *alike, values=values)
    assert (second["standard_error"], second["told_apart"]) == (0.0, "yes")  # which the first's error is known for
    first, second = stand(*[t._replace(evaluations=[evaluation(B, 1.0)]) for t in sure], *alike, values=values)
    assert (first["standard_error"], second["told_apart"]) == (0.0, "no")  # of neither is an error known


def test_limits_are_apart_and_failures_in_no_mean():
    rows = stand(
        trial("dna", 0, evaluation(B, 1.0)),
        trial("dna", 1),
        trial("rdm", 0, evaluation(A, 1.0, "died")),
        trial("dna", 0, evaluation(C, 1.0), limit_ms=math.inf),
    )
    assert [(row["limit_ms"], row["strategy"], row["seeds"], row["failed"]) for row in rows] == [
        *((2.5, "dna", 2, 1), (2.5, "rdm", 1, 1), (math.inf, "dna", 1, 0)),
    ]
    assert [row["value"] for row in rows[::2]] == [0.7, 0.9]
    assert math.isnan(rows[1]["value"])
    (unjudged,) = stand(trial("dna", 0, evaluation(B, 1.0)), values={A: 0.5})
    assert (unjudged["failed"], math.isnan(unjudged["regret"])) == (1, True)


def test_values_of_a_search_by_fewer_images_are_not_mixed_with_what_was_judged():
    found = [Evaluation(arch, {"accuracy": score}, {"phone": ms}, 0) for arch, score, ms in ((A, 0.1, 1), (B, 0.3, 2))]
    entries = [
        handed_in(trial("evolution", images, *found)._replace(search={"images": images}), "phone", 1)
        for images in (4, 5)
    ]
    sweep = Sweep([entry.trial for entry in entries], [])
    assert ACCURACY.knowing(sweep.trials[:1]).known == {}
    assert ACCURACY.knowing(sweep.trials).known == {A: 0.1, B: 0.3}
    few, same = (t.evaluations for t in with_values(sweep, entries, ACCURACY, {B: 0.3}).trials)
    assert [e.scores for e in few] == [
        *({"accuracy of the search": 0.1}, {"accuracy of the search": 0.3, "accuracy": 0.3}),
    ]
    assert same == found


def test_what_was_judged_stands_beside_what_a_search_went_by(tmp_path):
    found = [handed_in(trial("dna", 0, evaluation(A, 1.0), evaluation(B, 2.0), evaluation(D, 0.0)), "phone", 2)]
    sweep = with_values(Sweep([found[0].trial], []), found, ACCURACY, {**VALUES, C: 0.1})
    assert [e.scores for e in sweep.trials[0].evaluations] == [
        *({"own": 1.0, "accuracy": 0.5}, {"own": 2.0, "accuracy": 0.7}, {"own": 0.0}),
    ]
    rows = standings(found, VALUES, LATENCY_MS, {})
    write_comparison(tmp_path, rows, "accuracy", found, VALUES, {"phone": {B: 2.1}})
    with (tmp_path / "strategies.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert (row["judged_by"], row["strategy"], row["value"], row["standard_error"]) == ("accuracy", "dna", "0.7", "")
    with (tmp_path / "handed_in.csv").open() as file:
        choice, other = csv.DictReader(file)
    assert (choice["place"], choice["score"], choice["accuracy"], choice["measured_ms"]) == ("0", "2.0", "0.7", "2.1")
    assert (other["place"], other["arch"], other["measured_ms"]) == ("1", A.to_json(), "")
