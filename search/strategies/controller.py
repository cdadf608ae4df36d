"""ENAS's controller: a recurrent network that emits an architecture choice by choice."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from supernet.space import INACTIVE, Arch, SearchSpace

# n architectures, c choices, v values of a choice, H hidden states


class Controller(nn.Module):
    """An LSTM whose state after the choices so far gives the logits of the next one (ENAS: Pham et al., arXiv
    1802.03268, section 2.1): what it chose is the next step's input, as an embedding of the choice's own.

    The probability of an architecture is the product over its active choices, in the order of the space; inactive ones
    are passed over, and leave the state as it is. Weights are uniform in -0.1 to 0.1, drawn from `seed`.
    """

    def __init__(self, space: SearchSpace, hidden: int = 64, seed: int = 0) -> None:
        super().__init__()
        self.space = space
        choices = list(space.choices.values())
        place = {name: index for index, name in enumerate(space.choices)}
        self._when = [
            [(place[name], {space.choices[name].values.index(v) for v in values}) for name, values in c.when.items()]
            for c in choices
        ]
        self.first = nn.Parameter(torch.empty(hidden))  # the input of the first step
        self.cell = nn.LSTMCell(hidden, hidden)
        self.logits = nn.ModuleList(nn.Linear(hidden, len(choice.values)) for choice in choices)
        self.embeddings = nn.ModuleList(nn.Embedding(len(choice.values), hidden) for choice in choices[:-1])
        generator = torch.Generator().manual_seed(seed)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -0.1, 0.1, generator=generator)

    @torch.no_grad()
    def sample(self, count: int, generator: np.random.Generator) -> list[Arch]:
        """Architectures drawn independently."""
        draws = torch.from_numpy(generator.random((count, len(self.logits))))

        def draw(index: int, probabilities: Tensor) -> Tensor:
            ends = probabilities.double().cumsum(1)[:, :-1]
            return (draws[:, index, None] >= ends).sum(1)

        codes, _ = self._emit(count, draw)
        return self.space.decode(codes.numpy())

    def log_probability(self, archs: Sequence[Arch]) -> Tensor:
        """Of each architecture [n]."""
        given = torch.from_numpy(self.space.encode(archs)).clamp(min=0)
        return self._emit(len(archs), lambda index, probabilities: given[:, index])[1]

    @torch.no_grad()
    def entropy(self, archs: Sequence[Arch]) -> float:
        """An estimate of the entropy in nats a choice, by architectures that were drawn."""
        return float(-self.log_probability(archs).mean()) / len(self.logits)

    def _emit(self, count: int, choose: Callable[[int, Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """Codes [n, c] that `choose` gives by index of the choice and probabilities [n, v], and their log
        probabilities [n]."""
        before = self.first.expand(count, -1)
        state = before.new_zeros(count, self.cell.hidden_size), before.new_zeros(count, self.cell.hidden_size)
        codes = torch.full((count, len(self.logits)), INACTIVE)
        total = before.new_zeros(count)
        for index, logits in enumerate(self.logits):
            active = torch.ones(count, dtype=torch.bool)
            for parent, allowed in self._when[index]:
                active &= torch.isin(codes[:, parent], torch.tensor(sorted(allowed)))
            after = self.cell(before, state)
            chances = F.log_softmax(logits(after[0]), dim=1)
            chosen = choose(index, chances.exp())
            total = total + torch.where(active, chances.gather(1, chosen[:, None])[:, 0], 0.0)
            codes[:, index] = torch.where(active, chosen, INACTIVE)
            if index < len(self.embeddings):
                state = tuple(torch.where(active[:, None], new, old) for new, old in zip(after, state))
                before = torch.where(active[:, None], self.embeddings[index](chosen), before)
        return codes, total
