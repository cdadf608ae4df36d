"""Whole searches: where they run."""

import dataclasses
import json
from functools import partial

import numpy as np
import pytest
import torch

from search.history import read_history
from search.racing import Racing
from search.run import run_search
from search.scores.accuracy import SupernetScore
from search.scores.judges import settled, untrained_run
from search.settings import RACE, SearchJob
from supernet.evaluation import calibrated_subnet
from supernet.tasks import Task
from supernet.training.data import DataConfig

JOB = SearchJob("random", evaluations=3, population=2, images=20, calibration_images=20)


@pytest.fixture(scope="module")
def trained():
    return untrained_run("mobilenet_v3_micro", "{}", DataConfig())


def test_a_search_begun_on_one_device_goes_on_on_another(trained, elsewhere, tmp_path):
    path = tmp_path / "search.jsonl"
    whole = run_search(JOB, trained, {}, device="cpu").result.evaluations
    for count, device in ((2, "cpu"), (3, elsewhere)):
        job = SearchJob(**{**vars(JOB), "evaluations": count})
        run_search(job, trained, {}, path, resume=True, device=device)
    assert read_history(path)[1] == whole
    assert next(trained.net.parameters()).device.type == "cpu"


def test_a_search_whose_machine_is_lost_goes_on_from_its_storage(trained, tmp_path):
    storage = str(tmp_path / "storage")
    first = dataclasses.replace(JOB, evaluations=2)
    begun = run_search(first, trained, {}, tmp_path / "lost" / "search.jsonl", storage=storage).result.evaluations
    evaluated = []
    whole = run_search(
        JOB,
        trained,
        {},
        tmp_path / "new" / "search.jsonl",
        storage=storage,
        resume=True,
        on_evaluation=lambda evaluation, count: evaluated.append(evaluation),
    ).result.evaluations
    assert (whole[:2], whole[2:]) == (begun, evaluated)
    assert read_history(tmp_path / "new" / "search.jsonl")[1] == whole


def rights(trained, arch, first, count):
    """Whether the subnet is right about each of `count` held-out images from `first` on."""
    resolution, seed = trained.family.resolution(arch), trained.job.train.seed
    calibration = trained.data.calibration_images(resolution, 20, seed)
    images, labels = trained.data.images(trained.data.holdout, resolution)
    model = calibrated_subnet(trained.net, arch, resolution, calibration)
    with torch.no_grad():
        return (model(images[first : first + count]).argmax(1) == labels[first : first + count]).numpy()


def test_the_front_is_judged_image_by_image_and_confirmed_by_the_next_images(trained):
    outcome = run_search(JOB, trained, {}, judge_front=True, confirm=True)
    front = {evaluation.arch: evaluation for evaluation in outcome.result.front}
    assert set(outcome.judged) == set(outcome.confirmed) == set(front)
    for arch, evaluation in front.items():
        judged, fresh = outcome.judged[arch], outcome.confirmed[arch]
        assert judged.score == evaluation.scores["accuracy"]
        np.testing.assert_array_equal(judged.per_example, rights(trained, arch, 0, 20))
        np.testing.assert_array_equal(fresh.per_example, rights(trained, arch, 20, 20))
        assert fresh.score == np.float32(fresh.per_example.mean())
    assert not run_search(JOB, trained, {}).judged


