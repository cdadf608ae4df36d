"""How any network is trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from supernet.conditions import GIVEN, only_where


@dataclass(frozen=True)
class LoopConfig:
    """How any network is trained: what its weights follow from, beside the images."""

    epochs: int = 30
    """Passes over the training images."""
    max_steps: int | None = None
    """Steps after which training ends, if that is before the epochs do; the schedule stays that of all epochs."""
    patience: int | None = None
    """Evaluations, which come every eval_epochs, without a better first metric after which training ends likewise."""
    batch_size: int = 64
    """Images a step, over all processes together."""
    opt: str = "sgd"
    """timm's name of the optimizer; sgd has Nesterov momentum."""
    lr: float = 0.1
    """Peak learning rate for 256 images a step; it is scaled by batch_size / 256."""
    scale_lr: bool = True
    """Whether lr and min_lr are scaled like that; otherwise they are for steps of any size."""
    momentum: float = 0.9
    """Momentum, for optimizers that have it."""
    weight_decay: float = 1e-5
    """Weight decay of weights with two and more dimensions; BatchNorm and biases have none."""
    decay_all: bool = False
    """Whether all parameters have weight decay nevertheless."""
    sched: Literal["cosine", "step", "poly", "range"] = "cosine"
    """timm's name of the schedule of the learning rate, updated every step; range grows exponentially from min_lr in
    the first step to lr in the last, without warm-up, to find a learning rate by (--find-lr)."""
    warmup_epochs: Annotated[float | None, only_where(sched=("cosine", "step", "poly"))] = None
    """Epochs in which the learning rate grows linearly from zero; by default a twentieth of all, and at most 5."""
    decay_rate: Annotated[float, only_where(sched=("step", "poly"))] = 0.1
    """Factor of each decay of the schedule step; exponent of the schedule poly, where 1 is linear."""
    decay_epochs: Annotated[float, only_where(sched=("step",))] = 30.0
    """Epochs between the decays of the schedule step."""
    min_lr: float = 0.0
    """Learning rate, before scaling, that the schedule ends in (cosine, poly) or stops falling at (step)."""
    label_smoothing: float = 0.1
    """Part of the true label's probability that is spread over all classes; in a supernet for the
    largest subnet."""
    class_weights: bool = False
    """Weigh the loss so that each class has the same part in it, however few its images are."""
    mixup: float = 0.0
    """Mix images and labels of two by a part from the beta distribution with this parameter (Mixup); 0 for none."""
    cutmix: float = 0.0
    """Put a part of another image into each likewise (CutMix); 0 for none. With both, each half of the time."""
    mix_prob: float = 1.0
    """Part of the steps whose images are mixed, if any are."""
    drop_rate: float = 0.0
    """Dropout before the classifier; in a supernet for the largest subnet."""
    drop_path_rate: float = 0.0
    """Stochastic depth of the last block, growing linearly over the blocks; in a supernet for the
    largest subnet."""
    clip: float | None = None
    """Limit of the gradient, in the sense of clip_mode; none by default."""
    clip_mode: Annotated[Literal["norm", "value"], only_where(clip=GIVEN)] = "norm"
    """Whether the norm of all gradients together is limited, or every entry by itself."""
    ema_decay: float | None = None
    """Decay a step of an exponential moving average of the weights, which is then what is evaluated and kept."""
    seed: int = 0
    """All that is random follows from it: initial weights, order and augmentation of images, subnets, dropout."""

    def __post_init__(self):
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is at least 1, not {getattr(self, name)}")
        for name in ("drop_rate", "drop_path_rate", "label_smoothing"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is from 0 to below 1, not {getattr(self, name)}")
        for name in ("max_steps", "patience"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"{name} is above 0, or none, not {value}")
        if min(self.mixup, self.cutmix) < 0 or not 0 <= self.mix_prob <= 1:
            raise ValueError(
                f"mixup and cutmix are 0 or more and mix_prob a probability, not {self.mixup}, {self.cutmix} and "
                f"{self.mix_prob}"
            )
        if self.mix_prob != 1 and not (self.mixup or self.cutmix):
            raise ValueError(f"mix_prob is that of mixup or cutmix, and there is neither: leave {self.mix_prob:g} out")
        if self.seed < 0:
            raise ValueError(f"seed is 0 or more, not {self.seed}")
        if self.lr <= 0:
            raise ValueError(f"lr is above 0, not {self.lr}")
        if not 0 <= self.warmup <= self.epochs:
            raise ValueError(
                f"warmup_epochs is from 0 to the {self.epochs} epochs, or None for a part of them, not "
                f"{self.warmup_epochs}"
            )
        if self.sched == "range" and self.min_lr <= 0:
            raise ValueError(f"the schedule range grows from a min_lr above 0, not from {self.min_lr}")
        if self.clip is not None and self.clip <= 0:
            raise ValueError(f"clip is above 0, or none, not {self.clip}")
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise ValueError(f"ema_decay is between 0 and 1, not {self.ema_decay}")

    @property
    def warmup(self) -> float:
        """`warmup_epochs`, or what stands for None."""
        return min(self.epochs / 20, 5.0) if self.warmup_epochs is None else self.warmup_epochs

    def scaled(self, lr: float) -> float:
        """The learning rate `lr` for 256 images a step as it is for a step of this size."""
        return lr * self.batch_size / 256 if self.scale_lr else lr
