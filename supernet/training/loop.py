"""What every training here has in common: settings, and all of the loop but the gradients."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, Protocol

import torch
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from torch import Tensor, nn

from supernet.artifacts.atomic import set_aside
from supernet.tasks import Classification, Task
from supernet.training import distributed
from supernet.training.average import MovingAverage
from supernet.training.checkpoint import Interval, load_checkpoint, save_checkpoint
from supernet.training.data import Data
from supernet.training.data.batch import Batch, on
from supernet.training.divergence import Divergence, Watch
from supernet.training.execution import Execution, channels_last, computes_ahead, pick_device
from supernet.training.metrics import Metrics, scalars
from supernet.training.randomness import Stream, torch_seed

logger = logging.getLogger(__name__)

CLASSIFICATION = Classification()


@dataclass(frozen=True)
class LoopConfig:
    """How any network is trained: what its weights follow from, beside the images."""

    epochs: int = 30
    """Passes over the training images."""
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
    sched: Literal["cosine", "step", "poly"] = "cosine"
    """timm's name of the schedule of the learning rate, updated every step."""
    warmup_epochs: float = 1.0
    """Epochs in which the learning rate grows linearly from zero."""
    decay_rate: float = 0.1
    """Factor of each decay of the schedule step; exponent of the schedule poly, where 1 is linear."""
    decay_epochs: float = 30.0
    """Epochs between the decays of the schedule step."""
    min_lr: float = 0.0
    """Learning rate, before scaling, that the schedule ends in (cosine, poly) or stops falling at (step)."""
    label_smoothing: float = 0.1
    """Part of the true label's probability that is spread over all classes; in a supernet for the
    largest subnet."""
    drop_rate: float = 0.0
    """Dropout before the classifier; in a supernet for the largest subnet."""
    drop_path_rate: float = 0.0
    """Stochastic depth of the last block, growing linearly over the blocks; in a supernet for the
    largest subnet."""
    clip: float | None = None
    """Limit of the gradient, in the sense of clip_mode; none by default."""
    clip_mode: Literal["norm", "value"] = "norm"
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
        if self.seed < 0:
            raise ValueError(f"seed is 0 or more, not {self.seed}")
        if self.lr <= 0:
            raise ValueError(f"lr is above 0, not {self.lr}")
        if not 0 <= self.warmup_epochs <= self.epochs:
            raise ValueError(f"warmup_epochs is from 0 to the {self.epochs} epochs, not {self.warmup_epochs}")
        if self.clip is not None and self.clip <= 0:
            raise ValueError(f"clip is above 0, or none, not {self.clip}")
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise ValueError(f"ema_decay is between 0 and 1, not {self.ema_decay}")

    def scaled(self, lr: float) -> float:
        """The learning rate `lr` for 256 images a step as it is for a step of this size."""
        return lr * self.batch_size / 256 if self.scale_lr else lr


class StepResult(NamedTuple):
    """What a step did, for logs and progress bars."""

    step: int  # counted from 1
    steps: int  # in the whole training
    losses: list[float] | None  # those in metrics.jsonl, every `execution.log_steps` steps
    lr: float


