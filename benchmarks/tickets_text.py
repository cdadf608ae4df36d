"""Lottery tickets of a pretrained text encoder: single weights, heads and neurons, and whether masks carry over.

    python benchmarks/tickets_text.py [--quick] [--json FILE] [--data ../shared/data --output runs/tickets_text]

An encoder of two blocks is pretrained on the texts of AG's news without their classes, to tell masked tokens (BERT's
first task). Two tasks follow from it, of two classes each: world or sports, and business or science. On either,
iterative magnitude pruning takes `--fraction` of the weights of attention and MLPs that are left, by one threshold, and
puts the others back to the pretrained ones (Chen et al., NeurIPS 2020, arXiv 2007.12223). Embeddings and classifier
stay. All trainings are as long. At some densities the second task is learnt by

ticket            the masks found on it, the pretrained weights
carried over      the masks found on the first task, the pretrained weights
magnitude         the largest of the pretrained weights, found without any task
shuffled          as many weights of each layer at random places, the pretrained weights
not pretrained    the masks found on it, random weights
heads, neurons    whole heads, or neurons of the MLPs, by their first-order Taylor score on the whole trained network,
                  rewound; the density is that of heads, or neurons

Nothing is chosen by the tested news. Standard errors are over seeds of split, weights and order. Every cell is kept in
OUTPUT. About twenty minutes of one core; --quick, which has one seed and few short trainings, a minute.
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import tyro
from digits_mlp import mean_and_error
from news import news, right, training
from report import report
from torch import Tensor, nn
from torch.nn import functional as F

from compress.tickets import TicketConfig, channel_masks, find_ticket, magnitude_mask, rewound, shuffled, weights_of
from compress.tickets.iterative import Round
from compress.transforms import fold
from supernet.channels.importance import taylor_scores
from supernet.families import FAMILIES
from supernet.families.text.rewiring import text_channels
from supernet.training.cohort import train_models
from supernet.training.data import load_data
from supernet.training.data.text import TextData
from supernet.training.execution import Execution

VOCABULARY, UNKNOWN = 4096, 1  # tokens, and the one that hides another
TASKS = ((0, 1), (2, 3))
MASKED = 0.15  # part of the tokens that are hidden

Masks = dict[str, Tensor]


@dataclass(frozen=True)
class Arguments:
    seeds: int = 3
    """Seeds."""
    rounds: int = 6
    """Rounds of pruning."""
    fraction: float = 0.35
    """Part of the weights that are left which a round prunes."""
    compared: tuple[int, ...] = (2, 4, 6)
    """Rounds whose densities are compared with controls."""
    structured: tuple[float, ...] = (0.5, 0.25)
    """Parts of the heads, and of the neurons, that are kept."""
    epochs: int = 3
    """Passes over the texts of a task in each training."""
    pretraining: int = 8
    """Passes over all training texts before."""
    data: Path = Path("../shared/data")
    """Folder with text/ag_news.csv.gz."""
    output: Path = Path("runs/tickets_text")
    """Folder for what was computed before."""
    quick: bool = False
    """One seed and few short trainings, in a folder of its own."""
    json: Path | None = None
    """File for the result."""


def main() -> None:
    arguments = tyro.cli(Arguments, description=__doc__)
    if not arguments.quick:
        return measure(arguments)
    with tempfile.TemporaryDirectory() as folder:
        few = {"seeds": 1, "rounds": 2, "compared": (2,), "structured": (0.5,), "epochs": 1, "pretraining": 1}
        measure(dataclasses.replace(arguments, output=Path(folder), **few))


def measure(arguments: Arguments) -> None:
    torch.set_num_threads(1)
    arguments.output.mkdir(parents=True, exist_ok=True)
    path = arguments.output / f"cells-{arguments.epochs}-{arguments.pretraining}-{arguments.fraction}.jsonl"
    cells = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    for seed in range(arguments.seeds):
        done = {(cell["method"], cell["density"]) for cell in cells if cell["seed"] == seed}
        for cell in Seed(arguments, seed).cells(done):
            cells.append({"seed": seed, **cell})
            with path.open("a") as file:
                file.write(json.dumps(cells[-1]) + "\n")
    settings = {name: value for name, value in vars(arguments).items() if isinstance(value, int | float | tuple)}
    report(rows(cells), summary(cells), arguments.json, settings=settings)


class Seed:
    """All cells of a seed."""

    def __init__(self, arguments: Arguments, seed: int) -> None:
        self._arguments, self._seed = arguments, seed
        self._folder = arguments.output / f"{arguments.epochs}-{arguments.pretraining}-{seed}"
        self._folder.mkdir(parents=True, exist_ok=True)
        self._data = load_data(news(arguments.data, seed, VOCABULARY), seed)
        self._halves = [half(self._data, classes) for classes in TASKS]
        self._family = FAMILIES["text_encoder"](
            num_classes=2, vocabulary=VOCABULARY, length=self._data.train[0].shape[1], embed_dim=[64], depth=[2],
            num_heads=[4], mlp_ratio=[2], head_dim=16,
        )  # fmt: skip
        torch.manual_seed(seed)
        self._random = self._family.build(self._family.space.largest)
        self._pretrained = self._pretrain()
        self._exclude = tuple(name for name, layer in self._random.named_modules() if name == "head")

    def cells(self, done: set[tuple[str, float]]) -> Iterator[dict[str, object]]:
        """Those that are not `done`: the method, its density, and its accuracy on the second task in percent."""
        first, second = (self._rounds(task) for task in (0, 1))
        whole = second[0].trained
        found: list[tuple[str, float, Callable[[], float]]] = [
            ("ticket", round(ticket.density, 4), partial(self._accuracy, ticket.trained)) for ticket in second.values()
        ]
        for number in self._arguments.compared:
            masks, density = second[number].masks, round(second[number].density, 4)
            generator = torch.Generator().manual_seed(1000 * self._seed + number)
            controls = {
                "carried over": (self._pretrained, first[number].masks),
                "magnitude": (self._pretrained, self._largest(density)),
                "shuffled": (self._pretrained, shuffled(masks, generator)),
                "not pretrained": (self._random, masks),
            }
            found += [(name, density, partial(self._learnt, *control)) for name, control in controls.items()]
        scores = self._taylor(whole)
        for name, kind in (("heads", "num_heads"), ("neurons", "mlp_ratio")):
            channels = [group for group in text_channels(whole) if group.name.endswith(kind)]
            for density in self._arguments.structured:
                masks = channel_masks(whole, channels, scores, density)
                found.append((name, density, partial(self._learnt, self._pretrained, masks)))
        for method, density, compute in found:
            if (method, density) not in done:
                yield {"method": method, "density": density, "accuracy": compute()}

    def _rounds(self, task: int) -> dict[int, Round]:
        arguments, found = self._arguments, {}
        config = TicketConfig(arguments.rounds, arguments.fraction, scope="global", exclude=self._exclude)
        loop, data = training(arguments.epochs, self._seed), self._halves[task]
        find_ticket(
            self._pretrained,
            config,
            loop,
            data.steps_per_epoch(loop.batch_size),
            lambda model, folder, on_step: self._train(model, data, folder),
            self._folder / f"task-{task}",
            resume=True,
            on_round=lambda round_: found.update({round_.number: round_}),
        )
        return found

    def _learnt(self, start: nn.Module, masks: Mapping[str, Tensor]) -> float:
        with tempfile.TemporaryDirectory() as folder:
            model = rewound(start, start.state_dict(), masks)
            return self._accuracy(fold(self._train(model, self._halves[1], Path(folder) / "run")))

    def _train(self, model: nn.Module, data: TextData, folder: Path) -> nn.Module:
        loop, execution = training(self._arguments.epochs, self._seed), Execution("cpu", eval_epochs=0)
        (trained,) = train_models(
            [model], [None], data, loop, folder, task=self._family.task, execution=execution, resume=True
        )
        return trained

    def _accuracy(self, model: nn.Module) -> float:
        return 100 * right(self._family, model, self._halves[1]).mean()

    def _largest(self, density: float) -> Masks:
        weights = weights_of(self._pretrained, self._exclude)
        return magnitude_mask(weights, 1 - density, "global")

    def _taylor(self, whole: nn.Module) -> dict[str, Tensor]:
        def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
            return self._family.task.loss(model(*self._family.task.inputs(batch, None)), batch)

        batches = self._halves[1].calibration_batches(None, 512, self._seed)
        return taylor_scores(whole.eval(), text_channels(whole), batches, loss)

    def _pretrain(self) -> nn.Module:
        """The encoder when it has learnt to tell hidden tokens, read if it was kept; its classifier is as it was."""
        model, path = self._family.build(self._family.space.largest), self._folder / "pretrained.pt"
        model.load_state_dict(self._random.state_dict())
        if path.exists():
            model.load_state_dict(torch.load(path, weights_only=True))
            return model
        draw, tokens = torch.Generator().manual_seed(self._seed), self._data.train[0].long()
        optimizer = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=0.01)
        for epoch in range(self._arguments.pretraining):
            losses = []
            for index in torch.randperm(len(tokens), generator=draw).split(64):
                loss = hidden_tokens_loss(model, tokens[index], self._data.padding, draw)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses.append(loss.item())
            print(f"seed {self._seed}, epoch {epoch}: {sum(losses) / len(losses):.3f} nats a hidden token", flush=True)
        torch.save(model.state_dict(), path)
        return model


def hidden_tokens_loss(model: nn.Module, tokens: Tensor, padding: int, draw: torch.Generator) -> Tensor:
    """Cross-entropy of `MASKED` of the tokens, hidden, by the logits that the table of embeddings gives of features."""
    is_text = tokens != padding
    is_hidden = is_text & (torch.rand(tokens.shape, generator=draw) < MASKED)
    features = model.forward_features(tokens.masked_fill(is_hidden, UNKNOWN), is_text.long())
    return F.cross_entropy(features[is_hidden] @ model.embeddings.tokens.weight.T, tokens[is_hidden])


def half(data: TextData, classes: Sequence[int]) -> TextData:
    """The texts of these classes alone, which are then called 0, 1, ..."""

    def own(part: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        tokens, labels = part
        kept = torch.isin(labels, torch.tensor(classes))
        return tokens[kept], torch.searchsorted(torch.tensor(classes), labels[kept])

    parts = {name: own(getattr(data, name)) for name in ("train", "holdout", "test")}
    return dataclasses.replace(data, classes=[data.classes[index] for index in classes], **parts)


def rows(cells: Sequence[dict]) -> list[dict[str, object]]:
    found: dict[tuple[str, float], list[float]] = {}
    for cell in cells:
        found.setdefault((cell["method"], cell["density"]), []).append(cell["accuracy"])
    return [
        {
            "method": method,
            "density (%)": 100 * density,
            "accuracy (%)": mean_and_error(own)[0],
            "standard error": mean_and_error(own)[1],
            "seeds": len(own),
        }
        for (method, density), own in sorted(found.items(), key=lambda item: (item[0][0], -item[0][1]))
    ]


def summary(cells: Sequence[dict]) -> dict[str, float]:
    """How much less the controls have than the tickets of the same density, in points, of paired seeds."""
    by = {(cell["method"], cell["density"], cell["seed"]): cell["accuracy"] for cell in cells}
    figures = {}
    for method in ("carried over", "magnitude", "shuffled", "not pretrained"):
        for density in sorted({density for name, density, _ in by if name == method}, reverse=True):
            less = [
                by["ticket", density, seed] - accuracy
                for (name, own, seed), accuracy in by.items()
                if name == method and own == density
            ]
            name = f"{method.replace(' ', '_')}_below_ticket_{100 * density:.0f}"
            figures[name], figures[f"{name}_error"] = mean_and_error(less)
    return figures


if __name__ == "__main__":
    main()
