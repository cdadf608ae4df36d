"""Five steps of a training written out in plain torch, and those of the loop: bit for bit, in one process and two."""

import dataclasses
import itertools
import json
import math
from collections import OrderedDict
from typing import NamedTuple

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from supernet import SearchSpace
from supernet.families import Family
from supernet.training.cohort import train_models
from supernet.training.data import DataConfig, load_data
from supernet.training.data.batch import on
from supernet.training.execution import Execution
from supernet.training.loop import Loop
from supernet.training.loop.checkpoint import load_checkpoint
from supernet.training.loop.config import LoopConfig
from supernet.training.methods.sampling import Uniform
from supernet.training.step import TrainConfig
from supernet.training.train import train

STEPS, BATCH, RESOLUTION = 5, 8, 16
CONFIGS = {
    # here the gradient of each process is longer than the limit, and so is their mean
    "norm": LoopConfig(
        epochs=1, batch_size=BATCH, lr=8.0, momentum=0.5, weight_decay=0.1, warmup_epochs=0.4, min_lr=0.32,
        label_smoothing=0.2, drop_rate=0.5, drop_path_rate=0.1, clip=0.1, ema_decay=0.7, seed=3,
    ),
    "value": LoopConfig(
        epochs=1, batch_size=BATCH, lr=2.0, momentum=0.8, weight_decay=0.01, sched="poly", decay_rate=2.0,
        warmup_epochs=0.2, label_smoothing=0.0, drop_rate=0.5, clip=0.02, clip_mode="value", ema_decay=0.4, seed=4,
    ),
}  # fmt: skip
EXECUTIONS = {
    "norm": Execution(amp="bf16", eval_epochs=0, log_steps=1),
    "value": Execution(channels_last=False, eval_epochs=0, log_steps=1),
}


class Multiply(nn.Module):
    """In the place of dropout: what dropout multiplied with before."""

    def __init__(self, factors):
        super().__init__()
        self.factors = iter(factors)

    def forward(self, x):
        return x * next(self.factors)


def network(dropout):
    return nn.Sequential(
        OrderedDict(
            stem=nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False),
            norm=nn.BatchNorm2d(8),
            act=nn.SiLU(),
            conv=nn.Conv2d(8, 12, 3, padding=1),
            pool=nn.AdaptiveAvgPool2d(1),
            flatten=nn.Flatten(),
            dropout=dropout,
            classifier=nn.Linear(12, 10),
        )
    )


class Trained(NamedTuple):
    """What a process has when it is done, in NumPy's arrays."""

    before: dict
    after: dict
    average: dict
    factors: list  # of dropout, step by step
    regularisation: set  # rates of dropout and stochastic depth
    formats: set  # whether images and kernels are channels-last and which precision the classifier answers in


def trained(driver, name, directory):
    """Train the network in this process."""
    config, execution = CONFIGS[name], EXECUTIONS[name]
    data = images_of(config)
    factors, regularisation, formats = [], set(), set()

    def dropout(rate):
        layer = nn.Dropout(rate)
        layer.register_forward_hook(lambda _, args, output: factors.append((output / args[0]).detach().float()))
        return layer

    def look(module, args, output):
        is_last = [t.is_contiguous(memory_format=torch.channels_last) for t in (args[0], module.weight)]
        formats.add((*is_last, output.dtype))

    def build(arch, drop_rate=0.0, drop_path_rate=0.0):
        regularisation.add((drop_rate, drop_path_rate))
        model = network(dropout(drop_rate))
        model.stem.register_forward_hook(look)
        return model

    if driver == "model":
        with torch.random.fork_rng():
            torch.manual_seed(0)
            net = build(None, config.drop_rate, config.drop_path_rate)
        before = arrays(net)
        (average,) = train_models([net], [RESOLUTION], data, config, directory, execution=execution)
    else:
        space = SearchSpace({"width": (12,)})
        family = Family(space, build, num_classes=10, input_size=RESOLUTION)
        net = family.supernet()
        for noted in (factors, formats):  # while the modules were tried without data
            noted.clear()
        before = arrays(net)
        settings = TrainConfig(**vars(config))
        average = train(family, net, data, settings, directory, execution, method=Uniform(space, regularised=True))
    return Trained(before, arrays(net), arrays(average), [f.numpy() for f in factors], regularisation, formats)