class Stateful(Protocol):
    """Something that changes in training, and goes on from what it was."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any]) -> object: ...


class Loop:
    """Trains `net` by gradients that the caller computes::

        loop = Loop(net, data, config, run_dir, evaluate, execution)
        for step, batch in loop.batches(resolution):
            ...  # a forward pass, and a backward pass of loop.scale(loss)
            loop.update(step, losses, names)
            loop.finish(step, {"losses": losses})
        return loop.result

    `evaluate` gives the metrics, by name, to be noted every `execution.eval_epochs`, of the network to use. `kept` is
    what checkpoints hold besides network, optimizer and moving average, by name. `parts` are the equal parts of its
    batch that a process runs one after another. `task` says what a batch is, and the loss of a network that knows
    nothing unless `uninformed` does, which tells a diverged training (`supernet.training.divergence`). Where
    `distributed.joined` has joined processes, all of them do this, and evaluate, and the first one reads, writes and
    calls `on_step`.

    Writes `run_dir/checkpoints/` and `run_dir/metrics.jsonl`, nothing of it before the first step is done, and calls
    `on_begin` just before. What an earlier training left there is kept beside it, as checkpoints.1 and metrics.jsonl.1,
    if this one begins anew. With `resume` it goes on from the newest readable
    checkpoint, if any, and ends in the same weights as a run that was never interrupted: bit for bit on one CPU thread,
    and on several as far as the math library keeps the order of its sums (MKL may not on a busy machine).

    ValueError if the batch does not split into processes and parts, for a device that this machine does not have, and
    for checkpoints of another network or of other settings.
    """

    def __init__(
        self,
        net: nn.Module,
        data: Data,
        config: LoopConfig,
        run_dir: Path,
        evaluate: Callable[[Any], Mapping[str, Any]],
        execution: Execution,
        *,
        task: Task = CLASSIFICATION,
        kept: Mapping[str, Stateful] = MappingProxyType({}),
        parts: int = 1,
        resume: bool = False,
        on_step: Callable[[StepResult], None] = lambda result: None,
        on_begin: Callable[[], None] = lambda: None,
        uninformed: float | None = None,
    ) -> None:
        self.device = pick_device(execution.device)
        processes = distributed.world_size()
        if config.batch_size % (processes * parts):
            raise ValueError(
                f"a batch of {config.batch_size} does not split into {processes * parts} equal parts, for {processes} "
                f"processes that do {parts} one after another"
            )
        self.execution = execution
        self.net = self.place(net).train()
        self._data, self._task, self._config, self._kept = data, task, config, kept
        self._evaluate, self._on_step, self._on_begin = evaluate, on_step, on_begin
        self.steps_per_epoch = data.steps_per_epoch(config.batch_size)
        self.optimizer, self._scheduler = make_optimizer(net, config, self.steps_per_epoch)
        self._scaler = torch.amp.GradScaler(self.device.type, enabled=execution.amp == "fp16")
        self.ema = MovingAverage(net, config.ema_decay) if config.ema_decay else None
        self._divergence = Divergence(task.uninformed_loss if uninformed is None else uninformed)
        self._watch = Watch(self._divergence, late=computes_ahead(self.device))
        self._checkpoints = run_dir / "checkpoints"
        start = self._restore() if resume else 0
        self.steps = range(start, config.epochs * self.steps_per_epoch)  # those still to do
        self._interval = Interval(execution.checkpoint_minutes)
        self._metrics = Metrics(run_dir, start, execution.tensorboard) if distributed.rank() == 0 else None

    @property
    def result(self) -> nn.Module:
        """The network to use: the moving average if there is one, otherwise `net` itself."""
        return self.ema.module if self.ema else self.net

    @property
    def lr(self) -> float:
        """The learning rate of this step."""
        return self.optimizer.param_groups[0]["lr"]

    def place(self, module: nn.Module) -> nn.Module:
        """`module`, moved to where and in the memory format in which the training is."""
        if self.execution.channels_last:
            return channels_last(module.to(self.device))
        return module.to(self.device, memory_format=torch.contiguous_format)

    def scale(self, loss: Tensor) -> Tensor:
        """What is to be differentiated in the place of `loss`: in fp16 a multiple of it, where small gradients would be
        0, and otherwise itself."""
        return self._scaler.scale(loss)

    def seeded(self, step: int, *place: int) -> AbstractContextManager[None]:
        """The context of a step's forward passes, or of those of a `place` in it: what dropout draws follows from seed,
        step, process and place."""
        return torch_seed(self.device, self._config.seed, Stream.DROPOUT, step, distributed.rank(), *place)

    def batches(self, resolution: int | None) -> Iterator[tuple[int, Batch]]:
        """Each step still to do, counted from 0, with this process's part of its batch.

        It is on the device, the learning rate is set, and there are no gradients. ValueError for a batch that the task
        does not take.
        """
        config = self._config
        batches = self._data.training_batches(
            resolution, config.batch_size, config.seed, self.steps, distributed.rank(), distributed.world_size()
        )
        for step, batch in zip(self.steps, batches):
            self._task.check_batch(batch)
            set_lr(self.optimizer, self._scheduler, config, step, self.steps_per_epoch)
            self.optimizer.zero_grad()
            yield step, on(self.device, batch, self.execution.memory_format)
        if self._metrics:
            self._metrics.close()
        distributed.share(  # those that were saved are those of the first process
            [*self.net.buffers(), *(self.ema.module.buffers() if self.ema else ())]
        )

    def update(self, step: int, losses: Tensor, names: Sequence[object]) -> None:
        """Descend by the gradients, averaged over all processes and clipped.

        `losses` [L] gave them, `names` [L] say of what. TrainingError, naming step and name, if a loss or gradient is
        not finite, or if the training has diverged: the weights of the step before are not touched on a CPU; on a GPU
        the error comes with the next step, or before the weights are evaluated or saved. In fp16 a gradient that is not
        finite, in any process, skips the step in all of them and halves the scale, as long as that is above 1.
        """
        self._watch.look()  # before anything that all processes do together
        distributed.average_gradients(self.net.parameters())
        self._scaler.unscale_(self.optimizer)
        norm = clip_gradients(self.net, self._config)
        scale = self._scaler.get_scale()  # 1 but in fp16
        means = distributed.average(losses.detach().clone())
        self._watch.note(step, means, norm, names, may_overflow=scale > 1, is_last=step + 1 == self.steps.stop)
        self._scaler.step(self.optimizer)
        self._scaler.update()
        if self.ema and self._scaler.get_scale() >= scale:
            self.ema.update(self.net, step)

    def finish(self, step: int, losses: Mapping[str, Any]) -> None:
        """Write, evaluate and report what is due after a step; `losses` are tensors by name, or mappings of such."""
        execution, done = self.execution, step + 1
        is_last = done == self.steps.stop
        every = execution.eval_epochs * self.steps_per_epoch
        is_evaluated = every and (is_last or done % every == 0)
        if not self._metrics:
            if is_evaluated:
                self._metrics_of(step)
            return
        logged = None
        if step == self.steps.start:
            self._on_begin()
            if not step and (aside := set_aside(self._checkpoints)):
                logger.warning("the checkpoints of an earlier training are now in %s", aside)
        is_logged = done % execution.log_steps == 0 or is_last
        is_kept = done % execution.checkpoint_steps == 0 or is_last or self._interval.due
        if is_logged or is_kept:
            self._watch.look()
        if is_logged:
            values = _numbers(losses)
            self._metrics.append({"step": done, "epoch": done / self.steps_per_epoch, "lr": self.lr, **values})
            logged = [value for _, value in scalars(values)]
        if is_evaluated:
            line = {"step": done, **self._metrics_of(step)}
            self._metrics.append(line)
            if is_last:
                self._look_at(line)
        if is_kept:
            state = {
                "net": self.net.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "ema": self.ema and self.ema.state_dict(),
                "divergence": self._divergence.state_dict(),
                **({"scaler": self._scaler.state_dict()} if self._scaler.is_enabled() else {}),
                **{name: kept.state_dict() for name, kept in self._kept.items()},
            }
            save_checkpoint(self._checkpoints, done, state, execution.keep_checkpoints)
            self._interval.restart()
        self._on_step(StepResult(done, self.steps.stop, logged, self.lr))

    def _metrics_of(self, step: int) -> Mapping[str, Any]:
        """Those of the network to use after a step, to which all processes may contribute."""
        self._watch.look()
        distributed.share(self.result.buffers())  # BatchNorm's statistics are those of each process's images
        found = self._evaluate(self.result)
        self.net.train()
        return found

    def _look_at(self, line: Mapping[str, Any]) -> None:
        """Say so if no accuracy of the last evaluation is above chance by more than two standard errors."""
        chance = self._task.chance
        if chance is None:
            return
        best = max((value for name, value in scalars(line) if name != "step"), default=1.0)
        images = min(self.execution.eval_images, self._data.count(self._data.holdout))
        if best <= chance + 2 * math.sqrt(chance * (1 - chance) / max(images, 1)):
            logger.warning(
                "the accuracy on %d held-out images is %.1f %% at best, where guessing gets %.1f %%: the training has "
                "failed or was too short; look at metrics.jsonl, and lower lr or raise epochs",
                images,
                100 * best,
                100 * chance,
            )

    def _restore(self) -> int:
        """Go on from the newest checkpoint, if there is one; the number of steps that are done."""
        state = distributed.from_first(lambda: load_checkpoint(self._checkpoints))
        if state is None:
            if (self._checkpoints.parent / "metrics.jsonl").exists() and distributed.rank() == 0:
                logger.warning("there is no checkpoint in %s yet: the training begins anew", self._checkpoints)
            return 0
        own = {name: tensor.shape for name, tensor in self.net.state_dict().items()}
        for name in own.keys() | state["net"].keys():
            shape = state["net"][name].shape if name in state["net"] else None
            if shape != own.get(name):
                raise ValueError(
                    f"the checkpoints in {self._checkpoints} are of another network: tensor {name!r} is {shape} there "
                    f"and {own.get(name)} here"
                )
        if bool(state["ema"]) != bool(self.ema):
            raise ValueError(
                f"the checkpoints in {self._checkpoints} were made {'without' if self.ema else 'with'} ema_decay"
            )
        self.net.load_state_dict(state["net"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.ema:
            self.ema.load_state_dict(state["ema"])
        if "scaler" in state and self._scaler.is_enabled():
            self._scaler.load_state_dict(state["scaler"])
        if "divergence" in state:  # a former version did not look
            self._divergence.load_state_dict(state["divergence"])
        for name, kept in self._kept.items():
            kept.load_state_dict(state[name])
        logger.info("going on from step %d", state["step"])
        return state["step"]


def make_optimizer(net: nn.Module, config: LoopConfig, steps_per_epoch: int) -> tuple[torch.optim.Optimizer, Scheduler]:
    """timm's optimizer and its schedule, which `set_lr` applies every step."""
    decaying = net.parameters() if config.decay_all else net  # of a network timm leaves BatchNorm and biases out
    optimizer = create_optimizer_v2(
        decaying, config.opt, config.scaled(config.lr), config.weight_decay, config.momentum
    )
    scheduler, _ = create_scheduler_v2(
        optimizer,
        config.sched,
        config.epochs,
        decay_epochs=config.decay_epochs,
        decay_rate=config.decay_rate,
        min_lr=config.scaled(config.min_lr),
        warmup_lr=0.0,
        warmup_epochs=config.warmup_epochs,
        updates_per_epoch=steps_per_epoch,
        step_on_epochs=False,
    )
    return optimizer, scheduler


