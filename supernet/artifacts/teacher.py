"""Frozen networks to learn from: of images whatever size and normalisation they were trained with, of texts with the
tokenizer of the student."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from torch import nn

from supernet.artifacts.runs import load_run
from supernet.artifacts.subnet import check_classes, load_network, take_out
from supernet.tasks import Classification
from supernet.training.data import DataConfig
from supernet.training.prepared import prepared

# N images, C channels, R resolution in pixels

IMAGES = tuple(Classification.input_names)


def load_teacher(
    name: str | Path,
    data: DataConfig,
    classes: Sequence[str] | None,
    weights: str | Path | None = None,
    input_size: int | None = None,
    *,
    by_logits: bool = True,
    space: str | None = None,
    dataset: str | None = None,
    inputs: Sequence[str] = IMAGES,
    files: Mapping[str, str] = MappingProxyType({}),
) -> nn.Module:
    """A frozen network in eval mode that takes images [N, C, R, R] normalised as `data` says, or other `inputs`.

    It is the largest subnet of the finished training run in the folder `name`, its BatchNorm recalibrated, or else the
    network that `supernet.artifacts.subnet.load_network` gives for the same arguments. `space` says the space of a
    folder again, and `dataset` the dataset of a run, if these are code of one's own. The network resizes and normalises
    images to what it was trained with, which all that it computes inside follows from. Of other inputs than images,
    `files` are what whoever uses the network needs besides, such as a tokenizer (`Data.files`), and `classes` are None
    where there are none.

    ValueError if it takes other inputs or goes with other files; if it tells other classes apart than `classes`, or the
    same in another order, unless `by_logits` is false, so that it teaches by what it computes inside; and if what is in
    a folder is for images of another size than `input_size`, where that is said.
    """
    if tuple(inputs) != IMAGES and not Path(name).is_dir():
        raise ValueError(
            f"the teacher {name} is no folder, and models of timm's take images, where what is taught takes "
            f"{' and '.join(inputs)}: name the folder of a run or of a subnet with such data"
        )
    if (Path(name) / "supernet.safetensors").exists():
        if weights is not None:
            raise ValueError(f"the run in {name} has weights of its own; leave out {weights}")
        run = load_run(Path(name), space=space, dataset=dataset)
        model, config = take_out(run, run.family.space.largest)
        own_files = dict(run.data.files())
    else:
        model, config = load_network(name, data, classes or (), weights, input_size, space=space)
        paths = {file: Path(name) / file for file in files}
        own_files = {file: path.read_text(encoding="utf-8") for file, path in paths.items() if path.exists()}
    taken = IMAGES if config.input_size else config.input_names
    if tuple(inputs) != taken:
        raise ValueError(
            f"the teacher {name} takes {' and '.join(taken) or 'no plain tensors'}, where what is taught takes "
            f"{' and '.join(inputs)}: name the folder of a run or of a subnet with such data"
        )
    if differing := [file for file, content in files.items() if own_files.get(file) != content]:
        raise ValueError(
            f"the teacher {name} was trained with another {differing[0]}: train it on the same dataset, with the same "
            "options"
        )
    if by_logits and classes is not None:
        check_classes(f"the teacher {name}", config.classes, classes)
    if config.input_size is None:
        return model.eval().requires_grad_(False)
    if input_size not in (None, config.input_size[-1]):
        raise ValueError(f"the teacher {name} is for images of {config.input_size[-1]} pixels, not {input_size}")
    return prepared(model.eval(), data, config.input_size[-1], config.mean, config.std)