def images_of(config):
    data = load_data(DataConfig(), config.seed)
    return dataclasses.replace(data, train=torch.utils.data.Subset(data.train, range(STEPS * BATCH)))


def arrays(module):
    return {name: tensor.detach().clone().numpy() for name, tensor in module.state_dict().items()}


def rate(config, step):
    """The learning rate of a step: that of its middle."""
    peak, least = (value * config.batch_size / 256 for value in (config.lr, config.min_lr))
    progress = (step + 0.5) / STEPS
    if progress < config.warmup_epochs:
        return peak * progress / config.warmup_epochs
    if config.sched == "cosine":
        return least + 0.5 * (peak - least) * (1 + math.cos(math.pi * progress))
    return least + (peak - least) * (1 - progress) ** config.decay_rate


class Written(NamedTuple):
    models: list[nn.Module]  # of each process
    averages: list[nn.Module]
    optimizer: torch.optim.Optimizer  # of the first
    losses: list[float]  # of the first, step by step


def written_out(name, before, factors):
    """The training in as many processes as there are lists of `factors`."""
    config, execution = CONFIGS[name], EXECUTIONS[name]
    data, processes = images_of(config), range(len(factors))
    models = [network(Multiply(map(torch.from_numpy, own))).train() for own in factors]
    averages = [network(nn.Identity()) for _ in processes]
    for model in models + averages:
        model.load_state_dict({name: torch.from_numpy(array) for name, array in before.items()})
        if execution.channels_last:
            model.to(memory_format=torch.channels_last)
    optimizers = [
        torch.optim.SGD(
            [
                {"params": [p for p in model.parameters() if p.dim() > 1], "weight_decay": config.weight_decay},
                {"params": [p for p in model.parameters() if p.dim() == 1], "weight_decay": 0.0},
            ],
            momentum=config.momentum,
            nesterov=True,
        )
        for model in models
    ]
    batches = [data.training_batches(RESOLUTION, BATCH, config.seed, range(STEPS), r, len(factors)) for r in processes]
    losses = []
    for step, of_step in enumerate(zip(*batches)):
        norms = []
        for model, optimizer, batch in zip(models, optimizers, of_step):
            optimizer.zero_grad()
            images, labels = on(torch.device("cpu"), batch)
            if execution.channels_last:
                images = images.to(memory_format=torch.channels_last)
            with torch.autocast("cpu", torch.bfloat16, enabled=execution.amp == "bf16"):
                logits = model(images)
            loss = F.cross_entropy(logits.float(), labels, label_smoothing=config.label_smoothing)
            loss.backward()
            norms.append(torch.nn.utils.get_total_norm([p.grad for p in model.parameters()]).item())
            if model is models[0]:
                losses.append(loss.item())
        for parameters in zip(*(model.parameters() for model in models)):
            mean = sum(p.grad for p in parameters) / len(parameters)
            for parameter in parameters:
                parameter.grad = mean.clone()
        for model, optimizer, average in zip(models, optimizers, averages):
            if config.clip_mode == "norm":
                assert torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip) > config.clip
                assert min(norms) > config.clip  # and therefore clipping before would give another mean
            else:
                assert any((p.grad.abs() > config.clip).any() for p in model.parameters())
                torch.nn.utils.clip_grad_value_(model.parameters(), config.clip)
            for group in optimizer.param_groups:
                group["lr"] = rate(config, step)
            optimizer.step()
            decay = config.ema_decay if step > 1 else 0.0  # timm's average begins with the second step's weights
            for mean, value in zip(average.state_dict().values(), model.state_dict().values()):
                if value.is_floating_point():
                    mean.lerp_(value, 1 - decay)
                else:
                    mean.copy_(value)
    for first, *others in (models, averages):  # BatchNorm's statistics are in the end those that were saved
        for other in others:
            for buffer, saved in zip(other.buffers(), first.buffers()):
                buffer.data.copy_(saved)
    return Written(models, averages, optimizers[0], losses)


