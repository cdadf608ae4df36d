"""How sparse a network can be: lottery tickets, the same masks without their weights, and masks before any training.

    python benchmarks/tickets.py            # three seeds: half an hour of one core
    python benchmarks/tickets.py --quick    # one seed, fewer rounds and epochs: within a minute

An MLP 64-300-100-10 learns scikit-learn's digits; its weights are pruned by 20 % a round, those of the last layer by
10 %, and put back to what they were (Frankle and Carbin, arXiv 1803.03635). Accuracies are those on the 360
test images after --early epochs, where tickets are told from their controls, and at the end. A density counts weights
alone, biases stay.

ticket        the mask of iterative magnitude pruning and the weights of the beginning
new weights   the same mask, other random weights
shuffled      as many weights of each layer, at random places, the weights of the beginning
snip, ...     masks before any training, from one batch of all training images and by one threshold for all layers, as
              published; SynFlow in 100 rounds
grown         NeST: a third of the density at random places, grown to twice it by gradients, then pruned by magnitude by
              one threshold, in three rounds each, with a training after each and nothing put back
supermask     weights of the beginning without any training, masked by what a training did to them
edge-popup    frozen weights, of the beginning or of the distributions of its paper with biases of 0, and scores that
              are trained by SGD at 0.1 over --popup-epochs

Standard errors are over seeds; one test image is 0.28 points. Every cell is kept in OUTPUT and not computed again.
"""

from __future__ import annotations

import copy
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path

import torch
import tyro
from digits_mlp import CONFIG, accuracy, digits, mean_and_error, mlp, trained
from report import report
from torch import nn
from torch.nn import functional as F

from compress.tickets import (
    TicketConfig,
    find_ticket,
    mask_before_training,
    popup,
    rewound,
    shuffled,
    supermask,
    weights_of,
)
from compress.tickets.growing import GrowConfig, grow_and_prune, mean_gradients
from compress.tickets.iterative import Round
from compress.tickets.supermasks import CRITERIA
from compress.tickets.untrained import SCORES
from supernet.training.loop import StepResult


def normal(weight: torch.Tensor, generator: torch.Generator) -> None:
    """Kaiming's normal distribution."""
    nn.init.kaiming_normal_(weight, nonlinearity="relu", generator=generator)


def signed_constant(weight: torch.Tensor, generator: torch.Generator) -> None:
    """The signs of that distribution, times its standard deviation."""
    normal(weight, generator)
    weight.copy_(weight.sign() * (2 / weight.shape[1]) ** 0.5)


def as_it_is(weight: torch.Tensor, generator: torch.Generator) -> None:
    """Torch's own."""


POPUP_WEIGHTS = {"torch's": as_it_is, "normal": normal, "signed constant": signed_constant}
EARLY = "early.json"  # the accuracy of then, in the folder of a training

Masks = dict[str, torch.Tensor]
Accuracies = tuple[float | None, float]  # early and at the end
Compute = Callable[[], Accuracies]


@dataclass(frozen=True)
class Arguments:
    seeds: int = 3
    """Seeds."""
    rounds: int = 16
    """Rounds of pruning."""
    compared: tuple[int, ...] = (4, 8, 12, 14, 16)
    """Rounds whose masks are compared with controls."""
    before: tuple[int, ...] = (8, 12, 16)
    """Rounds at whose densities masks are found before training."""
    grown: tuple[int, ...] = (12,)
    """Rounds to whose densities a network grows and is pruned."""
    supermasks: tuple[float, ...] = (0.1, 0.2, 0.3, 0.5)
    """Densities of supermasks."""
    popups: tuple[float, ...] = (0.3, 0.5)
    """Densities of edge-popup."""
    popup_epochs: int = 40
    """Epochs of edge-popup."""
    epochs: int = 25
    """Epochs of each training."""
    early: int = 5
    """Epochs after which the network is tested for the first time."""
    output: Path = Path("runs/tickets")
    """Folder for what was computed before."""
    quick: bool = False
    """One seed, 6 epochs a round, fewer cells, in a folder of its own."""
    json: Path | None = None
    """File for the result."""


