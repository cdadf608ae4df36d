"""Texts to classes, and to what comes next."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn import functional as F

from distill.losses import kl_divergence
from supernet.space import Arch
from supernet.tasks.classification import Classification
from supernet.tasks.task import Task

# N texts, L length in tokens, V vocabulary, M tokens that follow another

Texts = tuple[Tensor, Tensor]  # tokens [N, L] and labels [N]


@dataclass(frozen=True)
class TextClassification(Classification):
    """Tokens [N, L] with labels [N]; the metric is the accuracy.

    What networks are called with are the tokens, and a mask [N, L] that is 1 for those of the text and 0 where
    `padding` fills it up.
    """

    padding: int = 0
    vocabulary: int | None = None
    """Number of tokens that there are, if it is known, to check batches by."""

    input_names: ClassVar = ("tokens", "mask")

    def inputs(self, batch: Texts, arch: Arch | None) -> tuple[Tensor, Tensor]:
        tokens = batch[0].long()
        return tokens, (tokens != self.padding).long()

    def mask(self, inputs: tuple[Tensor, Tensor]) -> Tensor:
        return inputs[1]

    def check_batch(self, batch: Texts) -> None:
        tokens, labels = batch
        super().check_batch((tokens, labels))
        if tokens.dim() != 2 or tokens.is_floating_point():
            raise ValueError(
                f"a batch of texts is {list(tokens.shape)} of {tokens.dtype}, and should be integers [N, L]"
            )
        if self.vocabulary is not None and (tokens.min() < 0 or tokens.max() >= self.vocabulary):
            raise ValueError(
                f"tokens are {tokens.min()} to {tokens.max()}, but there are {self.vocabulary}: the family's "
                "vocabulary is not that of the tokenizer"
            )


@dataclass(frozen=True)
class NextToken(Task):
    """Which token comes next: batches are tokens [N, L], outputs logits [N, L, V] of the token after each.

    Nothing is learnt of what comes after `padding`, the token that fills up texts, if there is one, nor of `padding`
    itself: where it also ends texts, as in GPT-2, that end is not learnt.
    """

    padding: int | None = None

    input_names: ClassVar = ("tokens",)
    output_names: ClassVar = ("logits",)
    metric: ClassVar = "accuracy"
    uninformed_loss: ClassVar = 10.0  # about the logarithm of a vocabulary

    def inputs(self, batch: Tensor, arch: Arch | None) -> tuple[Tensor]:
        return (batch.long(),)

    def mask(self, inputs: tuple[Tensor]) -> Tensor | None:
        return None if self.padding is None else (inputs[0] != self.padding).long()

    def loss(self, output: Tensor, batch: Tensor) -> Tensor:
        """Cross-entropy, the mean over tokens."""
        logits, following = self._pairs(output, batch)
        return F.cross_entropy(logits, following)

    def distil(self, output: Tensor, teacher_output: Tensor, batch: Tensor) -> Tensor:
        """KL divergence from the teacher's distribution, the mean over tokens."""
        return kl_divergence(self._pairs(output, batch)[0], self._pairs(teacher_output, batch)[0])

    def metrics(self, outputs: Iterable[Tensor], batches: Iterable[Tensor]) -> dict[str, float]:
        """`accuracy`, the part of the tokens that had the highest logit, and `negative_perplexity`, the exponential of
        the mean cross-entropy, with its sign turned."""
        right = count = 0
        loss = 0.0
        for output, batch in zip(outputs, batches):
            logits, following = self._pairs(output, batch)
            right += (logits.argmax(1) == following).sum().item()
            loss += F.cross_entropy(logits, following, reduction="sum").item()
            count += len(following)
        return {"accuracy": right / count, "negative_perplexity": -math.exp(loss / count)}

    def _pairs(self, output: Tensor, batch: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [M, V] and the tokens that follow [M]."""
        following = batch[:, 1:].long()
        if self.padding is None:
            return output[:, :-1].flatten(0, 1), following.flatten()
        is_text = following != self.padding
        return output[:, :-1][is_text], following[is_text]
