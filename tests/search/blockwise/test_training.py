"""Blocks trained by the loop: their steps written out in plain torch, together, apart, interrupted and on Ray."""

import dataclasses
import json
import os
import re
import signal
from collections import OrderedDict
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from distill.blockwise import Teacher, relative_error
from search.blockwise.blocks import Block
from search.blockwise.features import Feature
from search.blockwise.training import BlockwiseConfig, on_workers, train_blocks
from supernet import SearchSpace, Supernet
from supernet.training.data import DataConfig, load_data
from supernet.training.data.batch import on
from supernet.training.execution import Execution
from supernet.training.loop.checkpoint import load_checkpoint
from supernet.training.loop.divergence import TrainingError
from supernet.training.randomness import Stream, part_seed

STEPS, BATCH, SEED = 6, 16, 3  # two epochs of three steps
SPACE = SearchSpace({"kernel_size": (1, 3)})
CONFIG = BlockwiseConfig(epochs=2, batch_size=BATCH, lr=0.01, decay=0.5, weight_decay=0.1, clip=0.02, ema_decay=0.7)
EXECUTION = Execution("cpu", eval_epochs=0, log_steps=1, checkpoint_steps=2)


def convolution(in_chs, out_chs, arch):
    return nn.Sequential(
        OrderedDict(
            conv=nn.Conv2d(in_chs, out_chs, arch["kernel_size"], padding="same"),
            bn=nn.BatchNorm2d(out_chs),
            dropout=nn.Dropout(0.2),
        )
    )


def make_blocks():
    """Blocks of three channels to four to five."""
    return {
        index: Block(
            f"stage.{index}",
            Feature(str(index), index + 4, (8, 8)),
            frozenset(["kernel_size"]),
            Supernet(SPACE, partial(convolution, index + 3, index + 4), seed=index),
        )
        for index in range(2)
    }


@pytest.fixture(scope="module")
def data():
    whole = load_data(DataConfig(crop_pct=1.0))
    return dataclasses.replace(whole, train=torch.utils.data.Subset(whole.train, range(STEPS // 2 * BATCH)))


@pytest.fixture(scope="module")
def teacher():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 5, 3, padding=1))
    return Teacher(model, ("0", "1"))


def train(data, teacher, directory, *, blocks=None, config=CONFIG, execution=EXECUTION, **callbacks):
    """The weights of two blocks after a training in `directory`."""
    blocks = make_blocks() if blocks is None else blocks
    return train_blocks(blocks, teacher, data, 8, config.for_loop(SEED), directory, execution, **callbacks)


def losses(directory):
    """Of each step and block."""
    return [json.loads(line)["losses"] for line in (directory / "metrics.jsonl").read_text().splitlines()]


def same(found, expected):
    assert found.keys() == expected.keys()
    for index, weights in expected.items():
        assert found[index].keys() == weights.keys()
        assert all(torch.equal(found[index][name], tensor) for name, tensor in weights.items())


@pytest.mark.parametrize("ema_decay", [0.7, None])
def test_steps_are_those_written_out(data, teacher, tmp_path, ema_decay):
    config = dataclasses.replace(CONFIG, ema_decay=ema_decay)
    draws = part_seed(SEED, Stream.PATHS)
    expected, clipped = {}, 0
    for index, block in make_blocks().items():
        net = block.net.train().to(memory_format=torch.channels_last)
        average = {name: tensor.clone() for name, tensor in net.state_dict().items()}
        optimizer = torch.optim.Adam(net.parameters(), 0.01, weight_decay=0.1)
        for step, batch in enumerate(data.training_batches(8, BATCH, SEED, range(STEPS))):
            images, _ = on(torch.device("cpu"), batch, torch.channels_last)
            features = [images, *teacher(images)]
            path = SPACE.sample(np.random.default_rng([draws, index, step]))
            for group in optimizer.param_groups:
                group["lr"] = 0.01 * 0.5 ** (step // 3)
            with torch.random.fork_rng():
                torch.manual_seed(part_seed(SEED, Stream.DROPOUT, step, 0, index))
                output = net(features[index], path)
            optimizer.zero_grad()
            relative_error(output, features[index + 1]).backward()
            clipped += nn.utils.clip_grad_norm_(net.parameters(), 0.02).item() > 0.02
            optimizer.step()
            for name, tensor in net.state_dict().items():
                if tensor.is_floating_point() and ema_decay:
                    average[name].lerp_(tensor, 1 - (ema_decay if step > 1 else 0.0))  # as timm's average begins
                else:
                    average[name].copy_(tensor)
        expected[index] = average
    assert clipped
    same(train(data, teacher, tmp_path, config=config), expected)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["lr"] for line in lines] == [0.01] * 3 + [0.005] * 3


def test_blocks_train_alike_together_and_apart(data, teacher, tmp_path):
    together = train(data, teacher, tmp_path / "together")
    blocks = make_blocks()
    apart = [train(data, teacher, tmp_path / str(i), blocks={i: blocks[i]}) for i in (1, 0)]
    same({**apart[1], **apart[0]}, together)


def test_blocks_draw_their_paths_apart(data, teacher, tmp_path):
    paths = {index: [] for index in range(2)}

    class Noted(Supernet):
        def forward(self, x, path, **options):
            paths[self.index].append(path)
            return super().forward(x, path, **options)

    blocks = make_blocks()
    for index, block in blocks.items():
        net = Noted(SPACE, block.net.build)
        net.index = index
        blocks[index] = dataclasses.replace(block, net=net)
    config = dataclasses.replace(CONFIG, epochs=14, lr=1e-6, ema_decay=None)
    train(data, teacher, tmp_path, blocks=blocks, config=config)
    assert set(paths[0]) == set(paths[1]) == set(SPACE)
    alike = sum(a == b for a, b in zip(paths[0], paths[1], strict=True))
    assert 9 <= alike <= 33  # of 42: a half, and a standard deviation of 3


class Killed(Exception):
    pass


def kill_at(step):
    def kill(result):
        if result.step == step:
            raise Killed

    return kill


@pytest.mark.parametrize("amp", ["none", "bf16", "fp16"])
def test_interrupted_training_ends_in_the_same_weights(data, teacher, tmp_path, amp):
    execution = dataclasses.replace(EXECUTION, amp=amp)
    expected = train(data, teacher, tmp_path / "whole", execution=execution)
    with pytest.raises(Killed):
        train(data, teacher, tmp_path / "resumed", execution=execution, on_step=kill_at(5))
    state = load_checkpoint(tmp_path / "resumed" / "checkpoints")
    assert state["step"] == 4
    assert ("scaler" in state) == (amp == "fp16")
    same(train(data, teacher, tmp_path / "resumed", execution=execution), expected)
    metrics = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("whole", "resumed")]
    assert metrics[0] == metrics[1]
    same(train(data, teacher, tmp_path / "resumed", execution=execution, on_step=kill_at(6)), expected)  # it is done


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_forward_passes_are_in_lower_precision(data, teacher, tmp_path, amp):
    for name in ("none", amp):
        train(data, teacher, tmp_path / name, execution=dataclasses.replace(EXECUTION, amp=name))
    full, rounded = (losses(tmp_path / name)[0] for name in ("none", amp))
    assert rounded != full
    assert rounded == pytest.approx(full, rel=0.01)


