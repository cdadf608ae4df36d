"""Data by name: the code is found, and imported only where whoever reads a file says it again."""

import dataclasses
import hashlib
import importlib.metadata
import json
from pathlib import Path

import pytest
import torch

from supernet.artifacts.runs import Job, load_run, open_data, read_config, read_family, read_job, run_job
from supernet.training.data import Data, DataConfig, ImageData, load_data
from supernet.training.data.named import DATASETS, only_images
from supernet.training.data.tensors import TensorData
from supernet.training.execution import Execution
from supernet.training.step import TrainConfig

SOURCE = """
from os import getenv

import torch
from torch import nn
from torch.nn import functional as F

from supernet import Family, SearchSpace
from supernet.tasks import Task
from supernet.training.data.tensors import TensorData


class Double(Task):
    def inputs(self, batch, arch):
        return batch[:1]

    def loss(self, output, batch):
        return F.mse_loss(output, batch[1])

    def distil(self, output, teacher_output, batch):
        return F.mse_loss(output, teacher_output)

    def metrics(self, outputs, batches):
        return {"fit": -sum(F.mse_loss(o, b[1]).item() for o, b in zip(outputs, batches))}


def numbers(count=40, root=None, size=2) -> "TensorData":
    x = torch.arange(count * size, dtype=torch.float32).view(count, size) / (count * size)
    return TensorData((x, 2 * x), (x[:9], 2 * x[:9]), (x[:7], 2 * x[:7]), family_arguments={"size": size})


def network(arch, size):
    return nn.Sequential(nn.Linear(size, arch["width"]), nn.ReLU(), nn.Linear(arch["width"], size))


def doubling(size):
    return Family(
        SearchSpace({"width": (4, 8)}),
        lambda arch: network(arch, size),
        task=Double(),
        inputs=lambda arch: (torch.empty(1, size, device="meta"),),
    )


def nothing():
    return []


def unannotated(**options):
    raise AssertionError("called")


def sizes() -> list:
    raise AssertionError("called")


def shapes():
    return TensorData(None, None, None, family_arguments={"shape": torch.Size})
"""
JOB = Job(
    "mine.py:doubling",
    data=DataConfig("mine.py:numbers", dataset_options='{"size": 3}'),
    train=TrainConfig(epochs=1, batch_size=8, warmup_epochs=0),
    execution=Execution(workers=0, eval_epochs=0),
)


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "mine.py"
    path.write_text(SOURCE)
    return path


def test_data_of_ones_own_get_their_options_and_root(file, monkeypatch):
    data = load_data(DataConfig("mine.py:numbers", "here", dataset_options='{"count": 16}'))
    assert (type(data).__name__, data.count(data.train), data.family_arguments) == ("TensorData", 16, {"size": 2})
    assert isinstance(load_data(DataConfig()), ImageData)
    monkeypatch.syspath_prepend(file.parent)
    entry = importlib.metadata.EntryPoint("numbers", "mine:numbers", "supernet.datasets")
    monkeypatch.setattr("supernet.own_code.entry_points", lambda group: [entry] * (group == entry.group))
    assert load_data(DataConfig("numbers", dataset_options='{"size": 5}')).family_arguments == {"size": 5}
    assert DATASETS.said_again("numbers", None, "runs/mine") == "numbers"


@pytest.mark.parametrize("name", ["digits", "folder", "tfds/mnist:3.0.1", "hfds/name:part", "torch/cifar10"])
def test_names_of_timms_are_no_code(name):
    assert not DATASETS.is_own(name)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (DataConfig("mine.py:letters"), r"there is no dataset 'mine\.py:letters': mine\.py has no function 'letters'"),
        (DataConfig("nowhere.py:numbers"), r"there is no dataset 'nowhere\.py:numbers': no file nowhere\.py"),
        (DataConfig("mine.py:nothing"), r"mine\.py:nothing returns a list, .* a supernet\.training\.data\.Data"),
        (DataConfig("mine.py:shapes"), r"the family_arguments of mine\.py:shapes are to be kept as JSON"),
        (DataConfig("mine.py:nothing", "here"), "the options {} and the root 'here' do not fit .*'root'"),
        (DataConfig("mine.py:numbers", dataset_options='{"n": 1}'), "the options .* do not fit the dataset .*'n'"),
        (DataConfig("mine.py:numbers", dataset_options="{"), "the options { do not fit the dataset"),
        (DataConfig("mine.py:numbers", dataset_options="[]"), r"the options \[\] do not fit the dataset"),
        (DataConfig("mine.py:numbers", hflip=0.0), "hflip is a setting of images, here 0.0, and no use to the dataset"),
        (DataConfig("digits", dataset_options='{"n": 1}'), "are for a dataset of your own, not for 'digits'"),
    ],
)
def test_what_is_no_dataset_is_refused(file, config, message):
    with pytest.raises(ValueError, match=message):
        load_data(config)


def test_data_that_are_no_images_are_not_missed_as_such(file):
    with pytest.raises(ValueError, match="no images at root '/no/such/place'"):
        open_data(DataConfig("folder", "/no/such/place"), 0)
    assert isinstance(open_data(DataConfig("mine.py:numbers", "/no/such/place"), 0), TensorData)  # a prefix, say


