"""The optimizer of a training, its learning rate, and the limit of its gradients."""

from __future__ import annotations

from inspect import signature

import torch
from timm.optim import create_optimizer_v2, get_optimizer_class
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from torch import Tensor, nn

from supernet.training.loop.config import LoopConfig


def make_optimizer(net: nn.Module, config: LoopConfig, steps_per_epoch: int) -> tuple[torch.optim.Optimizer, Scheduler]:
    """timm's optimizer and its schedule, which `set_lr` applies every step. On a GPU its update is one kernel for many
    tensors where torch has such a one."""
    decaying = net.parameters() if config.decay_all else net  # of a network timm leaves BatchNorm and biases out
    rates = config.scaled(config.lr), config.weight_decay, config.momentum
    try:
        optimizer = create_optimizer_v2(decaying, config.opt, *rates, **_fused(net, config.opt))
    except ValueError as error:
        raise ValueError(f"opt is an optimizer of timm's, such as sgd, adamw or lamb: {error}") from error
    scheduler, _ = create_scheduler_v2(
        optimizer,
        "cosine" if config.sched == "range" else config.sched,
        config.epochs,
        decay_epochs=config.decay_epochs,
        decay_rate=config.decay_rate,
        min_lr=config.scaled(config.min_lr),
        warmup_lr=0.0,
        warmup_epochs=config.warmup,
        updates_per_epoch=steps_per_epoch,
        step_on_epochs=False,
    )
    return optimizer, scheduler


def _fused(net: nn.Module, opt: str) -> dict[str, bool]:
    """The option by which torch fuses the update. SGD's fused one needs the momentum of all parameters or of none, and
    takes what is in memory for it where a first step overflows."""
    on_gpu = all(parameter.is_cuda for parameter in net.parameters())
    kind = get_optimizer_class(opt, bind_defaults=False)
    is_safe = "fused" in signature(kind).parameters and not issubclass(kind, torch.optim.SGD)
    return {"fused": True} if on_gpu and is_safe else {}


def set_lr(
    optimizer: torch.optim.Optimizer, scheduler: Scheduler, config: LoopConfig, step: int, steps_per_epoch: int
) -> None:
    """Set the learning rate of the step `step`, counted from 0: that in its middle, so that none has a rate of 0. Once
    it is warm, the schedule `step` falls no further than to `min_lr`. The schedule `range` grows exponentially over all
    steps, as in the range test of Smith (arXiv 1506.01186, section 3.3), whose growth is linear."""
    if config.sched == "range":
        last = (config.max_steps or config.epochs * steps_per_epoch) - 1
        lr = config.min_lr * (config.lr / config.min_lr) ** (step / max(last, 1))
        for group in optimizer.param_groups:
            group["lr"] = config.scaled(lr)
        return
    middle = step + 0.5
    scheduler.step_update(middle)
    if config.sched == "step" and middle / steps_per_epoch >= config.warmup:
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
