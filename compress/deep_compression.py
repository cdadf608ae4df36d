"""Deep compression: a network is pruned, its weights are clustered, and the centroids tuned (Han et al., ICLR 2016).

What comes out is a plain module of few values, which `compress.container` stores in few bytes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
from torch import nn

from compress.codebooks import clustered
from compress.coding import is_in_steps
from compress.tickets.masks import Scope, magnitude_mask, masked, weights_of
from compress.transforms import fold
from supernet.artifacts.ownership import owned
from supernet.artifacts.subnet import Subnet
from supernet.artifacts.subnet_config import SubnetConfig
from supernet.conditions import ABSENT, GIVEN, only_where
from supernet.training.cohort import train_models
from supernet.training.loop import StepResult
from supernet.training.loop.config import LoopConfig
from supernet.training.standalone import ModelJob, prepare_job

Train = Callable[[nn.Module, LoopConfig, Path], nn.Module]  # a model, how, and the folder of the run


@dataclass(frozen=True)
class CompressConfig:
    """How a network is made smaller. Weights are those of convolutions and linear layers; all else stays as it is."""

    density: float = 1.0
    """Part of the weights that is kept: those of the largest magnitude. What is 0 already stays 0."""
    scope: Scope = "layer"
    """Whether that is the part of each layer, or of all together, by one threshold (global)."""
    prune_rounds: Annotated[int, only_where(post_training=ABSENT)] = 1
    """Rounds of pruning, each followed by a training; the density falls by the same factor in each."""
    bits: int = 5
    """Weights of a layer share 2^bits values; 0 for no codebooks."""
    exclude: tuple[str, ...] = ()
    """Layers that are neither pruned nor clustered, by name."""
    centroid_lr: Annotated[float, only_where(bits=GIVEN, post_training=ABSENT)] = 0.1
    """Learning rate that centroids are tuned by, as a factor of lr: their gradients are sums over many weights. 1 for
    optimizers such as Adam, which scale gradients themselves."""
    float16: bool = True
    """Round to 16 bits what keeps 11 binary digits of its largest values, but for weights in equal steps."""
    post_training: bool = False
    """Train nothing: prune, cluster and round the network as it is."""

    def __post_init__(self):
        if not 0 < self.density <= 1:
            raise ValueError(f"density is the part of the weights that is kept, above 0 to 1, not {self.density}")
        if not 0 <= self.bits <= 8:
            raise ValueError(f"bits is from 1 to 8, or 0 for no codebooks, not {self.bits}")
        if self.prune_rounds < 1 or self.centroid_lr <= 0:
            raise ValueError(
                f"prune_rounds is at least 1 and centroid_lr above 0, not {self.prune_rounds} and {self.centroid_lr}"
            )


@dataclass(frozen=True)
class CompressJob(ModelJob):
    """All that defines a compressed network: the network, images, and how it is trained after each round of pruning
    and with codebooks."""

    compress: CompressConfig = dataclasses.field(default_factory=CompressConfig)

    def __post_init__(self):
        super().__post_init__()
        if self.peers:
            raise ValueError("networks are compressed one at a time: leave out peers and the loss mutual")


def run_compress_job(
    job: CompressJob,
    directory: Path,
    *,
    resume: bool = False,
    on_step: Callable[[StepResult], None] = lambda result: None,
) -> Subnet:
    """The network of `job`, compressed, on the CPU in eval mode; runs of its trainings lie in folders in `directory`.

    Resumes and raises as `supernet.training.standalone.run_model_job` does.
    """
    with owned(directory):
        data, [(own, family, arch, model)], teacher, objective, begin = prepare_job(job, directory, resume)

        def train(model: nn.Module, config: LoopConfig, folder: Path) -> nn.Module:
            (trained,) = train_models(
                [model],
                [family.resolution(arch)],
                data,
                config,
                folder,
                objective,
                teacher,
                execution=job.execution,
                resume=resume,
                on_step=on_step,
                on_begin=begin,
            )
            return trained

        compressed = deep_compression(model, job.compress, job.train, directory, train)
        return Subnet(compressed, SubnetConfig.of(own.space, own.space_options, arch, data))


def deep_compression(
    model: nn.Module, config: CompressConfig, training: LoopConfig, directory: Path, train: Train
) -> nn.Module:
    """`model` in place, or the network that `train` gives for it, pruned, clustered and rounded, on the CPU, in eval
    mode.

    Trainings are by `training`, in prune-1, prune-2, ... and centroids in `directory`.
    """
    if config.post_training:
        config, train = dataclasses.replace(config, prune_rounds=1), _as_it_is
    is_pruned = config.density < 1
    for number in range(1, config.prune_rounds + 1) if is_pruned else ():
        part = config.density ** (number / config.prune_rounds)
        weights = weights_of(model, config.exclude)
        masks = magnitude_mask(weights, 1 - part, config.scope, {name: weight != 0 for name, weight in weights.items()})
        model = fold(train(masked(model, masks), training, directory / f"prune-{number}")).cpu()
    if config.bits:
        clustered(model, dict.fromkeys(weights_of(model, config.exclude), config.bits))
        tuning = dataclasses.replace(training, lr=training.lr * config.centroid_lr)
        model = fold(train(model, tuning, directory / "centroids")).cpu()
    if config.float16:
        round_to_float16(model)
    return model.to("cpu", memory_format=torch.contiguous_format).eval()


@torch.no_grad()
def round_to_float16(model: nn.Module) -> nn.Module:
    """`model`, in place and still in float32, with its tensors rounded to float16, but for those that are in equal
    steps, which take fewer bytes as they are.

    An error is at most 2^-11 of the value or of the largest of its tensor: tensors whose largest value is above 65504
    or, but for 0, below 2^-14 in magnitude stay as they are.
    """
    limits = torch.finfo(torch.float16)
    for tensor in model.state_dict().values():
        if tensor.dtype != torch.float32 or not tensor.numel() or is_in_steps(tensor.cpu().numpy()):
            continue
        if limits.tiny <= tensor.abs().max() <= limits.max:
            tensor.copy_(tensor.half())
    return model


def _as_it_is(model: nn.Module, config: LoopConfig, folder: Path) -> nn.Module:
    return model