def check(name, found, directory):
    """What the processes `found` is what is written out; their checkpoints and metrics are in `directory`."""
    config, execution = CONFIGS[name], EXECUTIONS[name]
    expected = written_out(name, found[0].before, [own.factors for own in found])
    for own, model, average in zip(found, expected.models, expected.averages):
        for key, tensor in model.state_dict().items():
            assert (own.after[key] == tensor.numpy()).all(), key
        for key, tensor in average.state_dict().items():
            assert (own.average[key] == tensor.numpy()).all(), key
        assert own.regularisation - {(0.0, 0.0)} == {(config.drop_rate, config.drop_path_rate)}
        precision = torch.bfloat16 if execution.amp == "bf16" else torch.float
        assert own.formats == {(execution.channels_last, execution.channels_last, precision)}
    state = load_checkpoint(directory / "checkpoints")
    buffers = [entry["momentum_buffer"] for entry in state["optimizer"]["state"].values()]
    wanted = [entry["momentum_buffer"] for entry in expected.optimizer.state_dict()["state"].values()]
    assert len(buffers) == len(wanted)
    by_size = [sorted(values, key=lambda t: (t.numel(), t.sum().item())) for values in (buffers, wanted)]
    assert all(torch.equal(a, b) for a, b in zip(*by_size))
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    assert [line["loss"] if "loss" in line else line["losses"][0] for line in lines] == expected.losses
    assert [line["lr"] for line in lines] == pytest.approx([rate(config, step) for step in range(STEPS)], rel=1e-12)


CASES = list(itertools.product(("model", "supernet"), CONFIGS))


@pytest.mark.parametrize(("driver", "name"), CASES)
def test_five_steps_are_those_written_out(driver, name, tmp_path):
    check(name, [trained(driver, name, tmp_path)], tmp_path)


def train_all(directory):
    return [trained(driver, name, directory / driver / name) for driver, name in CASES]


def test_five_steps_of_two_processes_are_those_written_out(in_two_processes, tmp_path):
    for (driver, name), *found in zip(CASES, *in_two_processes(train_all, tmp_path)):
        check(name, found, tmp_path / driver / name)
        # dropout is another in every step and every process, which begin with the same weights
        factors = [factor.tobytes() for own in found for factor in own.factors]
        assert len(set(factors)) == len(factors) == 2 * STEPS
        assert all((found[0].before[key] == found[1].before[key]).all() for key in found[0].before)


@pytest.mark.parametrize("ema_decay", [0.5, None])
def test_the_network_to_use_is_evaluated_when_due_and_training_goes_on_in_train_mode(ema_decay, tmp_path):
    config = dataclasses.replace(CONFIGS["value"], epochs=3, ema_decay=ema_decay)
    execution = Execution(channels_last=False, eval_epochs=2, log_steps=100)
    evaluated = []

    def evaluate(model):
        evaluated.append(model.eval())  # as whoever evaluates does
        return {"accuracy": len(evaluated)}

    loop = Loop(network(nn.Identity()), images_of(config), config, tmp_path, evaluate, execution)
    for step, (images, labels) in loop.batches(RESOLUTION):
        assert all(module.training for module in loop.net.modules())
        loss = F.cross_entropy(loop.net(images), labels)
        loss.backward()
        loop.update(step, loss[None], ["all"])
        loop.finish(step, {"losses": loss[None]})
    assert len(evaluated) == 2
    assert all(model is loop.result for model in evaluated)
    assert (loop.result is loop.net) == (ema_decay is None)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["accuracy"]) for line in lines if "accuracy" in line] == [(10, 1), (15, 2)]


def test_a_training_whose_time_is_over_ends_where_it_is_and_goes_on(tmp_path):
    config = dataclasses.replace(CONFIGS["norm"], drop_rate=0.0, drop_path_rate=0.0)
    execution = Execution(eval_epochs=0, log_steps=2, checkpoint_steps=1)
    data = images_of(config)

    def trained_in(folder, execution, net, resume=False):
        (average,) = train_models(
            [net], [RESOLUTION], data, config, tmp_path / folder, execution=execution, resume=resume
        )
        return arrays(average)

    def fresh():
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return network(nn.Identity())

    whole = trained_in("whole", execution, fresh())
    cut = trained_in("cut", dataclasses.replace(execution, minutes=1e-9), fresh())
    assert load_checkpoint(tmp_path / "cut" / "checkpoints")["step"] == 2
    assert any((cut[name] != whole[name]).any() for name in whole)
    resumed = trained_in("cut", execution, fresh(), resume=True)
    assert all((resumed[name] == whole[name]).all() for name in whole)
