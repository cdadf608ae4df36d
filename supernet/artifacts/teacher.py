"""Frozen networks to learn from, whatever size of images and normalisation they were trained with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import nn

from supernet.artifacts.runs import load_run
from supernet.artifacts.subnet import check_classes, load_network, take_out
from supernet.training.data import DataConfig
from supernet.training.prepared import prepared

# N images, C channels, R resolution in pixels


def load_teacher(
    name: str | Path,
    data: DataConfig,
    classes: Sequence[str],
    weights: str | Path | None = None,
    input_size: int | None = None,
    *,
    by_logits: bool = True,
    space: str | None = None,
    dataset: str | None = None,
) -> nn.Module:
    """A frozen network in eval mode that takes images [N, C, R, R] normalised as `data` says.

    It is the largest subnet of the finished training run in the folder `name`, its BatchNorm recalibrated, or else the
    network that `supernet.artifacts.subnet.load_network` gives for the same arguments. `space` says the space of a
    folder again, and `dataset` the dataset of a run, if these are code of one's own. The network resizes and normalises
    images to what it was trained with, which all that it computes inside follows from.

    ValueError if it tells other classes apart than `classes`, or the same in another order, unless `by_logits` is
    false, so that it teaches by what it computes inside; and if what is in a folder is for images of another size than
    `input_size`, where that is said.
    """
    if (Path(name) / "supernet.safetensors").exists():
        if weights is not None:
            raise ValueError(f"the run in {name} has weights of its own; leave out {weights}")
        run = load_run(Path(name), space=space, dataset=dataset)
        model, config = take_out(run, run.family.space.largest)
    else:
        model, config = load_network(name, data, classes, weights, input_size, space=space)
    if by_logits:
        check_classes(f"the teacher {name}", config.classes, classes)
    if config.input_size is None:
        raise ValueError(f"the teacher {name} takes no images, but {', '.join(config.input_names)}")
    if input_size not in (None, config.input_size[-1]):
        raise ValueError(f"the teacher {name} is for images of {config.input_size[-1]} pixels, not {input_size}")
    return prepared(model.eval(), data, config.input_size[-1], config.mean, config.std)
