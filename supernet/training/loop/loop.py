"""What every training here has in common: settings, and all of the loop but the gradients."""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from supernet.artifacts.atomic import set_aside
from supernet.tasks import Classification, Task
from supernet.training import distributed
from supernet.training.data import Data
from supernet.training.data.batch import Batch, on, with_normalised
from supernet.training.execution import Execution, channels_last, computes_ahead, pick_device
from supernet.training.loop.ahead import ahead, lane_of
from supernet.training.loop.average import MovingAverage
from supernet.training.loop.checkpoint import Interval, load_checkpoint, save_checkpoint
from supernet.training.loop.config import LoopConfig
from supernet.training.loop.divergence import Divergence, Watch
from supernet.training.loop.labels import Mixing
from supernet.training.loop.metrics import Metrics, scalars
from supernet.training.loop.optimizer import clip_gradients, make_optimizer, set_lr
from supernet.training.loop.patience import Patience
from supernet.training.loop.signals import Signals
from supernet.training.randomness import Stream, torch_seed

logger = logging.getLogger(__name__)

CLASSIFICATION = Classification()


class StepResult(NamedTuple):
    """What a step did, for logs and progress bars."""

    step: int  # counted from 1
    steps: int  # in the whole training
    losses: list[float] | None  # those in metrics.jsonl, every `execution.log_steps` steps, in the first process
    lr: float
    is_kept: bool  # whether there is a checkpoint because of the number of steps: the same in all processes
    epoch: float  # passes over the training examples that are done
    batch_size: int  # examples of the step, over all processes
    metrics: Mapping[str, Any] | None = None  # of an evaluation after this step, in the first process


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
    batch that a process runs one after another, `late` the parameters whose gradients come at the end of a backward
    pass, `alike` whether all processes have gradients for the same parameters. `task` says what a batch is, and the
    loss of a network that knows nothing unless `uninformed` does, which tells a diverged training
    (`supernet.training.loop.divergence`). `apart` is the number of losses a step where each is of a network by itself,
    and is watched by itself. `penalise` adds the gradient of a penalty on the weights to the gradients of a step, once,
    when they are those of the whole batch, and `proximal` changes weights once a step, after the optimizer, by its
    learning rate. `signals` are those that end the training after a step, with a checkpoint, by `Stopped`. Where
    `distributed.joined` has joined processes, all of them do this, and evaluate and call `on_step`, and the first one
    reads and writes.

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
        late: Iterable[nn.Parameter] = (),
        alike: bool = True,
        resume: bool = False,
        on_step: Callable[[StepResult], None] = lambda result: None,
        on_begin: Callable[[], None] = lambda: None,
        uninformed: float | None = None,
        apart: int = 1,
        penalise: Callable[[], None] = lambda: None,
        proximal: Callable[[float], None] = lambda lr: None,
        signals: Signals | None = None,
    ) -> None:
        self.device = pick_device(execution.device)
        processes = distributed.world_size()
        distributed.check_split(config.batch_size, processes, parts)
        self.execution = execution
        self.net = self.place(net).train()
        self._data, self._task, self._config, self._kept = data, task, config, kept
        self._evaluate, self._on_step, self._on_begin = evaluate, on_step, on_begin
        self._penalise, self._proximal = penalise, proximal
        self._signals = signals or Signals()
        self._mixing, self._patience = Mixing(config, task), Patience(config.patience)
        if config.patience is not None and not execution.eval_epochs:
            raise ValueError(f"patience counts evaluations, of which eval_epochs 0 says none: {config.patience}")
        self.steps_per_epoch = data.steps_per_epoch(config.batch_size)
        self.optimizer, self._scheduler = make_optimizer(net, config, self.steps_per_epoch)
        self._scaler = torch.amp.GradScaler(self.device.type, enabled=execution.amp == "fp16")
        # to be begun before the last backward pass of a step, which then need not be over for gradients to travel
        self.average = distributed.GradientAverage(net.parameters(), late, alike=alike) if processes > 1 else None
        self.ema = MovingAverage(net, config.ema_decay) if config.ema_decay else None
        uninformed = task.uninformed_loss if uninformed is None else uninformed
        self._watch = Watch([Divergence(uninformed) for _ in range(apart)], late=computes_ahead(self.device))
        self._checkpoints = run_dir / "checkpoints"
        start = self._restore() if resume else 0
        steps = config.epochs * self.steps_per_epoch
        stop = start if self._patience.is_over else min(steps, config.max_steps or steps)
        self.steps = range(start, max(start, stop))  # those still to do
        self._interval = Interval(execution.checkpoint_minutes)
        self._end = None if execution.minutes is None else Interval(execution.minutes)
        self._metrics = Metrics(run_dir, start, execution) if distributed.rank() == 0 else None

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

        It is on the device, the learning rate is set, and there are no gradients. On a GPU the batch of the step after
        it is on its way already. There are no more once `execution.minutes` are over, as the first process sees it
        where a step was logged. ValueError for a batch that the task does not take.
        """
        config = self._config
        batches = self._data.training_batches(
            resolution, config.batch_size, config.seed, self.steps, distributed.rank(), distributed.world_size()
        )
        moved = map(self._moved, itertools.islice(batches, len(self.steps)))
        lane = lane_of(self.device)
        for step, batch in zip(self.steps, ahead(moved, lane) if lane else moved):
            set_lr(self.optimizer, self._scheduler, config, step, self.steps_per_epoch)
            self.optimizer.zero_grad()
            yield step, self._mixing(step, batch)
            if step + 1 == self.steps.stop:  # which may be earlier than it was
                break
        if self._metrics:
            self._metrics.close()
        distributed.share(  # those that were saved are those of the first process
            [*self.net.buffers(), *(self.ema.module.buffers() if self.ema else ())]
        )

    def update(self, step: int, losses: Tensor, names: Sequence[object]) -> None:
        """Descend by the gradients, averaged over all processes and clipped.

        `losses` [L] gave them, `names` [L] say of what. TrainingError, naming step and name, if a loss or gradient is
        not finite, or if the training has diverged: the weights of the step before are not touched on a CPU; on a GPU
        the error comes with the next step, or before the step is noted, evaluated or kept, in all processes alike.
        In fp16 a gradient that is not finite, in any process, skips the step in all of them and halves the scale, as
        long as that is above 1.
        """
        self._watch.look()  # before anything that all processes do together
        if self.average:
            self.average.finish()
        self._scaler.unscale_(self.optimizer)
        self._penalise()
        norm = clip_gradients(self.net, self._config)
        scale = self._scaler.get_scale()  # 1 but in fp16
        means = distributed.average(losses.detach().clone())
        self._watch.note(step, means, norm, names, may_overflow=scale > 1, is_last=step + 1 == self.steps.stop)
        self._scaler.step(self.optimizer)
        self._scaler.update()
        if self._scaler.get_scale() >= scale:  # the step was taken
            self._proximal(self.lr)
            if self.ema:
                self.ema.update(self.net, step)

    def finish(self, step: int, losses: Mapping[str, Any]) -> None:
        """Write, evaluate and report what is due after a step; `losses` are tensors by name, or mappings of such."""
        execution, done = self.execution, step + 1
        if done % execution.log_steps == 0 and self._time_is_over():
            self._cut(done, f"{execution.minutes:g} minutes are over")
        is_last = done == self.steps.stop
        every = execution.eval_epochs * self.steps_per_epoch
        metrics = None
        if every and (is_last or done % every == 0):
            metrics = self._metrics_of_result()
            self._patience.look_at(metrics)
            if self._patience.is_over:
                self._cut(done, str(self._patience))
                is_last = True
        is_kept = done % (execution.checkpoint_steps or self.steps_per_epoch) == 0 or is_last
        is_logged = done % execution.log_steps == 0 or is_last
        epoch = done / self.steps_per_epoch
        result = StepResult(done, self.steps.stop, None, self.lr, is_kept, epoch, self._config.batch_size)
        if self._metrics and step == self.steps.start:
            self._begin(step)
        if is_logged or is_kept:
            self._watch.look()  # in all processes, which would wait for one that ended by itself
        if not self._metrics:
            self._on_step(result)
            return
        logged = None
        if is_logged:
            values = _numbers(losses)
            self._metrics.append({"step": done, "epoch": epoch, "lr": self.lr, **values})
            logged = [value for _, value in scalars(values)]
        if metrics is not None:
            line = {"step": done, **metrics}
            self._metrics.append(line)
            if is_last:
                self._look_at(line)
        is_stopped = self._signals.received is not None and not is_last
        if is_kept or ((is_stopped or self._interval.due) and self._watch.is_fine()):
            state = {
                "net": self.net.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "ema": self.ema and self.ema.state_dict(),
                "divergence": self._watch.state_dict(),
                "patience": self._patience.state_dict(),
                **({"scaler": self._scaler.state_dict()} if self._scaler.is_enabled() else {}),
                **{name: kept.state_dict() for name, kept in self._kept.items()},
            }
            save_checkpoint(self._checkpoints, done, state, execution.keep_checkpoints)
            self._interval.restart()
        self._on_step(result._replace(losses=logged, metrics=metrics))
        if is_stopped:
            raise self._signals.stopped(f"after step {done} of {self.steps.stop}, of which there is a checkpoint")

    def _begin(self, step: int) -> None:
        """What the first process does when the first `step` of this training is done."""
        self._on_begin()
        if not step and (aside := set_aside(self._checkpoints)):
            logger.warning("the checkpoints of an earlier training are now in %s", aside)

    def _time_is_over(self) -> bool:
        """As the first process sees it, in all of them."""
        return self._end is not None and distributed.from_first(lambda: self._end.due)

    def _cut(self, done: int, why: str) -> None:
        """Let the step that is `done`, counted from 1, be the last one."""
        if done < self.steps.stop:
            if self._metrics:
                logger.warning("training ends after step %d of %d: %s", done, self.steps.stop, why)
            self.steps = range(self.steps.start, done)

    def _moved(self, batch: Batch) -> Batch:
        """The batch on the device; ValueError if the task does not take it, told where asking for labels is no wait."""
        moved = on(self.device, batch, self.execution.memory_format)
        self._task.check_batch(with_normalised(batch, moved))
        return moved

    def _metrics_of_result(self) -> Mapping[str, Any]:
        """What `evaluate` gives of the network to use, to which all processes may contribute."""
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
            self._watch.load_state_dict(state["divergence"])
        if "patience" in state:
            self._patience.load_state_dict(state["patience"])
        for name, kept in self._kept.items():
            kept.load_state_dict(state[name])
        logger.info("going on from step %d", state["step"])
        return state["step"]


def _numbers(losses: Mapping[str, Any]) -> dict[str, Any]:
    """`losses` with numbers, or lists of them, for the tensors."""
    return {name: _numbers(loss) if isinstance(loss, Mapping) else loss.tolist() for name, loss in losses.items()}
