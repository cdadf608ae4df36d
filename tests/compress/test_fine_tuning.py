import dataclasses

import pytest
import torch

from compress.fine_tuning import FineTuningJob, run_fine_tuning
from distill.objective import Objective
from supernet.artifacts.runs import open_data
from supernet.artifacts.subnet import Subnet, load_subnet, save_subnet
from supernet.artifacts.subnet_config import SubnetConfig
from supernet.families import FAMILIES
from supernet.training.data import DataConfig
from supernet.training.execution import Execution
from supernet.training.loop.config import LoopConfig

JOB = FineTuningJob(
    "timm",
    '{"name": "resnet10t", "input_size": 32}',
    data=DataConfig(holdout=0.95),
    train=LoopConfig(epochs=1, batch_size=16, warmup_epochs=0.0, lr=0.8, weight_decay=0.0),
    execution=Execution(workers=0, eval_epochs=0),
    objective=Objective(labels=0.0, kl=1.0),
    teacher="resnet10t",
)


def test_channels_whose_gates_close_are_gone_from_what_is_saved(tmp_path):
    teacher = tmp_path / "teacher"
    data, family = open_data(JOB.data, 0), FAMILIES["timm"](name="resnet10t", input_size=32, num_classes=10)
    arch = family.space.largest
    model = family.build(arch).eval()
    save_subnet(teacher, Subnet(model, SubnetConfig.of("timm", JOB.space_options, arch, data)), onnx=False)
    job = dataclasses.replace(JOB, teacher=str(teacher), start=str(teacher), gates=6.0)
    found = run_fine_tuning(job, tmp_path / "run")
    save_subnet(tmp_path / "gated", found, onnx=False)
    loaded = load_subnet(tmp_path / "gated")
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(loaded.model(images), found.model(images))
    assert 0 < loaded.config.facts["macs"] < family.macs(arch)
    assert not any("parametrizations" in name for name in found.model.state_dict())


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"gates": -1.0}, "the penalty on gates is not negative, unlike -1.0"),
        ({"gates": 1.0, "precision": "int8"}, "leave out precision and peers"),
        ({"gates": 1.0, "objective": Objective(), "teacher": None}, "give a teacher, and kl a weight"),
    ],
)
def test_what_gates_do_not_go_with_is_refused(changed, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(JOB, **changed)
