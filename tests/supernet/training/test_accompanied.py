"""Companions of a supernet: against extracted subnets and losses written out, and as what leaves no trace in it."""

import csv
import dataclasses
import json
from functools import partial

import pytest
import torch
from torch.nn import functional as F

from distill.accompanied import Beside, companions_of
from distill.layers import recorded
from distill.losses import kl_divergence
from distill.objective import Objective
from supernet.artifacts.runs import Job, load_run, run_job
from supernet.artifacts.weights import read_safetensors
from supernet.tasks import Classification
from supernet.training.cohort import train_models
from supernet.training.data import DataConfig, ImageData, load_data
from supernet.training.data.batch import on
from supernet.training.execution import Execution
from supernet.training.loop.checkpoint import load_checkpoint
from supernet.training.loop.config import LoopConfig
from supernet.training.methods.sampling import Learner
from supernet.training.step import TrainConfig, TrainStep
from supernet.training.train import eager, train
from tests.small import SPACE, small

DATA = DataConfig(holdout=0.97, hflip=0.0, color_jitter=0.0)  # 43 images to train on, 5 batches
CONFIG = TrainConfig(epochs=1, batch_size=8, random_subnets=1, drop_path_rate=0.2, ema_decay=0.9, clip=1.0)
EXECUTION = Execution(workers=0, eval_epochs=0, log_steps=1, checkpoint_steps=2)
ALL = Beside(hint=0.5, vid=0.2, auxiliary=0.3, self_distillation=0.4, second_task=0.6)
FAMILY = small()


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(8, 3, 32, 32, generator=generator)
    return images, *(torch.randint(size, (8,), generator=generator) for size in (10, 4))


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """Data of the digits with a second task: whether they are odd, of most of them."""
    data = load_data(DATA, 0)
    path = tmp_path_factory.mktemp("labels") / "odd.csv"
    digits = data.train.dataset
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["file", "label"])
        rows.writerows((name, "odd" if label % 2 else "even") for name, label in zip(digits.names, digits.targets))
    return dataclasses.replace(DATA, second_labels=str(path))


def parts_of(model, companions, images, labels, second, taught=None):
    """The losses of a plain subnet by hand, each with its weight: `taught` are a teacher's features."""
    with recorded(model, companions.student_layers) as features:
        logits = model(images)
    (head,), (layer,) = companions["heads"], companions._heads
    answer = head(features[layer])
    parts = {
        "auxiliary": 0.3 * F.cross_entropy(answer, labels, label_smoothing=0.1),
        "self_distillation": 0.4 * kl_divergence(answer, logits.detach()),
        "second_task": 0.6 * F.cross_entropy(companions["second_task"](features[companions._second]), second),
    }
    for name, weight in {"hint": 0.5, "vid": 0.2}.items() if taught else ():
        parts[name] = weight * sum(
            connect(features[own], F.adaptive_avg_pool2d(taught[other], features[own].shape[-2:]))
            for connect, (own, other) in zip(companions[name], companions._pairs)
        )
    return logits, features, parts


def test_every_learner_has_the_losses_of_its_own_features(batch):
    images, labels, second = batch
    net = FAMILY.supernet().train()
    space = FAMILY.space
    largest = net.extract(space.largest)
    companions = companions_of(ALL, largest, (images,), largest, second_classes=4, of_subnets=True)
    archs = [space.validate({**arch, "resolution": size}) for arch, size in ((space.largest, 32), (space.smallest, 24))]
    models = [net.extract(arch).train() for arch in archs]
    small_images = FAMILY.task.inputs(batch, archs[1])[0]
    learners = [Learner(archs[0]), Learner(archs[1], teacher=0, label_weight=0.0, companion_weight=0.7)]
    step = TrainStep(net, Classification(label_smoothing=0.1), CONFIG, companions=companions)
    losses, _ = step(batch, learners)
    found = {name: parameter.grad.clone() for name, parameter in companions.named_parameters()}
    shared = net.conv_stem.weight.grad.clone()

    companions.zero_grad()
    logits, features, parts = parts_of(models[0], companions, images, labels, second)
    first = F.cross_entropy(logits, labels, label_smoothing=0.1) + sum(parts.values())
    first.backward()
    taught = {name: feature.detach() for name, feature in features.items()}
    small_logits, _, parts = parts_of(models[1], companions, small_images, labels, second, taught)
    assert parts.keys() == {"hint", "vid", "auxiliary", "self_distillation", "second_task"}
    other = kl_divergence(small_logits, logits.detach()) + 0.7 * sum(parts.values())
    other.backward()
    torch.testing.assert_close(losses, torch.stack([first, other]).detach())
    for name, parameter in companions.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, msg=name)
    own = models[1].conv_stem.weight.grad
    both = models[0].conv_stem.weight.grad.clone()
    both[tuple(slice(size) for size in own.shape)] += own
    torch.testing.assert_close(shared, both)


