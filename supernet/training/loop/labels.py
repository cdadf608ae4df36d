"""What training makes of labels: weights of classes that are rare, and images that are mixed of two classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from timm.data import Mixup

from supernet.tasks import Classification, Task
from supernet.training import distributed
from supernet.training.data import Data, ImageData
from supernet.training.data.batch import Batch
from supernet.training.loop.config import LoopConfig
from supernet.training.randomness import Stream, global_seeds

# N images, C channels, R resolution in pixels, K classes


def with_class_weights(task: Task, config: LoopConfig, data: Data) -> Task:
    """`task` with the weights of classes that `config` asks for; ValueError where there are no labels to count."""
    if not config.class_weights:
        return task
    labels = data.training_labels() if isinstance(data, ImageData) else None
    if not isinstance(task, Classification) or labels is None:
        raise ValueError("class_weights are for images whose labels the dataset tells: leave them out")
    return replace(task, class_weights=balanced_weights(np.bincount(labels, minlength=data.num_classes)))


def balanced_weights(counts: Sequence[int]) -> tuple[float, ...]:
    """Weights [K] of classes of so many examples, by which each class has the same part in the loss and examples have
    the weight 1 on average: sum(counts) / (K' count) of the K' classes that have any, and 0 of the others."""
    counts = np.asarray(counts, dtype=float)
    share = counts.sum() / np.count_nonzero(counts)
    return tuple(float(share / count) if count else 0.0 for count in counts)


class Mixing:
    """Mixup (Zhang et al., arXiv 1710.09412) and CutMix (Yun et al., arXiv 1905.04899) of a step's images, by timm.

    One mixture a step and process, of each image with the one as far from the other end of the batch; where both are
    asked for, each half of the time. What is drawn follows from seed, step and process. ValueError for a task without
    classes, and for a batch of an odd number of images in each process.
    """

    def __init__(self, config: LoopConfig, task: Task) -> None:
        self._seed, self._mixup = config.seed, None
        if not (config.mixup or config.cutmix):
            return
        if not isinstance(task, Classification) or task.num_classes is None:
            raise ValueError(f"mixup and cutmix mix images of classes, which {type(task).__name__} has not: leave them")
        if config.batch_size // distributed.world_size() % 2:
            raise ValueError(f"mixup and cutmix take an even number of images a process, not of {config.batch_size}")
        # label smoothing, of the largest subnet alone say, is the loss's
        options = {"prob": config.mix_prob, "label_smoothing": 0.0, "num_classes": task.num_classes}
        self._mixup = Mixup(config.mixup, config.cutmix, **options)

    def __call__(self, step: int, batch: Batch) -> Batch:
        """The batch of `step`, images [N, C, R, R] with labels [N], as mixed images with probabilities [N, K]; itself
        if nothing is to be mixed."""
        if self._mixup is None:
            return batch
        images, labels, *others = batch
        if others:
            raise ValueError("mixup and cutmix mix no labels of a second task: leave them or second_labels out")
        with global_seeds(self._seed, Stream.MIXING, step, distributed.rank()):
            return self._mixup(images.clone(), labels)
