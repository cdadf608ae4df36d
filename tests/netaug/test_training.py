import dataclasses
import json

import pytest
import timm
import torch

from distill.objective import Objective
from netaug.augmentation import augment
from netaug.training import NetAugConfig, NetAugJob, run_netaug_job, train_netaug
from supernet.artifacts.subnet import load_subnet, save_subnet
from supernet.calibration import calibrate
from supernet.training.cohort import train_models
from supernet.training.data import DataConfig, load_data
from supernet.training.execution import Execution
from supernet.training.loop.config import LoopConfig
from supernet.training.standalone import read_model_job
from tests.small import SPACE, small

DATA = DataConfig(holdout=0.97, hflip=0.0, color_jitter=0.0)  # 43 images to train on, 5 batches
CONFIG = LoopConfig(epochs=2, batch_size=8, seed=3)
EXECUTION = Execution(workers=0, eval_epochs=0, log_steps=1, checkpoint_steps=4)
NETAUG = NetAugConfig(r=2.0, s=1, calibration_images=40)


FAMILY = small()
TINY = FAMILY.space.smallest


def tiny():
    torch.manual_seed(5)
    return FAMILY.build(TINY)


@pytest.fixture(scope="module")
def data():
    return load_data(DATA, CONFIG.seed)


@pytest.fixture(scope="module")
def augmentation():
    return augment(FAMILY, r=2, s=1)


@pytest.fixture(scope="module")
def trained(data, augmentation, tmp_path_factory):
    directory = tmp_path_factory.mktemp("netaug")
    return directory, train_netaug(augmentation, tiny(), data, CONFIG, directory, NETAUG, execution=EXECUTION)


def test_without_the_wider_networks_it_is_plain_training(data, augmentation, tmp_path):
    alone = dataclasses.replace(NETAUG, weight=0.0)
    model = train_netaug(augmentation, tiny(), data, CONFIG, tmp_path / "netaug", alone, execution=EXECUTION)
    (plain,) = train_models([tiny()], [24], data, CONFIG, tmp_path / "plain", execution=EXECUTION)
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(model.get_parameter(name), parameter, msg=name)


def test_the_wider_networks_make_a_difference(data, trained, tmp_path):
    (plain,) = train_models([tiny()], [24], data, CONFIG, tmp_path, execution=EXECUTION)
    assert not torch.allclose(plain.conv_stem.weight, trained[1].conv_stem.weight)


def test_what_comes_out_has_statistics_of_its_own(data, trained):
    _, model = trained
    plain = FAMILY.build(TINY).eval()
    plain.load_state_dict(model.state_dict())
    calibrate(plain, [data.calibration_images(24, 40, CONFIG.seed)])
    for name, tensor in plain.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], tensor, msg=name)


class Killed(Exception):
    pass


def test_a_run_that_is_stopped_and_resumed_ends_in_the_same_weights(data, augmentation, trained, tmp_path):
    def stop(result):
        if result.step == 7:  # after the checkpoint of step 4, and channels sorted before step 6
            raise Killed

    config = dataclasses.replace(NETAUG, width_until=1.0)
    whole = train_netaug(augmentation, tiny(), data, CONFIG, tmp_path / "whole", config, execution=EXECUTION)
    with pytest.raises(Killed):
        train_netaug(augmentation, tiny(), data, CONFIG, tmp_path / "parts", config, execution=EXECUTION, on_step=stop)
    folder = tmp_path / "parts"
    resumed = train_netaug(augmentation, tiny(), data, CONFIG, folder, config, execution=EXECUTION, resume=True)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], tensor), name
    assert not torch.equal(whole.conv_stem.weight, trained[1].conv_stem.weight)  # width_until matters


def test_what_comes_out_is_the_stock_timm_model(tmp_path):
    options = json.dumps({"name": "test_efficientnet", "input_size": 32})
    train = dataclasses.replace(CONFIG, epochs=1, batch_size=21)
    job = NetAugJob(space="timm", space_options=options, data=DATA, train=train, execution=EXECUTION, netaug=NETAUG)
    save_subnet(tmp_path, run_netaug_job(job, tmp_path / "training"), onnx=False)
    model = load_subnet(tmp_path).model
    stock = timm.create_model("test_efficientnet", num_classes=10).eval()
    stock.load_state_dict(model.state_dict())
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(stock(images), model(images))


def test_a_teacher_composes_with_it(tmp_path):
    train = dataclasses.replace(CONFIG, epochs=1)
    job = NetAugJob(space=SPACE, arch=TINY.to_json(), data=DATA, train=train, execution=EXECUTION, netaug=NETAUG)
    alone = run_netaug_job(job, tmp_path / "alone" / "training")
    save_subnet(tmp_path / "alone", alone, onnx=False)
    taught = dataclasses.replace(job, teacher=str(tmp_path / "alone"), objective=Objective(kl=2.0))
    model = run_netaug_job(taught, tmp_path / "taught").model
    assert not torch.allclose(model.conv_stem.weight, alone.model.conv_stem.weight)
    assert read_model_job(tmp_path / "taught", NetAugJob, space=SPACE) == taught


def test_companions_of_the_tiny_and_the_wider_networks_are_not_in_what_comes_out(data, augmentation, tmp_path):
    objective = Objective(auxiliary=0.3, self_distillation=0.2, hint=0.5)
    teacher = FAMILY.build(FAMILY.space.largest)

    def trained(name, **options):
        rest = {"objective": objective, "teacher": teacher, "execution": EXECUTION}
        return train_netaug(augmentation, tiny(), data, CONFIG, tmp_path / name, NETAUG, **rest, **options)

    def stop(result):
        if result.step == 7:
            raise Killed

    whole = trained("whole")
    assert whole.state_dict().keys() == tiny().state_dict().keys()
    with pytest.raises(Killed):
        trained("parts", on_step=stop)
    resumed = trained("parts", resume=True)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], tensor), name


@pytest.mark.parametrize("weight", [0.0, 1e-30])
def test_companions_that_weigh_nothing_change_nothing(data, augmentation, trained, weight, tmp_path):
    objective = Objective(auxiliary=weight, self_distillation=weight)
    model = train_netaug(augmentation, tiny(), data, CONFIG, tmp_path, NETAUG, objective=objective, execution=EXECUTION)
    for name, tensor in trained[1].state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name


def test_losses_on_features_are_refused():
    with pytest.raises(ValueError, match="takes the losses labels, kl"):
        NetAugJob(teacher="resnet18", objective=Objective(attention=1.0))
    with pytest.raises(ValueError, match="takes the losses labels, kl"):
        NetAugJob(peers=("resnet18",), objective=Objective(mutual=1.0))
    with pytest.raises(ValueError, match=r"not -1.0, 0.5 and 1000"):
        NetAugConfig(weight=-1.0)
