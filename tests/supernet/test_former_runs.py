"""Runs from before holding out went by classes keep the images that they were trained on."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from supernet.artifacts.formats import RUN
from supernet.artifacts.runs import Job, job_from_dict, open_run, read_job
from supernet.training.data import DataConfig, load_data
from supernet.training.randomness import Stream
from supernet.training.standalone import ModelJob, read_model_job

FORMER = DataConfig(rules=1)


def write_former_run(job, directory):
    """What a run of `job` wrote before there were rules."""
    open_run(job, load_data(job.data), directory, resume=False)()
    (directory / "metrics.jsonl").touch()
    path = directory / "config.json"
    content = json.loads(path.read_text())
    assert content["job"]["data"].pop("rules") == 1
    execution = content["job"].pop("execution")
    for added in ("step", "calibration_bytes", "minutes", "cache_bytes", "wandb", "mlflow"):
        del execution[added]
    content["job"]["data"]["workers"] = execution.pop("workers")
    content["job"]["train"] |= execution
    for added in ("files", "streams", "format", "family_arguments", "held_out", "dataset_sha256"):
        del content[added]
    path.write_text(json.dumps(content))


def test_the_former_split_is_the_plain_random_one():
    data = load_data(FORMER, seed=4)
    order = np.random.default_rng([4, Stream.SPLIT]).permutation(1437).tolist()
    assert (data.holdout.indices, data.train.indices) == (order[:144], order[144:])
    assert set(load_data(DataConfig(), seed=4).holdout.indices) != set(order[:144])


def test_a_job_without_rules_goes_by_the_former_ones():
    values = json.loads(json.dumps(dataclasses.asdict(Job(data=DataConfig()))))
    assert job_from_dict(values).data.rules == 3
    del values["data"]["rules"]
    former = RUN.upgraded({"job": values, "classes": [], "images": {"holdout": 0}}, 1, Path())
    assert job_from_dict(former["job"]).data == FORMER


@pytest.mark.parametrize(("job", "read"), [(Job(data=FORMER), read_job), (ModelJob(data=FORMER), read_model_job)])
def test_a_former_run_is_read_and_goes_on_as_it_was_begun(tmp_path, job, read):
    write_former_run(job, tmp_path)
    found = read(tmp_path)
    assert found == job
    open_run(found, load_data(found.data), tmp_path, resume=True)


def test_a_former_run_does_not_go_on_with_other_images_held_out(tmp_path):
    write_former_run(Job(data=FORMER), tmp_path)
    job = Job(data=DataConfig())
    with pytest.raises(ValueError, match=r"begun with other settings.*: data\.rules=1$"):
        open_run(job, load_data(job.data), tmp_path, resume=True)


def test_other_rules_are_refused():
    with pytest.raises(ValueError, match="rules are 3, or 1 or 2, the former ones, not 4"):
        DataConfig(rules=4)
