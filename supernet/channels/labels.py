"""Labels of dimensions: which are the same channels, and which consist of blocks of others.

A label stands for the channels along a dimension. Two labels are tied where their channels must be the same, in number
and in order. A label may be *composed*: `blocks` equal blocks one after another, each with all channels of another
label, each of these `repeat` times in a row. The two halves of a gate are 2 blocks, the input of a convolution in 32
groups is 32 blocks, and the pixels of a flattened map repeat every channel.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

from torch import Tensor

FIXED = 0  # the label of every dimension that stays as it is
Labels = tuple[int, ...]  # a label for every dimension of a tensor


class Composition(NamedTuple):
    """`blocks` x `label` x `repeat` entries, in this order from the outermost to the innermost."""

    blocks: int
    label: int
    repeat: int

    @property
    def plain(self) -> bool:
        return self.blocks == self.repeat == 1


class LabelSet:
    """All labels of a trace, with what is tied to what, in a union-find."""

    def __init__(self) -> None:
        self.reason = ""  # given for what is fixed from now on
        self._parents = [FIXED]
        self._sizes = [1]
        self._composed: dict[int, Composition] = {}  # by the root
        self._reasons: dict[int, str] = {}  # by the label that was the root when it was fixed

    def new(self, size: int) -> int:
        """A label of `size` channels of its own."""
        self._parents.append(len(self._parents))
        self._sizes.append(size)
        return len(self._parents) - 1

    def compose(self, blocks: int, label: int, repeat: int) -> int:
        """The label of a dimension that consists of these entries; see `Composition`."""
        if blocks == repeat == 1 or self.find(label) == FIXED:
            return self.find(label)
        composed = self.new(blocks * self._sizes[self._root(label)] * repeat)
        self._composed[composed] = Composition(blocks, label, repeat)
        return composed

    def find(self, label: int) -> int:
        """The label that stands for all that are tied to this one; FIXED if the channels that it consists of are
        fixed."""
        return FIXED if self.parts(label).label == FIXED else self._root(label)

    def parts(self, label: int) -> Composition:
        """What a label consists of in the end: channels of a label that is not composed."""
        blocks, root, repeat = 1, self._root(label), 1
        while root in self._composed:
            outer = self._composed[root]
            blocks, root, repeat = blocks * outer.blocks, self._root(outer.label), outer.repeat * repeat
        return Composition(blocks, root, repeat)

    def size(self, label: int) -> int:
        return self._sizes[self._root(label)]

    def _root(self, label: int) -> int:
        while self._parents[label] != label:
            label = self._parents[label]
        return label

    def tie(self, a: int, b: int) -> int:
        """Make two labels the same channels, and return one of them; FIXED if no number of channels but their own
        would do for both."""
        reason = self.why(a) or self.why(b)
        a, b = sorted((self.find(a), self.find(b)))
        if a == b:
            return a
        if a == FIXED or self._sizes[a] != self._sizes[b]:
            self._fix((a, b), reason or self.reason)
            return FIXED
        first, second = self.parts(a), self.parts(b)
        if first.plain and second.plain:
            self._parents[b] = a
            return a
        larger, smaller = sorted((first, second), key=lambda part: self._sizes[part.label], reverse=True)
        if larger.blocks == smaller.blocks and larger.repeat == smaller.repeat:
            return a if self.tie(larger.label, smaller.label) != FIXED else FIXED
        if smaller.blocks % larger.blocks or smaller.repeat % larger.repeat:
            self.fix((a, b))
            return FIXED
        blocks, repeat = smaller.blocks // larger.blocks, smaller.repeat // larger.repeat
        self._composed[larger.label] = Composition(blocks, smaller.label, repeat)
        return a

    def fix(self, labels: Iterable[int]) -> None:
        """Let these channels stay as they are, because of `reason`."""
        self._fix(labels, self.reason)

    def _fix(self, labels: Iterable[int], reason: str) -> None:
        for label in labels:
            if (root := self.parts(label).label) != FIXED:
                self._parents[root] = FIXED
                self._reasons[root] = reason

    def why(self, label: int) -> str:
        """The reason that was given when the channels of `label` were fixed; empty if they were not."""
        while label not in self._reasons and (self._parents[label] != label or label in self._composed):
            label = self._parents[label] if self._parents[label] != label else self._composed[label].label
        return self._reasons.get(label, "")

    def split(self, label: int, blocks: int) -> int:
        """The label of each of `blocks` equal parts of a dimension."""
        part = self.parts(label)
        if part.label == FIXED:
            return FIXED
        if part.blocks % blocks == 0:
            return self.compose(part.blocks // blocks, part.label, part.repeat)
        size, more = self._sizes[part.label], blocks // part.blocks
        if blocks % part.blocks == 0 and size % more == 0 and size > more:
            inner = self.new(size // more)
            self._composed[part.label] = Composition(more, inner, 1)
            return self.compose(1, inner, part.repeat)
        self.fix((label,))
        return FIXED

    def merge(self, labels: Sequence[int], sizes: Sequence[int]) -> int:
        """The label of a dimension that these dimensions become when they are flattened."""
        elastic = [index for index, label in enumerate(labels) if self.find(label) != FIXED]
        if len(elastic) != 1:
            self.fix(labels)
            return FIXED
        index = elastic[0]
        return self.compose(math.prod(sizes[:index]), labels[index], math.prod(sizes[index + 1 :]))

    def unmerge(self, label: int, sizes: Sequence[int]) -> Labels:
        """The labels of the dimensions of these sizes that a dimension becomes, the inverse of `merge`."""
        blocks, inner, repeat = self.parts(label)
        labels = [FIXED] * len(sizes)
        if inner == FIXED:
            return tuple(labels)
        before = 1
        for index, size in enumerate(sizes):
            after = math.prod(sizes[index + 1 :])
            if blocks % before == 0 and repeat % after == 0 and size % self._sizes[inner] == 0:
                labels[index] = self.compose(blocks // before, inner, repeat // after)
                return tuple(labels)
            before *= size
        self.fix((label,))
        return tuple(labels)


class Follower(Protocol):
    """What the rules for torch's functions tell of a call: the tracer of a forward pass."""

    set: LabelSet

    def labels(self, tensor: Tensor) -> Labels:
        """The labels of the dimensions of a tensor that the pass has met."""

    def tie(self, a: int, b: int) -> int:
        """Make two labels the same channels; the label that stands for both."""

    def fix(self, labels: Iterable[int], reason: str | None = None) -> None:
        """Keep these channels as many as they are."""

    def costs(self, *labels: int) -> None:
        """The MACs of the call are proportional to the sizes of these dimensions."""

    def produce(self, weight: Tensor, output: int) -> None:
        """A layer with this weight puts out the channels `output`."""

    def scale(self, weight: Tensor | None, label: int) -> None:
        """The channels `label` pass a normalisation with this scale."""
