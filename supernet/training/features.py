"""All subnets learn a pretrained model's features on images without labels, before they learn from labels.

Each subnet of a timm family gets, in place of its classifier, a linear projection to the features of the largest one,
which holds the pretrained weights. The projection is a shared tensor like any other, sliced with the width of the
features that it takes in, and thrown away afterwards. What is minimised is 1 - cos(P_s f_s(x), f(x)), in the mean over
images, of the largest, the smallest and random subnets s; f is the largest as it was at the beginning, frozen, or any
other network that gives features.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from supernet.conditions import GIVEN, only_where
from supernet.families import Family
from supernet.plain import inputs_like
from supernet.skeleton import without_data
from supernet.space import Arch, SearchSpace
from supernet.supernet import Supernet
from supernet.tasks import Classification, Task
from supernet.training.data import Data, ImageData
from supernet.training.data.batch import Batch
from supernet.training.execution import DEFAULT, Execution
from supernet.training.loop import StepResult
from supernet.training.methods.sampling import Learner, Method, Step
from supernet.training.prepared import prepared
from supernet.training.step import TrainConfig
from supernet.training.train import train

# N images, D features


@dataclass(frozen=True)
class FeatureConfig:
    """What is learnt before labels."""

    unlabelled: str | None = None
    """Folder or tar file of images, labelled or not, on which all subnets first learn the features of the largest one
    with its pretrained weights; by default they learn from labels at once."""
    feature_epochs: Annotated[int, only_where(unlabelled=GIVEN)] = 10
    """Passes over the unlabelled images."""

    def __post_init__(self):
        if self.feature_epochs < 1:
            raise ValueError(f"feature_epochs is at least 1, not {self.feature_epochs}")

    def located(self) -> FeatureConfig:
        """The same with the place of images that are here as an absolute path."""
        here = self.unlabelled is not None and os.path.exists(self.unlabelled)
        return replace(self, unlabelled=os.path.abspath(self.unlabelled)) if here else self


def distil_features(
    family: Family,
    net: Supernet,
    data: Data,
    config: TrainConfig,
    run_dir: Path,
    execution: Execution = DEFAULT,
    *,
    teacher: nn.Module | None = None,
    normalisation: Mapping[str, tuple[float, ...]] = MappingProxyType({}),
    resume: bool = False,
    on_step: Callable[[StepResult], None] = lambda result: None,
    on_begin: Callable[[], None] = lambda: None,
) -> Supernet:
    """Train the subnets of `net`, but for their classifier, on the features [N, D] that `teacher` gives for images, by
    default its largest subnet as it is; returns `net` with the weights that they have then, and with its own
    classifier. A family of one architecture is a student that is distilled alone.

    `normalisation` are the `mean` and `std` of the images that the teacher was trained with, as which it gets those
    that are normalised otherwise; none says that it takes them as they are. `config` says how, by its `random_subnets`
    beside the largest and the smallest. Writes, resumes and raises as `supernet.training.train.train` does. ValueError
    for a family whose modules are not timm's, or of another task than `Classification`.
    """
    largest = net.extract(net.space.largest)
    if not isinstance(family.task, Classification) or not hasattr(largest, "reset_classifier"):
        raise ValueError(
            f"features are what a classifier of timm's takes in, and {type(largest).__name__} has none: leave "
            "unlabelled images out, or name a space of timm's models, such as vit"
        )
    classifier = next(name for name, module in largest.named_modules() if module is largest.get_classifier())
    own = teacher is None
    if teacher is None:
        largest.reset_classifier(0)
        teacher = largest
    example = family.example(net.space.largest)
    size = without_data(teacher, lambda model, device: model(*inputs_like(example, model, device)).shape[-1])
    student = replace(
        family,
        build=partial(_projected, family.build, size),
        num_classes=size,
        task=Features(size, family.task),
        weights=None,
    )
    projected = student.supernet(config.seed)
    known = {name: tensor for name, tensor in net.state_dict().items() if not name.startswith(f"{classifier}.")}
    projection = _projection(projected, classifier) if own else {}
    projected.load_state_dict(projected.state_dict() | projection | known)
    if normalisation and isinstance(data, ImageData):
        wanted = {name: normalisation.get(name, getattr(data.config, name)) for name in ("mean", "std")}
        teacher = prepared(teacher, data.config, family.resolution(net.space.largest), **wanted)
    trained = train(
        student,
        projected,
        data,
        config,
        run_dir,
        replace(execution, eval_epochs=0),
        method=FromTeacher(net.space, config.random_subnets),
        teacher=teacher.eval().requires_grad_(False),
        resume=resume,
        on_step=on_step,
        on_begin=on_begin,
    ).to(next(net.parameters()).device)
    net.load_state_dict(net.state_dict() | {name: trained.state_dict()[name] for name in known})
    return net


def _projected(build: Callable[..., nn.Module], size: int, arch: Arch, **rates: float) -> nn.Module:
    model = build(arch, **rates)
    model.reset_classifier(size)
    return model


def _projection(net: Supernet, classifier: str) -> dict[str, Tensor]:
    """The identity, by which the largest subnet begins with the features that it is to learn."""
    weight, bias = (net.get_parameter(f"{classifier}.{name}") for name in ("weight", "bias"))
    identity = torch.eye(*weight.shape[:2]).view_as(weight)  # a linear layer, or a convolution of 1x1
    return {f"{classifier}.weight": identity, f"{classifier}.bias": torch.zeros_like(bias)}


@dataclass(frozen=True)
class FromTeacher(Method):
    """The largest subnet, random ones and the smallest, or the only one, all taught by the frozen network of `train`
    alone."""

    space: SearchSpace
    random_subnets: int = 2

    def learners(self, step: Step) -> list[Learner]:
        archs = [self.space.largest]
        if self.space.size > 1:
            archs += [*(step.sample(self.space) for _ in range(self.random_subnets)), self.space.smallest]
        return [Learner(arch, "external", label_weight=0.0, regularised=arch == self.space.largest) for arch in archs]


@dataclass(frozen=True)
class Features(Task):
    """Images to the features [N, D] of a teacher, without labels."""

    size: int  # D
    images: Classification  # by which images are prepared

    input_names: ClassVar = ("images",)
    output_names: ClassVar = ("features",)
    uninformed_loss: ClassVar = 1.0  # of directions that have nothing to do with each other

    def inputs(self, batch: Batch, arch: Arch | None) -> tuple[Tensor]:
        return self.images.inputs(batch, arch)

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        raise ValueError("features are learnt from a teacher alone: give learners a label_weight of 0")

    def distil(self, output: Tensor, teacher_output: Tensor, batch: Batch) -> Tensor:
        """The mean over images of 1 - cos(output, teacher_output), 0 to 2; lower is better."""
        return (1 - F.cosine_similarity(output, teacher_output, dim=1)).mean()

    def metrics(self, outputs: Iterable[Tensor], batches: Iterable[Batch]) -> dict[str, float]:
        raise ValueError("what features are worth shows once a classifier has learnt from labels")

    def check_output(self, output: object) -> None:
        if not isinstance(output, Tensor) or output.shape[1:] != (self.size,):
            raise ValueError(f"the model gives {getattr(output, 'shape', output)}, and features are [N, {self.size}]")
