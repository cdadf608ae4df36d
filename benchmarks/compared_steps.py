"""A sandwich step of the supernet, and the same four plain models' step, on one batch of random images."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

import numpy as np
import torch
from torch.nn import functional as F

from distill.losses import kl_divergence
from supernet import Supernet
from supernet.families import FAMILIES, Family
from supernet.supernet import StandIn
from supernet.tasks import Classification
from supernet.training.execution import Execution
from supernet.training.methods import sampling
from supernet.training.methods.sampling import Learner, Sandwich
from supernet.training.pieces import ways_of
from supernet.training.step import TrainConfig, TrainStep

Precision = Literal["fp32", "bf16"]
Way = Literal["eager", "graphs", "compile"]


class Step:
    """The steps that are compared, on one batch of random images; those of the supernet in each of `ways`."""

    def __init__(
        self,
        space: str,
        resolution: int,
        batch_size: int,
        random_subnets: int = 2,
        device: str = "cpu",
        precision: Precision = "fp32",
        ways: Sequence[Way] = ("eager",),
        **options: float,
    ) -> None:
        self.family: Family = FAMILIES[space](**options)
        self.device, self.precision = torch.device(device), precision
        self.net: Supernet = self.family.supernet().to(self.device, memory_format=torch.channels_last).train()
        self.execution = Execution(amp="bf16" if precision == "bf16" else "none")
        self.method = Sandwich(self.net.space, random_subnets)
        self.task = Classification(resolution=lambda arch: resolution)
        draw = torch.Generator().manual_seed(0)
        images = torch.randn(batch_size, 3, resolution, resolution, generator=draw)
        images = images.to(self.device, memory_format=torch.channels_last)
        self.batch = images, torch.randint(self.family.num_classes, (batch_size,), generator=draw).to(self.device)
        self.stand_ins: dict[Way, StandIn | None] = {}
        for way in ways:
            with ways_of(Execution(step=way), self.device).step() as self.stand_ins[way]:
                pass
        for index in range(100):  # as in the first dozens of steps of a training the pieces of subnets get known
            self.net.skeleton(self.net.space.sample(np.random.default_rng([1, index])))

    def learners(self, step: int) -> list[Learner]:
        draw = np.random.default_rng(step)
        return self.method.learners(sampling.Step(step, 0, 0.0, draw, self.net, self.batch, self.task, self.net, 0.1))

    def shared(self, learners: list[Learner], way: Way = "eager") -> None:
        self.net.zero_grad()
        stand_in = None if way == "eager" else self.stand_ins[way]
        step = TrainStep(self.net, self.task, TrainConfig(), execution=self.execution, stand_in=stand_in)
        step(self.batch, learners)

    def plain_models(self, learners: list[Learner]) -> list[torch.nn.Module]:
        return [self.net.extract(learner.arch) for learner in learners]

    def seconds(self, run: Callable[[], None]) -> float:
        self._wait()
        begun = time.perf_counter()
        run()
        self._wait()
        return time.perf_counter() - begun

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


class GraphFloor:
    """The plain models' step as CUDA graphs, one a model: what remains where launching kernels costs nothing."""

    def __init__(
        self, models: list[torch.nn.Module], images: torch.Tensor, labels: torch.Tensor, precision: Precision
    ) -> None:
        with torch.no_grad():
            logits = torch.randn_like(models[0](images))  # as if they were the first one's
        self._graphs = []
        for index, model in enumerate(models):
            run = partial(self._train, model, images, labels, None if index == 0 else logits, precision)
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(3):
                    run()
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                run()
            self._graphs.append(graph)

    def __call__(self) -> None:
        for graph in self._graphs:
            graph.replay()

    @staticmethod
    def _train(
        model: torch.nn.Module,
        images: torch.Tensor,
        labels: torch.Tensor,
        logits: torch.Tensor | None,
        precision: Precision,
    ) -> None:
        model.zero_grad()
        with torch.autocast("cuda", torch.bfloat16, enabled=precision == "bf16", cache_enabled=False):
            output = model(images)
        output = output.float()
        if logits is None:
            F.cross_entropy(output, labels, label_smoothing=0.1).backward()
        else:
            kl_divergence(output, logits).backward()


def train_plain(
    models: list[torch.nn.Module], images: torch.Tensor, labels: torch.Tensor, precision: Precision
) -> None:
    """The first model learns from the labels, the others from the first's logits."""
    logits = None
    for model in models:
        model.zero_grad()
        with torch.autocast(images.device.type, torch.bfloat16, enabled=precision == "bf16"):
            output = model(images)
        output = output.float()
        if logits is None:
            F.cross_entropy(output, labels, label_smoothing=0.1).backward()
            logits = output.detach()
        else:
            kl_divergence(output, logits).backward()
