"""Requests that contradict themselves, and what a plan makes of the others."""

import pytest

from service.archive import ImageFacts
from service.plan import Plan, make_plan, search_limits
from service.request import JobRequest

FACTS = ImageFacts(("a", "b"), train=480, val=120, least_of_a_class=240, side=8)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([], "a JSON object"),
        ({}, "budget of time"),
        ({"minutes": "5"}, "minutes is a number"),
        ({"minutes": True}, "minutes is a number"),
        ({"minutes": float("nan")}, "minutes is a number"),
        ({"minutes": 0}, "from 0.1"),
        ({"minutes": 1, "epochs": 1.5}, "a whole number"),
        ({"minutes": 1, "device": "--help me"}, "a device is here"),
        ({"minutes": 1, "device": "own:../../x"}, "a device is here"),
        ({"minutes": 1, "device": 3}, "device is a text"),
        ({"minutes": 1, "model": "hf-hub:somebody/model"}, "name of timm's"),
        ({"minutes": 1, "model": "local-dir:/etc"}, "name of timm's"),
        ({"minutes": 1, "model": "--resume"}, "name of timm's"),
        ({"minutes": 1, "model": "mine.py:family"}, "name of timm's"),
        ({"minutes": 1, "weights": "published"}, "belong to a model"),
        ({"minutes": 1, "precision": "int4"}, "fp32 or int8"),
        ({"minutes": 1, "limits": []}, "an object"),
        ({"minutes": 1, "limits": {"macs": 5}}, "no limit 'macs'"),
        ({"minutes": 1, "limits": {"latency_ms": 0}}, "only a positive one"),
        ({"minutes": 1, "limits": {"latency_ms": -1}}, "a number from 0"),
        ({"minutes": 1, "limits": {"latency_ms": "1"}}, "a number from 0"),
        ({"minutes": 1, "flip": 1}, "flip is true or false"),
        ({"minutes": 1, "name": "a\nb"}, "printable"),
        ({"minutes": 1, "program": ["sh"]}, "no field 'program'"),
    ],
)
def test_what_is_no_request_says_so(values, said):
    with pytest.raises(ValueError, match=said) as found:
        JobRequest.from_json(values)
    assert "\n" not in str(found.value)


def test_a_plan_outlives_the_process(tmp_path):
    request = JobRequest(3.5, "own:my-phone", {"latency_ms": 2, "stored_bytes": 5}, "int8", name="é", flip=True)
    plan = make_plan(request, FACTS)
    plan.save(tmp_path)
    assert Plan.load(tmp_path) == plan
    assert search_limits(plan) == {"my-phone": 2.0, "stored_bytes.int8": 5.0}
    assert (plan.space, plan.recipe, plan.batch_size) == ("mobilenet_v3_micro", "cifar10", 16)
    assert 16 * plan.batch_size <= FACTS.train < 16 * 2 * plan.batch_size


def test_photographs_and_models_have_spaces_of_their_own():
    photographs = ImageFacts(("a", "b"), 100_000, 1000, 50_000, 300)
    plan = make_plan(JobRequest(60), photographs)
    assert (plan.space, plan.batch_size) == ("ofa_mobilenet_v3", 256)
    plan = make_plan(JobRequest(60, model="resnet18", weights="published", input_size=64), photographs)
    assert plan.space_options == {"name": "resnet18", "pretrained": True, "input_size": 64}


@pytest.mark.parametrize(
    ("weights", "least", "would_do"),
    [("none", 49, "50 of each"), ("published", 9, "10 of each"), ("uploaded", 1, "2 of")],
)
def test_too_few_images_are_refused_with_the_number_that_would_do(weights, least, would_do):
    request = JobRequest(5, model="resnet18", weights=weights)
    few = ImageFacts(("a", "b"), 2 * least, 100, least, 64)
    with pytest.raises(ValueError, match=f"{least} images to train on.*{would_do}"):
        make_plan(request, few)
    with pytest.raises(ValueError, match=r"99 images to test on.* 100 in val/ would do"):
        make_plan(request, ImageFacts(("a", "b"), 1000, 99, 500, 64))


def test_few_images_refit_weights_that_know_the_classes():
    few = ImageFacts(("a", "b"), 10, 100, 5, 64)
    assert make_plan(JobRequest(5, model="resnet18", weights="uploaded"), few).is_refitted
    enough = ImageFacts(("a", "b"), 20, 100, 10, 64)
    assert not make_plan(JobRequest(5, model="resnet18", weights="uploaded"), enough).is_refitted