def main() -> None:
    arguments = tyro.cli(Arguments, description=__doc__)
    if not arguments.quick:
        return measure(arguments)
    with tempfile.TemporaryDirectory() as folder:
        few = {"rounds": 12, "grown": (), "compared": (12,), "before": (12,), "supermasks": (0.3,), "popups": (0.3,)}
        measure(replace(arguments, seeds=1, epochs=6, popup_epochs=10, output=Path(folder), **few))


def measure(arguments: Arguments) -> None:
    arguments.output.mkdir(parents=True, exist_ok=True)
    path = arguments.output / f"cells-{arguments.epochs}-{arguments.rounds}.jsonl"
    cells = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    for seed in range(arguments.seeds):
        done = {cell["what"] for cell in cells if cell["seed"] == seed}
        for cell in Seed(arguments, seed).cells(done):
            cells.append({"seed": seed, **cell})
            with path.open("a") as file:
                file.write(json.dumps(cells[-1]) + "\n")
    settings = {name: value for name, value in vars(arguments).items() if isinstance(value, int | tuple)}
    report(list(table(cells)), summary(cells), arguments.json, settings=settings, threads=torch.get_num_threads())


class Seed:
    """All cells of a seed."""

    def __init__(self, arguments: Arguments, seed: int) -> None:
        self._arguments, self._seed = arguments, seed
        self._config = replace(CONFIG, epochs=arguments.epochs, seed=seed)
        self._data, self._model = digits(), mlp(seed)
        self._steps = self._data.steps_per_epoch(CONFIG.batch_size)
        self._folder = arguments.output / f"{arguments.epochs}-{arguments.rounds}-{seed}"

    def cells(self, done: set[str]) -> Iterator[dict[str, object]]:
        """Those that are not `done`: what each is, its method and density, and its accuracies in percent."""
        rounds: dict[int, Round] = {}
        config = TicketConfig(rounds=self._arguments.rounds, fraction=0.2, output_fraction=0.1)
        find_ticket(
            self._model,
            config,
            self._config,
            self._steps,
            self._train,
            self._folder,
            resume=True,
            on_round=lambda found: rounds.update({found.number: found}),
        )
        tickets = (
            (f"ticket {n}", "ticket", found.density, partial(self._ticket, found)) for n, found in rounds.items()
        )
        for what, method, density, compute in chain(tickets, self._masked(rounds), self._untrained(rounds[0].trained)):
            if what not in done:
                early, late = compute()
                yield {"what": what, "method": method, "density": density, "early": early, "late": late}

    def _masked(self, rounds: dict[int, Round]) -> Iterator[tuple[str, str, float, Compute]]:
        generator, new = torch.Generator().manual_seed(self._seed), mlp(1000 + self._seed)
        for number in self._arguments.compared:
            masks, density = rounds[number].masks, rounds[number].density
            own = {"new weights": (new, masks), "shuffled": (self._model, shuffled(masks, generator))}
            for method, (model, mask) in own.items():
                what = f"{method} {number}"
                yield what, method, density, partial(self._trained, model, lambda mask=mask: mask, what)
        for number in self._arguments.before:
            density = rounds[number].density
            for method in SCORES:
                what = f"{method} {number}"
                found = partial(mask_before_training, method, self._model, *self._data.train, density)
                yield what, method, density, partial(self._trained, self._model, found, what)

        for number in self._arguments.grown:
            yield f"grown {number}", "grown", rounds[number].density, partial(self._grown, rounds[number].density)

    def _untrained(self, whole: nn.Module) -> Iterator[tuple[str, str, float, Compute]]:
        initial, final = weights_of(self._model), weights_of(whole)
        for criterion in CRITERIA:
            for density in self._arguments.supermasks:
                found = partial(supermask, criterion, initial, final, density)
                yield f"{criterion} {density}", f"supermask, {criterion}", density, partial(self._tested, found)
        for density in self._arguments.popups:
            for weights, draw in POPUP_WEIGHTS.items():
                what = f"popup {weights} {density}"
                yield what, f"edge-popup, {weights}", density, partial(self._popup, draw, density)

    def _ticket(self, found: Round) -> Accuracies:
        early = json.loads((self._folder / f"round-{found.number}" / EARLY).read_text())
        return early, accuracy(found.trained, self._data.test)

    def _trained(self, model: nn.Module, found: Callable[[], Masks], what: str) -> Accuracies:
        folder = self._folder / what.replace(" ", "-")
        shutil.rmtree(folder, ignore_errors=True)
        masked = rewound(model, model.state_dict(), found())
        late = accuracy(self._train(masked, folder, lambda result: None), self._data.test)
        return json.loads((folder / EARLY).read_text()), late

    def _tested(self, found: Callable[[], Masks]) -> Accuracies:
        return None, accuracy(rewound(self._model, self._model.state_dict(), found()), self._data.test)

    def _grown(self, density: float) -> Accuracies:
        folder, generator = self._folder / "grown", torch.Generator().manual_seed(self._seed)
        shutil.rmtree(folder, ignore_errors=True)

        def gradients(model: nn.Module) -> Masks:
            return mean_gradients(
                model, [self._data.train], lambda model, batch: F.cross_entropy(model(batch[0]), batch[1])
            )

        def train(model: nn.Module, run: Path) -> nn.Module:
            return self._train(model, run, lambda result: None)

        config = GrowConfig(first=density / 3, grown=2 * density, last=density)
        found, _ = grow_and_prune(copy.deepcopy(self._model), config, gradients, train, folder, generator)
        return None, accuracy(found, self._data.test)

    def _popup(self, draw: Callable[..., object], density: float) -> Accuracies:
        model, generator = copy.deepcopy(self._model), torch.Generator().manual_seed(self._seed)
        for name, parameter in model.named_parameters():
            if not name.endswith("bias"):
                draw(parameter.data, generator)
            elif draw is not as_it_is:
                parameter.data.zero_()
        popup(model, density, generator=generator)
        folder = self._folder / f"popup-{density}"
        shutil.rmtree(folder, ignore_errors=True)
        sgd = {"opt": "sgd", "lr": 0.1, "sched": "cosine", "weight_decay": 1e-4, "epochs": self._arguments.popup_epochs}
        return None, accuracy(trained(model, self._data, folder, replace(self._config, **sgd)), self._data.test)

    def _train(self, model: nn.Module, folder: Path, on_step: Callable[[StepResult], None]) -> nn.Module:
        def test(result: StepResult) -> None:
            on_step(result)
            if result.step == self._arguments.early * self._steps:
                (folder / EARLY).write_text(json.dumps(accuracy(model, self._data.test)))
                model.train()

        return trained(model, self._data, folder, self._config, test, resume=True)


