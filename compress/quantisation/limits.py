"""A network in as many bits as its limits want: int8 where that is good enough, and float where it is not."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from compress.quantisation.give_back import Precisions, fewest_steps, layer_costs, steps_back
from compress.quantisation.network import Quantisation, Quantised
from compress.sensitivity import Sensitivity, logits, sensitivities
from supernet.artifacts.export import onnx_runner
from supernet.errors import Unattainable

# N images

Batches = Sequence[tuple[Tensor, Tensor]]  # images and labels


@dataclass(frozen=True)
class Limits:
    """What a quantised network keeps within."""

    accuracy_drop: float = math.inf  # in points, how much less of the images is right than in float
    stored_bytes: float = math.inf  # of the ONNX file
    milliseconds: float = math.inf  # of one image

    @classmethod
    def of(cls, texts: Sequence[str]) -> Limits:
        """Those of texts NAME=VALUE; ValueError for one that is none."""
        values: dict[str, float] = {}
        for text in texts:
            name, _, value = text.partition("=")
            names = [own.name for own in fields(cls)]
            try:
                values[name] = float(value)
            except ValueError:
                raise ValueError(f"a limit is NAME=VALUE, such as accuracy_drop=0.5, not {text!r}") from None
            if name not in names or math.isnan(values[name]):
                raise ValueError(f"the limits are {', '.join(names)}, each of a number, not {text!r}")
        return cls(**values)

    def keep(self, candidate: Candidate) -> bool:
        """Whether the candidate's bytes and drop are within; where bytes alone are limited, a drop is that can be told
        from none, being more than its standard error."""
        if math.isfinite(self.accuracy_drop):
            allowed = self.accuracy_drop
        else:
            allowed = candidate.drop.standard_error if math.isfinite(self.stored_bytes) else math.inf
        return candidate.bytes <= self.stored_bytes and not candidate.drop.points > allowed


class Drop(NamedTuple):
    """How many points fewer of the same images a network has right than another."""

    points: float
    standard_error: float  # of the mean of paired differences; NaN for a single image
    told_alike: float  # the part of the images that both give one class


class Candidate(NamedTuple):
    """A way to quantise, as a file."""

    network: Quantised
    path: Path
    drop: Drop  # on the images that choose
    bytes: int


class Chosen(NamedTuple):
    """What keeps within the limits."""

    candidate: Candidate
    sensitivities: list[Sensitivity]  # in the order of the network; none where int8 was good enough


class Candidates:
    """Ways to quantise `model`, as `supernet.artifacts.deployment.deployed` gives it, by `quantisation`: each is
    written by `write` to a file of its own in `folder`, and judged on `choosing`, images and labels. The divergence of
    layers is on `ranking`, which are the same unless given."""

    def __init__(
        self,
        model: nn.Module,
        quantisation: Quantisation,
        choosing: Batches,
        write: Callable[[Quantised, Path], object],
        folder: Path,
        ranking: Batches | None = None,
    ) -> None:
        self._model, self._quantisation, self._choosing = model, quantisation, choosing
        self._write, self._folder, self._ranking = write, folder, ranking or choosing
        self._expected = logits(model.eval(), choosing)
        self._made: dict[frozenset, Candidate] = {}

    def __call__(self, precisions: Precisions) -> Candidate:
        key = frozenset(precisions.items())
        if key not in self._made:
            network = Quantised(self._model, replace(self._quantisation, precisions=dict(precisions)))
            path = self._folder / f"{len(self._made)}.onnx"
            self._write(network, path)
            found = drop(self._expected, logits(onnx_runner(path), self._choosing), self._choosing)
            self._made[key] = Candidate(network, path, found, path.stat().st_size)
        return self._made[key]

    def within(self, limits: Limits, milliseconds: Callable[[Path], float]) -> Chosen:
        """What keeps within `limits`: int8, or else the fewest steps towards float that lower the drop to its limit
        (`compress.quantisation.give_back`). Where bytes alone are limited, the drop is lowered until it cannot be told
        from none, or as far as the bytes allow. `milliseconds` measures a file.

        Unattainable, a ValueError, with the nearest there is, if nothing keeps within all limits.
        """
        int8 = self({})
        if int8.bytes > limits.stored_bytes:
            raise Unattainable(
                f"in int8 the network takes {int8.bytes} bytes, more than stored_bytes={limits.stored_bytes:g}: take a "
                "smaller network, or supernet compress"
            )
        chosen, found = int8, []
        if not limits.keep(int8):
            found = self._sensitivities
            chosen = self._given_back(found, int8, limits)
        if math.isfinite(limits.milliseconds) and (taken := milliseconds(chosen.path)) > limits.milliseconds:
            raise Unattainable(
                f"what keeps within the other limits takes {taken:.3g} ms, more than milliseconds="
                f"{limits.milliseconds:g}, and all of it in int8 {milliseconds(int8.path):.3g} ms with a drop of "
                f"{int8.drop.points:.2f} points: loosen a limit, or train for int8 (supernet finetune --precision int8)"
            )
        return Chosen(chosen, found)

    @cached_property
    def _sensitivities(self) -> list[Sensitivity]:
        return list(sensitivities(self._model, self._quantisation, self._ranking))

    def _given_back(self, found: Sequence[Sensitivity], int8: Candidate, limits: Limits) -> Candidate:
        costs = layer_costs(self._model, (self._choosing[0][0][:1],))
        of_weights = sum(costs[layer]["int8"].bytes for layer in {own.layer for own in found})
        steps = steps_back(found, costs, limits.stored_bytes - (int8.bytes - of_weights))
        precisions = fewest_steps(steps, lambda precisions: limits.keep(self(precisions)))
        nearest = self(steps[-1] if precisions is None else precisions)
        if nearest.bytes > limits.stored_bytes:  # by what else a file holds
            nearest = int8
        if nearest.drop.points > limits.accuracy_drop:
            raise Unattainable(
                f"within the limits the drop is {nearest.drop.points:.2f} points at least, and {nearest.bytes} bytes "
                f"are taken for it: loosen accuracy_drop={limits.accuracy_drop:g} or stored_bytes, or train for int8 "
                "(supernet finetune --precision int8)"
            )
        return nearest


def drop(expected: Tensor, found: Tensor, batches: Batches) -> Drop:
    """That from logits `expected` [N, K] to `found`, on the images and labels of `batches`."""
    labels = torch.cat([labels for _, labels in batches])
    told = [own.argmax(1) for own in (expected, found)]
    lost = 100 * ((told[0] == labels).double() - (told[1] == labels).double())
    alike = (told[0] == told[1]).double().mean().item()
    return Drop(lost.mean().item(), (lost.std() / len(lost) ** 0.5).item(), alike)