def test_a_frozen_teacher_teaches_features_too(batch):
    images, labels, _ = batch
    net, teacher = FAMILY.supernet().train(), FAMILY.supernet(seed=5).extract(FAMILY.space.largest).eval()
    beside = Beside(hint=1.0)
    companions = companions_of(beside, net.extract(FAMILY.space.largest), (images,), teacher, of_subnets=True)
    arch = FAMILY.space.restrict({"resolution": [32]}).smallest
    step = TrainStep(net, Classification(label_smoothing=0.0), CONFIG, teacher, companions=companions)
    losses, _ = step(batch, [Learner(arch, "external", teacher_weight=0.5)])
    model = net.extract(arch).train()
    with recorded(model, companions.student_layers) as own, recorded(teacher, companions.teacher_layers) as taught:
        logits, answers = model(images), teacher(images).detach()
    hints = sum(hint(own[a], taught[b]) for hint, (a, b) in zip(companions["hint"], companions._pairs))
    expected = F.cross_entropy(logits, labels) + 0.5 * kl_divergence(logits, answers) + hints
    torch.testing.assert_close(losses[0], expected.detach())


def test_subnets_that_are_shallower_have_the_same_layers():
    largest = FAMILY.supernet().extract(FAMILY.space.largest)
    images = torch.zeros(2, 3, 32, 32)
    companions = companions_of(ALL, largest, (images,), largest, second_classes=2, of_subnets=True)
    smallest = FAMILY.supernet().extract(FAMILY.space.smallest)
    layers = companions.student_layers | companions.teacher_layers
    assert len(layers) >= 2
    with recorded(smallest, layers) as features:
        smallest(images)
    assert features.keys() == layers


def test_companions_go_on_where_they_were_and_are_not_in_the_run(labelled, tmp_path):
    class Killed(Exception):
        pass

    def stop(result):
        if result.step == 3:
            raise Killed

    job = Job(space=SPACE, data=labelled, train=CONFIG, execution=EXECUTION, beside=ALL)
    whole = run_job(job, tmp_path / "whole")
    with pytest.raises(Killed):
        run_job(job, tmp_path / "parts", on_step=stop)
    resumed = run_job(job, tmp_path / "parts", resume=True)
    for name, tensor in whole.net.state_dict().items():
        assert torch.equal(resumed.net.state_dict()[name], tensor), name
    plain = FAMILY.supernet().state_dict()
    assert read_safetensors(tmp_path / "whole" / "supernet.safetensors")[0].keys() == plain.keys()
    kept = {name for name in load_checkpoint(tmp_path / "whole" / "checkpoints")["net"] if name.startswith("1.")}
    assert {"1.0.hint.0.regressor.weight", "1.0.heads.0.classifier.bias", "1.0.second_task.classifier.bias"} <= kept
    assert load_run(tmp_path / "whole", space=SPACE).data.second is None  # a search needs no labels of it


@pytest.mark.parametrize("beside", [Beside(), Beside(hint=1e-30, auxiliary=1e-30, self_distillation=1e-30)])
def test_companions_that_weigh_nothing_change_nothing(beside, tmp_path):
    data = load_data(DATA, CONFIG.seed)
    nets = [
        train(FAMILY, FAMILY.supernet(), data, CONFIG, tmp_path / name, EXECUTION, **options)
        for name, options in (("none", {}), ("beside", {"beside": beside}))
    ]
    for name, tensor in nets[0].state_dict().items():
        assert torch.equal(nets[1].state_dict()[name], tensor), name


def test_a_second_label_comes_with_its_image(labelled):
    data = load_data(labelled, 0)
    assert isinstance(data, ImageData)
    assert data.second_classes == ("even", "odd")
    for batch in data.training_batches(24, 8, 0, range(3)):
        _, labels, second = on(torch.device("cpu"), batch)
        assert torch.equal(second, labels % 2)
    assert len(next(iter(data.evaluation_batches(data.holdout, 24)))) == 2


def test_plain_models_learn_a_second_task_beside_their_labels(labelled, tmp_path):
    data, config = load_data(labelled, 0), LoopConfig(epochs=1, batch_size=8, warmup_epochs=0.0)
    objective, model = Objective(second_task=0.5), FAMILY.build(FAMILY.space.smallest)
    before = {name: tensor.shape for name, tensor in model.state_dict().items()}
    (trained,) = train_models([model], [24], data, config, tmp_path, objective, execution=EXECUTION)
    assert {name: tensor.shape for name, tensor in trained.state_dict().items()} == before
    first = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0])
    assert first["losses"].keys() == {"labels", "second_task"}
    assert first["loss"] == pytest.approx(first["losses"]["labels"] + 0.5 * first["losses"]["second_task"], rel=1e-5)
    weight = load_checkpoint(tmp_path / "checkpoints")["net"]["1.0.second_task.classifier.weight"]
    assert weight.shape[0] == 2


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Job(beside=Beside(second_task=1.0)), "here they are None and 1.0"),
        (lambda: Job(data=DataConfig(second_labels="a.csv")), r"here they are a.csv and 0.0"),
        (lambda: Job(beside=Beside(hint=1.0), train=TrainConfig(method="spos")), "which the method spos does not have"),
        (partial(eager, Execution(step="compile")), "do not show"),
    ],
)
def test_what_does_not_go_together_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_labels_of_a_second_task_are_not_mixed(labelled, tmp_path):
    config = dataclasses.replace(CONFIG, mixup=0.2)
    with pytest.raises(ValueError, match="no labels of a second task"):
        train(FAMILY, FAMILY.supernet(), load_data(labelled, 0), config, tmp_path, EXECUTION)