def test_a_front_is_confirmed_by_what_is_left_of_the_held_out_images(trained):
    held_out = trained.data.count(trained.data.holdout)
    assert held_out == 144
    outcome = run_search(dataclasses.replace(JOB, images=140), trained, {}, confirm=True)
    assert {len(judged.per_example) for judged in outcome.confirmed.values()} == {4}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"images": None},
            r"all 144 held-out examples judge the search, .* judge by fewer of them \(--images 96\), or hold out more",
        ),
        ({"images": 144}, "all 144 held-out examples judge the search"),
        ({"score": "zero_cost"}, "the score zero_cost is not that of held-out examples, which others could confirm"),
    ],
)
def test_without_fresh_images_nothing_is_confirmed_and_nothing_written(trained, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        run_search(dataclasses.replace(JOB, **changes), trained, {}, tmp_path / "search.jsonl", confirm=True)
    assert not list(tmp_path.iterdir())


def test_a_front_that_cannot_be_judged_again_is_not(trained, monkeypatch, caplog):
    def fail(score, archs, examples):
        yield from ((index, RuntimeError("no room")) for index in range(len(archs)))

    monkeypatch.setattr(SupernetScore, "judged", fail)
    outcome = run_search(JOB, trained, {}, judge_front=True)
    assert not outcome.judged
    assert "judging it again failed: accuracy: RuntimeError: no room" in caplog.text


def test_races_find_the_front_of_all_images_here_and_when_resumed(trained, monkeypatch, tmp_path):
    monkeypatch.setattr("search.run.Racing", partial(Racing, first_look=10))
    job = dataclasses.replace(JOB, evaluations=12, population=4, images=40)
    exact = run_search(job, trained, {}).result
    job = dataclasses.replace(job, race=0.05)  # which rejects whatever looks worse
    found = run_search(job, trained, {}, tmp_path / "a.jsonl").result
    judged = [evaluation for evaluation in found.evaluations if evaluation.scores]
    assert 0 < len(judged) < 12
    scores = {evaluation.arch: evaluation.scores for evaluation in exact.evaluations}
    assert all(evaluation.scores == scores[evaluation.arch] for evaluation in judged)
    assert {e.rejected.examples for e in found.evaluations if e.rejected} <= {10, 20}
    for count in (8, 12):
        job = dataclasses.replace(job, evaluations=count)
        resumed = run_search(job, trained, {}, tmp_path / "b.jsonl", resume=True).result
    assert resumed.evaluations == found.evaluations == read_history(tmp_path / "a.jsonl")[1]
    monkeypatch.setattr(SupernetScore, "judged", None)  # nothing is judged twice, the last race and the front included
    assert run_search(job, trained, {}, tmp_path / "b.jsonl", resume=True).result.evaluations == found.evaluations


def test_a_search_races_by_itself_where_many_examples_have_values_of_their_own(trained, monkeypatch, tmp_path):
    def race(**changes):
        return settled(dataclasses.replace(JOB, **{"images": 144} | changes), trained).race

    assert race() is None  # 144 are few
    monkeypatch.setattr("search.scores.judges.RACE_FROM", 100)
    assert race() == RACE
    assert race(race=0.5) == 0.5
    assert race(race=None) is race(images=99) is race(score="zero_cost") is None
    run_search(dataclasses.replace(JOB, images=144), trained, {}, tmp_path / "search.jsonl")
    assert read_history(tmp_path / "search.jsonl")[0]["race"] == RACE
    monkeypatch.setattr(type(trained.family.task), "per_example", Task.per_example)  # as of a metric that is no mean
    assert race() is None


def test_a_race_is_a_confidence_or_left_open():
    with pytest.raises(ValueError, match=r"race is auto, None, or a confidence such as 0\.9, not 'always'"):
        SearchJob(race="always")
    with pytest.raises(ValueError, match=r"the confidence of a race is between 0 and 1, such as 0\.9, not 1\.5"):
        SearchJob(race=1.5)


def test_what_has_no_examples_cannot_race(trained):
    with pytest.raises(ValueError, match="the score zero_cost is not that of held-out examples, by some of which"):
        run_search(dataclasses.replace(JOB, score="zero_cost", race=0.9), trained, {})


def test_what_fails_brings_the_supernet_back_too(trained, elsewhere):
    def fail(evaluation, count):
        assert next(trained.net.parameters()).device.type == elsewhere
        raise KeyError

    with pytest.raises(KeyError):
        run_search(JOB, trained, {}, device=elsewhere, on_evaluation=fail)
    assert next(trained.net.parameters()).device.type == "cpu"


def test_a_history_that_has_devices_of_its_own_goes_on(trained, tmp_path):
    """As those of former versions, where the scores by a teacher had theirs."""
    path = tmp_path / "search.jsonl"
    begun = run_search(JOB, trained, {}, path).result.evaluations
    settings, *evaluations = path.read_text().splitlines()
    settings = json.loads(settings)
    for name in ("dna", "rdm"):
        settings[name]["device"] = "cuda:1"
    path.write_text("\n".join([json.dumps(settings), *evaluations[:2]]) + "\n")
    assert run_search(JOB, trained, {}, path, resume=True).result.evaluations == begun


def test_memory_that_is_too_small_ends_the_search_and_is_no_failed_evaluation(trained, tmp_path, monkeypatch):
    def outputs(net, archs, *_, **options):
        yield 0, torch.zeros(20, 10)
        yield 1, torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")

    monkeypatch.setattr("search.prefix.trie.outputs", outputs)
    with pytest.raises(torch.OutOfMemoryError, match="2 GiB"):
        run_search(JOB, trained, {}, tmp_path / "search.jsonl")
    (evaluation,) = read_history(tmp_path / "search.jsonl")[1]
    assert not evaluation.error


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ({"device": "tpu"}, "device is cpu, cuda, cuda:N or auto, not 'tpu'"),
        ({"gpus_per_worker": 0.5}, "there are 0.5 GPUs for each worker, but no workers: say how many"),
        ({"workers": 2, "gpus_per_worker": 2.0}, "a worker has a GPU or a part of one, from 0 to 1, not 2.0"),
        ({"workers": 2, "gpus_per_worker": 0.5, "device": "cpu"}, "device 'cpu': Ray workers run on the part of a GPU"),
    ],
)
def test_a_place_that_cannot_be_is_refused_before_anything_is_written(trained, tmp_path, where, message):
    with pytest.raises(ValueError, match=message):
        run_search(JOB, trained, {}, tmp_path / "search.jsonl", **where)
    assert not list(tmp_path.iterdir())