def set_lr(
    optimizer: torch.optim.Optimizer, scheduler: Scheduler, config: LoopConfig, step: int, steps_per_epoch: int
) -> None:
    """Set the learning rate of the step `step`, counted from 0: that in its middle, so that none has a rate of 0. Once
    it is warm, the schedule `step` falls no further than to `min_lr`."""
    middle = step + 0.5
    scheduler.step_update(middle)
    if config.sched == "step" and middle / steps_per_epoch >= config.warmup_epochs:
        for group in optimizer.param_groups:
            group["lr"] = max(group["lr"], config.scaled(config.min_lr))


def clip_gradients(net: nn.Module, config: LoopConfig) -> Tensor:
    """Clip the gradients; their norm before that. Of a list of networks each is clipped by itself, and the largest
    norm given."""
    if isinstance(net, nn.ModuleList):
        return torch.stack([clip_gradients(network, config) for network in net]).max()
    parameters = [p for p in net.parameters() if p.grad is not None]
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters])
    if config.clip is not None and config.clip_mode == "norm":
        torch.nn.utils.clip_grads_with_norm_(parameters, config.clip, norm)
    elif config.clip is not None:
        torch.nn.utils.clip_grad_value_(parameters, config.clip)
    return norm


def _numbers(losses: Mapping[str, Any]) -> dict[str, Any]:
    """`losses` with numbers, or lists of them, for the tensors."""
    return {name: _numbers(loss) if isinstance(loss, Mapping) else loss.tolist() for name, loss in losses.items()}
