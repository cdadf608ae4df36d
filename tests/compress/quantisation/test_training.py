import dataclasses

import pytest
import torch

from compress.quantisation.training import INT8_FILE, PrecisionJob, run_precision_job
from distill.objective import Objective
from supernet.artifacts.export import onnx_runner
from supernet.training.data import DataConfig
from supernet.training.execution import Execution
from supernet.training.loop.config import LoopConfig

JOB = PrecisionJob(
    data=DataConfig(holdout=0.95, hflip=0.0, color_jitter=0.0),
    train=LoopConfig(epochs=2, batch_size=24, seed=3, warmup_epochs=0.0, ema_decay=0.5),
    execution=Execution(workers=0, eval_epochs=0, checkpoint_steps=2),
    precision="int8",
)


class Killed(Exception):
    pass


def test_a_training_that_was_killed_when_it_was_frozen_ends_in_the_same_network(tmp_path):
    whole = run_precision_job(JOB, tmp_path / "whole").model

    def stop(result):
        if result.step > 0.8 * result.steps:
            raise Killed

    with pytest.raises(Killed):
        run_precision_job(JOB, tmp_path / "parts", on_step=stop)
    resumed = run_precision_job(JOB, tmp_path / "parts", resume=True).model
    for name, tensor in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], tensor), name
    ours, theirs = (onnx_runner(tmp_path / name / INT8_FILE) for name in ("whole", "parts"))
    images = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(ours(images), theirs(images))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "int4"}, "the precision is fp32 or int8, not 'int4'"),
        ({"weight_bits": 4}, "7 or 8 bits, not 4"),
        ({"execution": Execution(step="compile")}, "leave out step=compile"),
        ({"objective": Objective(attention=1.0), "teacher": "t"}, "takes losses on outputs"),
    ],
)
def test_jobs_that_cannot_be_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(JOB, **options)
