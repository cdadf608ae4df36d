"""A network in as many bits as its limits want: int8 where that is good enough, and float where it is not."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from compress.quantisation.give_back import Precisions, bytes_of_weight, fewest_steps, least_divergence, steps_back
from compress.quantisation.network import Quantisation, Quantised
from compress.quantisation.points import layers
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
    written by `write` to a file of its own in `folder`, and judged on `choosing`, images and labels."""

    def __init__(
        self,
        model: nn.Module,
        quantisation: Quantisation,
        choosing: Batches,
        write: Callable[[Quantised, Path], object],
        folder: Path,
    ) -> None:
        self._model, self._quantisation, self._choosing = model, quantisation, choosing
        self._write, self._folder = write, folder
        self._expected = logits(model.eval(), choosing)
        self._made: dict[frozenset, Candidate] = {}

    def __call__(self, precisions: Precisions) -> Candidate:
        key = frozenset(precisions.items())
        if key not in self._made:
            own = self._quantisation
            network = Quantised(self._model, Quantisation(own.ranges, dict(precisions), own.weight_bits))
            path = self._folder / f"{len(self._made)}.onnx"
            self._write(network, path)
            found = drop(self._expected, logits(onnx_runner(path), self._choosing), self._choosing)
            self._made[key] = Candidate(network, path, found, path.stat().st_size)
        return self._made[key]

    def within(self, limits: Limits, milliseconds: Callable[[Path], float]) -> Chosen:
        """What keeps within `limits`: int8, or else the fewest steps towards float that lower the drop to its limit
        (`compress.quantisation.give_back`). A limit on bytes without one on the drop is used up, so that the summed
        divergence of all layers is least. `milliseconds` measures a file.

        Unattainable, a ValueError, with the nearest there is, if nothing keeps within all limits.
        """
        int8 = self({})
        if int8.bytes > limits.stored_bytes:
            raise Unattainable(
                f"in int8 the network takes {int8.bytes} bytes, more than stored_bytes={limits.stored_bytes:g}: take a "
                "smaller network, or supernet compress"
            )
        chosen, found = int8, []
        uses_bytes = math.isinf(limits.accuracy_drop) and math.isfinite(limits.stored_bytes)
        if uses_bytes or int8.drop.points > limits.accuracy_drop:
            own = self._quantisation
            found = list(sensitivities(self._model, own.ranges, self._choosing, weight_bits=own.weight_bits))
        if uses_bytes:
            chosen = self._by_bytes(found, int8, limits)
        elif found:
            chosen = self._by_drop(found, int8, limits)
        if math.isfinite(limits.milliseconds) and (taken := milliseconds(chosen.path)) > limits.milliseconds:
            raise Unattainable(
                f"what keeps within the other limits takes {taken:.3g} ms, more than milliseconds="
                f"{limits.milliseconds:g}, and all of it in int8 {milliseconds(int8.path):.3g} ms with a drop of "
                f"{int8.drop.points:.2f} points: loosen a limit, or train for int8 (supernet finetune --precision int8)"
            )
        return Chosen(chosen, found)

    def _by_drop(self, found: Sequence[Sensitivity], int8: Candidate, limits: Limits) -> Candidate:
        def fits(precisions: Precisions) -> bool:
            return self(precisions).drop.points <= limits.accuracy_drop

        precisions = fewest_steps(steps_back(found), fits)
        nearest = int8 if precisions is None else self(precisions)
        if nearest.bytes > limits.stored_bytes:
            nearest = self._by_bytes(found, int8, limits)
        if nearest.drop.points > limits.accuracy_drop:
            raise Unattainable(
                f"within the limits the drop is {nearest.drop.points:.2f} points at least, and {nearest.bytes} bytes "
                f"are taken for it: loosen accuracy_drop={limits.accuracy_drop:g} or stored_bytes, or train for int8 "
                "(supernet finetune --precision int8)"
            )
        return nearest

    def _by_bytes(self, found: Sequence[Sensitivity], int8: Candidate, limits: Limits) -> Candidate:
        least = sum(bytes_of_weight(layers(self._model)[own.layer], "int8") for own in found if own.precision == "int8")
        for_weights = limits.stored_bytes - (int8.bytes - least)
        candidate = self(least_divergence(found, self._model, for_weights))
        return candidate if candidate.bytes <= limits.stored_bytes else int8


def drop(expected: Tensor, found: Tensor, batches: Batches) -> Drop:
    """That from logits `expected` [N, K] to `found`, on the images and labels of `batches`."""
    labels = torch.cat([labels for _, labels in batches])
    told = [own.argmax(1) for own in (expected, found)]
    lost = 100 * ((told[0] == labels).double() - (told[1] == labels).double())
    alike = (told[0] == told[1]).double().mean().item()
    return Drop(lost.mean().item(), (lost.std() / len(lost) ** 0.5).item(), alike)
