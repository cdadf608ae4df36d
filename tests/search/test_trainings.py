import dataclasses

import pytest

from search.history import Evaluation
from search.sweep import Trial, combined_front, folder_of
from search.trainings import training_job, trainings
from supernet import Arch
from supernet.training.recipes import digits


def test_there_is_a_training_for_each_method_rate_space_and_seed():
    job = digits()
    found = trainings(job, ["sandwich", "spos"], [0.1, 0.2], [], [0, 1])
    assert len(found) == 8
    assert found[0] == {"method": "sandwich", "lr": 0.1, "space": job.space, "seed": 0, "device": "macs"}
    assert found[-1] == {"method": "spos", "lr": 0.2, "space": job.space, "seed": 1, "device": "macs"}
    assert trainings(job, [], [], ["autoformer_tiny"], [3]) == [
        {"method": "sandwich", "lr": 0.4, "space": "autoformer_tiny", "seed": 3, "device": "macs"}
    ]


def test_a_training_is_the_runs_but_for_its_settings_and_device():
    job = digits()
    settings = {"method": "spos", "lr": 0.2, "space": job.space, "seed": 5, "strategy": "random"}
    found = training_job(job, settings, "cuda")
    assert (found.train.method, found.train.lr, found.train.seed) == ("spos", 0.2, 5)
    assert found.execution.device == "cuda"
    assert (found.train.epochs, found.data, found.space) == (job.train.epochs, job.data, job.space)
    with pytest.raises(ValueError, match="lr is above 0, not -1"):
        training_job(job, {**settings, "lr": -1.0}, "cpu")


def test_options_of_a_space_are_not_those_of_another():
    own = '{"kernel_transform": true}'
    job = dataclasses.replace(digits(), space="ofa_mobilenet_v3", space_options=own)
    settings = {"method": "spos", "lr": 0.2, "seed": 0}
    assert training_job(job, {**settings, "space": "ofa_mobilenet_v3"}, "cpu").space_options == own
    assert training_job(job, {**settings, "space": "autoformer_tiny"}, "cpu").space_options == "{}"


@pytest.mark.parametrize(("training", "accuracies"), [({}, [0.5, 0.8]), ({"method": "spos"}, [0.7, 0.8])])
def test_an_architecture_is_another_one_in_each_training(training, accuracies):
    trials = []
    for seed, value, accuracy, macs in ((0, 1, 0.5, 1.0), (1, 1, 0.7, 1.0), (2, 2, 0.8, 2.0)):
        evaluation = Evaluation(Arch({"a": value}), {"accuracy": accuracy}, {"macs": macs}, 0)
        trials.append(Trial({**training, "device": "macs", "seed": seed}, {}, [evaluation], None))
    front = combined_front(trials, "macs", "macs", "accuracy")
    assert [row["accuracy"] for row in front] == accuracies


def test_each_trial_has_a_folder_that_follows_from_its_settings(tmp_path):
    one, other = ({"method": "spos", "lr": lr, "seed": 0} for lr in (0.1, 0.2))
    assert folder_of(tmp_path, one) == folder_of(tmp_path, dict(reversed(one.items())))
    assert folder_of(tmp_path, one) != folder_of(tmp_path, other)