def test_a_block_that_diverges_is_named(data, teacher, tmp_path):
    blocks = make_blocks()

    def spoil(result):
        with torch.no_grad():
            blocks[1].net.bn.weight.fill_(1e4)

    message = (
        r"^the training has diverged: the loss is .* in step 6 for block 1, which ends with stage\.1, .*; lower lr"
    )
    with pytest.raises(TrainingError, match=message):
        train(data, teacher, tmp_path, blocks=blocks, on_step=spoil)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": 0}, "epochs is at least 1, not 0"),
        ({"lr": 0}, "lr is above 0, not 0"),
        ({"decay": 0}, "decay is from above 0 to 1, not 0"),
        ({"clip": -1.0}, "clip is above 0, or none, not -1.0"),
        ({"ema_decay": 1.0}, "ema_decay is between 0 and 1, not 1.0"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        BlockwiseConfig(**settings)


def test_workers_that_die_go_on_to_the_same_weights(data, teacher, tmp_path):
    expected = train(data, teacher, tmp_path / "here")
    blocks = make_blocks()

    def die_once(result):
        if result.step == 5 and not (tmp_path / "died").exists():
            (tmp_path / "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)

    trainings = [
        partial(train, data, teacher, tmp_path / str(index), blocks={index: block}, on_step=die_once)
        for index, block in blocks.items()
    ]
    found = on_workers(trainings, workers=2)
    assert (tmp_path / "died").exists()
    same({**found[0], **found[1]}, expected)
    both, first, second = (losses(tmp_path / name) for name in ("here", "0", "1"))
    assert both == [[*a, *b] for a, b in zip(first, second, strict=True)]


@pytest.mark.exhaustive  # workers that die are tested
def test_what_a_worker_raises_is_raised_here(data, teacher, tmp_path):
    blocks = make_blocks()
    with torch.no_grad():
        blocks[1].net.bn.weight.fill_(float("nan"))
    with pytest.raises(TrainingError, match=r"^the loss is nan in step 1 for block 1, which ends with stage\.1;"):
        on_workers([partial(train, data, teacher, tmp_path, blocks=blocks)], workers=1)


@pytest.mark.exhaustive  # a cluster of its own
def test_a_worker_that_dies_again_and_again_ends_in_a_line(monkeypatch):
    monkeypatch.setattr("search.blockwise.training.RETRIES", 0)
    with pytest.raises(ChildProcessError, match=r"a worker that trains blocks died 1 times .*; start the search again"):
        on_workers([lambda: os.kill(os.getpid(), signal.SIGKILL)], workers=1)