def table(cells: Sequence[dict]) -> Iterator[dict[str, object]]:
    found: dict[tuple[str, str], list[dict]] = {}
    for cell in cells:
        found.setdefault((cell["what"], cell["method"]), []).append(cell)
    for (_, method), own in found.items():
        late, late_error = mean_and_error([cell["late"] for cell in own])
        row = {"method": method, "density (%)": 100 * own[0]["density"], "accuracy (%)": late}
        row |= {"standard error": late_error, "early accuracy (%)": "", "its standard error": ""}
        if own[0]["early"] is not None:
            row["early accuracy (%)"], row["its standard error"] = mean_and_error([cell["early"] for cell in own])
        yield row | {"seeds": len(own)}


def summary(cells: Sequence[dict]) -> dict[str, float]:
    """How much more a ticket has than its mask with new weights, of paired seeds, in points."""
    figures, by = {}, {(cell["what"], cell["seed"]): cell for cell in cells}
    for what in dict.fromkeys(cell["what"] for cell in cells if cell["method"] == "new weights"):
        number = what.split()[-1]
        seeds = [seed for name, seed in by if name == what]
        density = round(100 * by[what, seeds[0]]["density"], 1)
        for when in ("early", "late"):
            more = [by[f"ticket {number}", seed][when] - by[what, seed][when] for seed in seeds]
            figures[f"{when}_gain_{density}"], figures[f"{when}_gain_{density}_error"] = mean_and_error(more)
    return figures


if __name__ == "__main__":
    main()
