import dataclasses

import pytest

from supernet.artifacts.runs import Job, run_job
from supernet.training.execution import Execution
from supernet.training.recipes import RECIPES


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_a_recipe_is_a_whole_job_with_a_space_of_its_own(recipe):
    job = recipe()
    assert isinstance(job, Job)
    family = job.family({"num_classes": 10})
    assert family.build(family.space.smallest, drop_rate=job.train.drop_rate, drop_path_rate=job.train.drop_path_rate)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("alphanet", {"epochs": 360, "lr": 0.1, "weight_decay": 1e-5, "label_smoothing": 0.1, "warmup": 5,
                      "random_subnets": 2, "clip": 1.0, "clip_mode": "value", "distillation": "adaptive_alpha"}),
        ("attentive_nas", {"epochs": 360, "method": "worst_up", "trials": 3, "macs_step": 25.0, "distillation": "kl"}),
        ("bignas", {"opt": "rmsproptf", "lr": 0.016, "sched": "step", "decay_rate": 0.97, "decay_epochs": 2.4,
                    "min_lr": 0.0008, "random_subnets": 2, "distillation": "kl", "drop_rate": 0.2}),
        ("once_for_all", {"epochs": 590, "method": "progressive", "weight_decay": 3e-5, "label_smoothing": 0.1}),
        ("cream", {"epochs": 120, "method": "cream", "board_epoch": 20, "matching_steps": 200, "weight_decay": 4e-5}),
        ("spos", {"epochs": 120, "method": "spos", "random_subnets": 1, "sched": "poly", "decay_rate": 1.0,
                  "macs_step": 10.0, "label_smoothing": 0.1}),
        ("fairnas", {"epochs": 150, "method": "fairnas", "lr": 0.045, "batch_size": 256}),
    ],
)  # fmt: skip
def test_published_settings(name, settings):
    train = RECIPES[name]().train
    assert {setting: getattr(train, setting) for setting in settings} == pytest.approx(settings)
    assert train.macs_range == ((290.0, 360.0) if name == "spos" else None)


def test_a_linear_schedule_falls_by_the_same_amount_every_step(tmp_path):
    job = RECIPES["digits"]()
    settings = {
        "epochs": 1,
        "batch_size": 128,
        "warmup_epochs": 0,
        "sched": "poly",
        "decay_rate": 1.0,
        "lr": 0.8,
    }
    settings |= {"random_subnets": 1, "method": "spos"}
    rates = []
    run_job(
        dataclasses.replace(
            job, train=dataclasses.replace(job.train, **settings), execution=Execution(workers=0, eval_epochs=0)
        ),
        tmp_path,
        on_step=lambda result: rates.append(result.lr),
    )
    assert rates == pytest.approx([0.4 * (1 - (step + 0.5) / 8) for step in range(8)])
