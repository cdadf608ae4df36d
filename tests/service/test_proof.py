"""What a proof says, by hand-worked numbers."""

import json

import pytest

from service.archive import ImageFacts
from service.plan import make_plan
from service.progress import Progress, StageRecord
from service.proof import difference, proof, standard_error
from service.request import JobRequest

FACTS = ImageFacts(("a", "b"), train=480, val=100, least_of_a_class=240, side=8)


LARGEST = {"network": "baseline/largest", "p_value": 0.02, "standard_error": 0.03}


def told(points, error, size, milliseconds):
    return {"points": points, "standard_error": error, "bytes": size, "milliseconds": milliseconds}


@pytest.fixture
def job(tmp_path):
    """A finished job's folder, of a request with these limits and more."""

    def write(precision="fp32", device="here", **limits):
        make_plan(JobRequest(5, device, limits, precision), FACTS).save(tmp_path)
        stages = [StageRecord("search", "done", 60, 3600), StageRecord("baseline-int8", "done", 60, 1800)]
        Progress("done", stages=stages).save(tmp_path)
        rows = [
            {"network": "subnet", "top1": 0.8, "stored_bytes": 4100, "latency_ms": 0.5},
            {"network": "baseline/largest", "top1": 0.9, "stored_bytes": 9000, "latency_ms": 1.0},
        ]
        files = {
            "evaluation.json": {"rows": rows, "paired": [LARGEST]},
            "subnet/config.json": {"arch": {"width": 8}, "input_size": [3, 224, 224], "facts": {"macs": 6e7}},
            "int8/quantisation.json": {"on_test_images": {"int8": told(2.0, 1.0, 1000, 0.25)}},
            "baseline/largest-int8/quantisation.json": {"on_test_images": {"int8": told(1.0, 0.5, 2500, 0.5)}},
        }
        for name, content in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(json.dumps(content))
        header = 'accuracy,stored_bytes,phone,"phone, standard error",arch'
        lines = [header, '0.9,9000,9,1,"{""width"": 16}"', '0.8,4000,0.55,0.1,"{""width"": 8}"']
        (tmp_path / "searched").mkdir()
        (tmp_path / "searched" / "front.csv").write_text("\n".join(lines) + "\n")
        return tmp_path

    return write


def test_a_standard_error_is_that_of_a_share():
    assert standard_error(0.8, 100) == pytest.approx(0.04)


def test_a_difference_has_the_error_of_what_leads_from_one_network_to_the_other():
    own = {"accuracy": 0.8, "paired": {}}
    own8 = {"accuracy": 0.79, "paired": {"int8": 0.01}}
    largest = {"accuracy": 0.9, "paired": {"largest": 0.03}}
    largest8 = {"accuracy": 0.88, "paired": {"largest": 0.03, "largest-int8": 0.005}}
    assert difference(largest, own) == pytest.approx((10, 3))
    assert difference(largest8, largest) == pytest.approx((-2, 0.5))
    assert difference(largest8, own8) == pytest.approx((9, 4.5))


def test_networks_and_limits(job):
    found = proof(job(latency_ms=0.5, stored_bytes=4000, accuracy_drop=15))
    own, largest, int8, largest_int8 = found["networks"]
    assert (own["accuracy"], own["standard_error"]) == (0.8, pytest.approx(0.04))
    assert (largest["folder"], int8["folder"], largest_int8["folder"]) == (
        "baseline/largest",
        "int8",
        "baseline/largest-int8",
    )
    assert largest_int8["accuracy"] == pytest.approx(0.89)
    limits = {limit["name"]: limit for limit in found["limits"]}
    assert (limits["latency_ms"]["value"], limits["latency_ms"]["kept"]) == (0.5, True)
    assert (limits["stored_bytes"]["value"], limits["stored_bytes"]["kept"]) == (4000, True)
    drop = limits["accuracy_drop"]
    assert (drop["value"], drop["standard_error"]) == pytest.approx((10, 3))
    assert drop["kept"] is None  # 10 points, give or take twice 3, are not surely below 15


@pytest.mark.parametrize(("limit", "kept"), [(0.8, True), (0.6, None), (0.3, False)])
def test_what_is_predicted_is_kept_by_two_standard_errors(job, limit, kept):
    (found,) = proof(job(device="own:phone", latency_ms=limit))["limits"]
    assert (found["value"], found["standard_error"], found["kept"]) == (0.55, 0.1, kept)
    assert found["known_by"] == "predicted for phone, not measured"


def test_the_answer_to_whether_it_is_worth_it(job):
    (said, cost) = proof(job())["answers"]["Is it worth it?"]
    assert said == (
        "Beside the largest network in int8 it is 9.0 points fewer right (standard error 3.5), with 1 times its "
        "milliseconds on this machine and 1.6 times its bytes."
    )
    assert cost == "Finding it cost 1 core-hours, training included, and the alternatives 0.5 more."


@pytest.mark.parametrize(
    ("p_value", "said"),
    [
        (0.3, "not distinguishable in accuracy (+10.0 points, McNemar's test: p = 0.3)"),
        (0.01, "10.0 points more right (McNemar's test: p = 0.01)"),
    ],
)
def test_networks_in_float_are_compared_image_by_image(job, p_value, said):
    folder = job()
    evaluation = json.loads((folder / "evaluation.json").read_text())
    evaluation["rows"].append(evaluation["rows"][0] | {"network": "baseline/smaller", "top1": 0.7})
    evaluation["paired"].append(LARGEST | {"network": "baseline/smaller", "p_value": p_value})
    (folder / "evaluation.json").write_text(json.dumps(evaluation))
    lines = proof(folder)["answers"]["Is it worth it?"]
    assert any(f"mobilenetv3_small_100, trained from scratch in fp32 it is {said}" in line for line in lines)


def test_in_int8_the_first_network_is_the_one_in_int8(job):
    found = proof(job("int8"))
    assert (found["networks"][0]["folder"], found["networks"][0]["accuracy"]) == ("int8", pytest.approx(0.78))


@pytest.mark.parametrize(("milliseconds", "is_slower"), [(0.25, False), (0.75, True)])
def test_int8_that_makes_a_network_slower_is_called_slower(job, milliseconds, is_slower):
    folder = job("int8")
    content = {"on_test_images": {"int8": told(2.0, 1.0, 1000, milliseconds)}}
    (folder / "int8/quantisation.json").write_text(json.dumps(content))
    said = [line for line in proof(folder)["answers"]["Is it worth it?"] if "int8 makes it slower" in line]
    assert len(said) == is_slower
    assert all("slower: 0.75 ms, and 0.5 ms in fp32." in line and "is in subnet/" in line for line in said)


def test_a_job_without_a_network_has_no_proof(tmp_path):
    with pytest.raises(ValueError, match="no proof yet"):
        proof(tmp_path)


@pytest.mark.parametrize("file", ["job.json", "progress.json", "evaluation.json", "subnet/config.json"])
@pytest.mark.parametrize("content", ["", "[]", '{"rows": 3}'])
def test_files_that_were_damaged_are_named(job, file, content):
    folder = job(stored_bytes=4000)
    (folder / file).write_text(content)
    with pytest.raises(ValueError, match=rf"{file} is no ") as found:
        proof(folder)
    assert "\n" not in str(found.value)