def test_images_are_asked_for_in_one_line():
    data = TensorData(*[(torch.zeros(4, 1),)] * 3)
    assert isinstance(data, Data)
    with pytest.raises(
        ValueError, match=r"^the score rdm needs images with classes, and the data are TensorData: say so$"
    ):
        only_images(data, "the score rdm", "say so")


def test_a_run_of_any_data_is_read_where_its_code_is_said_again(file, tmp_path, caplog):
    folder = tmp_path / "run"
    trained = run_job(JOB, folder)
    config = read_config(folder)
    assert config["family_arguments"] == {"size": 3}
    assert (config["held_out"], config["examples"]) == (9, {"train": 40, "holdout": 9, "test": 7})
    assert config["dataset_sha256"] == config["space_sha256"]
    (tmp_path / "elsewhere").mkdir()
    moved = file.rename(tmp_path / "elsewhere" / "ours.py")
    file.write_text("raise AssertionError('imported')")
    with pytest.raises(ValueError, match=r"run is of the space mine\.py:doubling: code of your own"):
        load_run(folder, dataset=f"{moved}:numbers")
    assert read_family(folder, space=f"{moved}:doubling").num_classes is None
    x = trained.data.test[0]
    for said in (None, f"{moved}:numbers"):  # which lies in the file that is said again, or is said
        found = load_run(folder, space=f"{moved}:doubling", dataset=said)
        assert found.job.data.dataset == f"{moved}:numbers"
        assert torch.equal(found.net(x, {"width": 4}), trained.net(x, {"width": 4}))
    again = read_job(folder, space=f"{moved}:doubling")
    run_job(again, folder, resume=True)
    assert caplog.text == ""
    moved.write_text(SOURCE.replace("2 * x[:9]", "3 * x[:9]"))
    with pytest.raises(ValueError, match=f"the data have changed since {folder} was begun: their digests are"):
        load_run(folder, space=f"{moved}:doubling")
    assert f"the code of the dataset {moved}:numbers has changed since {folder}" in caplog.text


@pytest.mark.parametrize(
    ("description", "message"),
    [
        (
            '{"date": "2024-01-01", "job": "mine", "by": "me"}',
            "the description of mine.py:described has the names date, job, by which a run keeps something else",
        ),
        ('{"shape": {1, 2}}', "the description of mine.py:described is to be kept as JSON: .*set"),
    ],
)
def test_a_description_that_a_run_cannot_keep_is_refused_before_the_first_step(file, tmp_path, description, message):
    file.write_text(
        SOURCE
        + f"""

class Described(TensorData):
    def description(self):
        return {description}


def described() -> Described:
    return Described(**vars(numbers()))
"""
    )
    job = dataclasses.replace(JOB, data=DataConfig("mine.py:described"))
    with pytest.raises(ValueError, match=message):
        run_job(job, tmp_path / "run", on_step=lambda result: pytest.fail("trained"))
    assert not (tmp_path / "run").exists()


def test_a_dataset_elsewhere_is_said_again(file, tmp_path):
    other = tmp_path / "others.py"
    other.write_text(SOURCE)
    job = dataclasses.replace(JOB, data=dataclasses.replace(JOB.data, dataset="others.py:numbers"))
    folder = tmp_path / "run"
    run_job(job, folder)
    with pytest.raises(
        ValueError, match=r"of the dataset others\.py:numbers: .* with --dataset others\.py:numbers \(da"
    ):
        load_run(folder, space=JOB.space)
    assert load_run(folder, space=JOB.space, dataset="others.py:numbers").job.data == job.data
    content = json.loads((folder / "config.json").read_text())
    for name in ("getenv", "unannotated", "sizes", "Double", "network", "absent"):  # no datasets, or not known as such
        content["job"]["data"] |= {"dataset": f"mine.py:{name}", "dataset_options": '{"key": "HOME"}'}
        (folder / "config.json").write_text(json.dumps(content))
        with pytest.raises(ValueError, match=rf"of the dataset mine\.py:{name}: code of your own"):
            load_run(folder, space=JOB.space)


def test_the_digest_of_an_object_is_that_of_the_file_that_its_name_leads_to(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "objects.py").write_text(
        "from functools import partial\nfrom json import loads\n\n\n"
        "class Made:\n    def __call__(self):\n        return []\n\n\n"
        "read, made = partial(loads, '1'), Made()\n"
    )
    paths = {name: "objects.py" for name in ("read", "made", "Made")} | {"loads": json.__file__}
    for name, path in paths.items():
        expected = hashlib.sha256(Path(path).read_bytes()).hexdigest()
        assert DATASETS.source_digest(f"objects.py:{name}") == expected


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (".mine:numbers", r"there is no dataset '\.mine:numbers': '\.mine' is no module's whole name"),
        (":numbers", "there is no dataset ':numbers': '' is no module's whole name"),
        ("installed", "there is no dataset 'installed': json has no function 'numbers'"),
    ],
)
def test_a_name_that_leads_to_no_function_is_refused(monkeypatch, name, message):
    entry = importlib.metadata.EntryPoint("installed", "json:numbers", "supernet.datasets")
    monkeypatch.setattr("supernet.own_code.entry_points", lambda group: [entry] * (group == entry.group))
    with pytest.raises(ValueError, match=message):
        load_data(DataConfig(name))
