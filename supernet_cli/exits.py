"""Put exits into subnets, train them, and show what leaving early is worth, by images or texts.

    supernet exits --subnet subnets/mine --run runs/mine --output exits/mine --epochs 3
    supernet exits --subnet subnets/narrow subnets/wide --run runs/mine --output exits/mine --limit-ms 0.5

After each block, or after the modules that are named, an exit is put; all of them and the network learn in one forward
pass. For parts of the measured latency of the whole network without exits, of several that of the slowest, ending early
for all, patience, entropy and confidence get the network, the exits and the threshold that are best on held-out
examples, and are judged on test examples. The best of them all within --limit-ms, or within the part --chain, is what
exits.json calls chosen, and becomes a chain of ONNX files (chain/). Writes exits.json, exits.svg, which has
them all in one picture, and the weights, of several networks in the folders 1, 2 and so on. Latencies are of the
network's parts in torch on one thread, one example at a time. Minutes for digits.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import torch
import tyro
from rich.table import Table
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from exits import Exits, ExitTask, Latencies, Tradeoff, cumulative_ms, export_chain, measure_parts, tradeoff, with_exits
from exits.choosing import MOST_EXITS
from exits.comparing import (
    Answers,
    Compared,
    answers,
    check_limit,
    choose_network,
    compare,
    compare_networks,
    plot_compared,
)
from exits.policies import to_json
from supernet.artifacts import provenance
from supernet.artifacts.atomic import write_json
from supernet.artifacts.runs import open_data
from supernet.artifacts.weights import save_weights
from supernet.conditions import ABSENT, only_where
from supernet.tasks import Classification, Task
from supernet.training.cohort import train_models
from supernet.training.data import Data, DataConfig, ImageData
from supernet.training.data.batch import take
from supernet.training.execution import Execution
from supernet.training.loop.config import LoopConfig
from supernet.training.standalone import model_settings
from supernet_cli.command_line import console
from supernet_cli.evaluate import opened
from supernet_cli.flags import parse_flags
from supernet_cli.model_training import said_job

PLACES = ("blocks", "layers", "stages")  # containers whose members an exit may come after
STAGES = ("layer1", "layer2", "layer3", "layer4")  # of a ResNet


@dataclass(frozen=True)
class Arguments:
    data: Annotated[DataConfig, tyro.conf.arg(name="")]
    train: Annotated[LoopConfig, tyro.conf.arg(name="")]
    subnet: tuple[str, ...]
    """Folder of a saved subnet, NAME=FILE or NAME of a timm model; of several, such as subnets of several widths, one
    is chosen together with its exits and its policy."""
    output: Path
    """Folder for what is found, with the training in training/."""
    after: tuple[str, ...] = ()
    """Modules to exit after, in their order; by default the blocks but the last, at most eleven, evenly."""
    weights: Literal["depth", "equal", "internal"] = "depth"
    """Whether an exit weighs as much as it is deep (PABEE), all weigh alike (BranchyNet), or exits alone learn."""
    parts: tuple[float, ...] = (0.4, 0.55, 0.7, 0.85)
    """Limits of the expected latency, as parts of that of the whole network without exits."""
    chain: Annotated[float, only_where(limit_ms=ABSENT)] = 0.7
    """The part for which the network, the exits and the policy of any kind are chosen of which a chain of ONNX files is
    written."""
    limit_ms: float | None = None
    """Limit of the expected latency, in milliseconds, for which they are chosen instead."""
    recipe: Annotated[str, only_where(run=ABSENT)] = "digits"
    """Recipe that says which examples, and how it is trained."""
    run: Path | None = None
    """Folder of a supernet's training run that says so instead."""
    space: str | None = None
    """The space of the subnet and of the run, said again if it is code of your own: path/to/file.py:function."""
    input_size: int | None = None
    """Pixels a side of a timm model's images; by default the model's own."""
    examples: int = 2000
    """Held-out examples that are chosen on, at most."""
    workers: int = 0
    """Processes that load images; 0 loads in this one."""


class Network(NamedTuple):
    """A subnet that has exits, what its parts take, and how its images are prepared."""

    name: str
    folder: Path
    exits: Exits
    example: tuple[torch.Tensor]
    latencies: Latencies
    task: Task
    data: Data
    size: int | None  # pixels a side; None for texts

    @property
    def whole_ms(self) -> float:
        """Of the network as it is, without exits but its own."""
        return float(cumulative_ms(self.latencies, (len(self.exits.after),))[0])


class Judged(NamedTuple):
    """A network whose exits are trained, and what it says."""

    network: Network
    held_out: Answers
    tested: Answers

    @property
    def whole(self) -> Tradeoff:
        return tradeoff(None, self.tested[0][:, -1:], self.tested[1], [self.network.whole_ms])


def main() -> None:
    job = said_job(Arguments)
    train = model_settings(job.train)
    gentle = dataclasses.replace(train, epochs=max(1, train.epochs // 5), lr=train.lr / 10, warmup_epochs=0.0)
    default = Arguments(job.data, gentle, tyro.MISSING, tyro.MISSING, workers=job.execution.workers)
    put_exits(parse_flags(Arguments, __doc__, default=default, omit_prefixes=True))


def put_exits(arguments: Arguments) -> None:
    """What the command does."""
    check(arguments)
    output, names = arguments.output, arguments.subnet
    folders = [output / str(i + 1) for i in range(len(names))] if len(names) > 1 else [output]
    data = open_data(arguments.data, arguments.train.seed, arguments.workers)
    torch.set_num_threads(1)
    networks = [network_of(name, folder, data, arguments) for name, folder in zip(names, folders)]
    slowest_ms = max(network.whole_ms for network in networks)
    limit_ms = arguments.chain * slowest_ms if arguments.limit_ms is None else arguments.limit_ms
    check_limit([network.latencies for network in networks], limit_ms)
    judged = {network.name: judge(network, arguments) for network in networks}
    limits_ms = [part * slowest_ms for part in arguments.parts]
    compared = compare_networks(
        {name: compare(one.held_out, one.tested, one.network.latencies, limits_ms) for name, one in judged.items()}
    )
    best, chosen = choose_among(judged, limit_ms)
    plot_compared(output / "exits.svg", [one for _, one in compared], [one.whole for one in judged.values()])
    kept, policy = chosen.chosen.kept, chosen.judged.policy
    latency_ms = cumulative_ms(best.latencies, kept).tolist()
    export_chain(best.exits, output / "chain", best.example, policy, kept, latency_ms)
    wholes = ", ".join(f"{one.whole.accuracy:.2%} in {one.whole.latency_ms:.3g} ms" for one in judged.values())
    count = len(judged[best.name].tested[1])
    console.print(table([*compared, (best.name, chosen)], f"{count} test examples; without exits {wholes}"))
    content = {
        "command": provenance.command(),
        "date": provenance.today(),
        "versions": provenance.versions(),
        "hardware": provenance.hardware(),
        "networks": [
            {
                "network": name,
                "folder": str(one.network.folder.relative_to(output)),
                "after": one.network.exits.after,
                "latencies": one.network.latencies._asdict(),
                "whole": described(one.whole),
            }
            for name, one in judged.items()
        ],
        "compared": [row(name, one) for name, one in compared],
        "chosen": row(best.name, chosen),
    }
    write_json(output / "exits.json", content)


def check(arguments: Arguments) -> None:
    """ValueError for what no network could be given exits by."""
    if arguments.examples < 2 or not arguments.parts or min(arguments.parts) <= 0 or arguments.chain <= 0:
        raise ValueError("examples are at least 2, and parts of the latency above 0")
    if arguments.limit_ms is not None and arguments.limit_ms <= 0:
        raise ValueError(f"a limit of the latency is above 0 ms, not {arguments.limit_ms}")
    if not arguments.subnet or len(set(arguments.subnet)) < len(arguments.subnet):
        raise ValueError(f"name a network, or several that differ, not {' '.join(arguments.subnet)!r}")
    if (arguments.output / "exits.json").exists():
        raise ValueError(f"{arguments.output} holds a network with exits already; name another folder")


def network_of(name: str, folder: Path, data: Data, arguments: Arguments) -> Network:
    """The network called `name` with exits that have learnt nothing, measured."""
    subnet = opened(name, data, arguments.input_size, arguments.space)
    task, size = subnet.config.family().task, None
    if not isinstance(task, Classification):
        raise ValueError(f"exits are judged by classes, and {name} tells something else")
    if isinstance(data, ImageData):
        data = dataclasses.replace(data, config=subnet.config.preparing(data.config))
        size = subnet.config.input_size[-1]
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(arguments.train.seed)
        after = arguments.after or places(subnet.model)
        exits = with_exits(subnet.model, after, len(subnet.config.classes), subnet.config.example())
    if arguments.weights == "internal":
        if any(isinstance(module, _BatchNorm) for module in subnet.model.modules()):
            raise ValueError(
                "exits alone cannot learn on a network with BatchNorm, whose statistics would change: say --weights "
                "depth or equal"
            )
        exits.model.requires_grad_(False)
    first, *_ = subnet.config.example()
    example = (torch.zeros(first.shape, dtype=first.dtype),)
    return Network(name, folder, exits, example, measure_parts(exits, example), task, data, size)


def judge(network: Network, arguments: Arguments) -> Judged:
    """The network when its exits have been trained, on from the last checkpoint in its folder, where it is saved."""
    (exits,) = train_models(
        [network.exits],
        [network.size],
        network.data,
        arguments.train,
        network.folder / "training",
        task=ExitTask(network.task, arguments.weights),
        execution=Execution("cpu", eval_epochs=0),
        resume=True,
    )
    network, data = network._replace(exits=exits.eval()), network.data
    save_weights(network.folder / "model.safetensors", exits.state_dict(keep_vars=True))
    held_out = take(data.evaluation_batches(data.holdout, network.size), arguments.examples)
    tested = data.evaluation_batches(data.test, network.size)
    return Judged(network, *(answers(exits, network.task, list(batches)) for batches in (held_out, tested)))


def choose_among(judged: Mapping[str, Judged], limit_ms: float) -> tuple[Network, Compared]:
    """The network that is chosen together with its exits and a policy of any kind within `limit_ms`, and what they
    give."""
    known = {name: (one.held_out[0], one.network.latencies) for name, one in judged.items()}
    _, labels = next(iter(judged.values())).held_out
    name, chosen = choose_network(known, labels, limit_ms)
    best, (logits, labels) = judged[name].network, judged[name].tested
    latency_ms = cumulative_ms(best.latencies, chosen.kept)
    found = tradeoff(chosen.found.policy, logits[:, chosen.kept], labels, latency_ms)
    return best, Compared("chosen", limit_ms, chosen, found)


def places(model: nn.Module) -> list[str]:
    """The blocks of a network but the last, at most as many as are tried, evenly; ValueError if it has none."""
    known = dict(model.named_modules())
    found = [f"{name}.{index}" for name in PLACES if name in known for index, _ in known[name].named_children()]
    found = (found or [name for name in STAGES if name in known])[:-1]
    if not found:
        raise ValueError(f"the {type(model).__name__} has no blocks to exit after: say modules with --after")
    count = min(len(found), MOST_EXITS - 1)
    return [found[round((index + 1) * len(found) / count) - 1] for index in range(count)]


def described(found) -> dict[str, object]:
    return {**dataclasses.asdict(found), "policy": to_json(found.policy)}


def row(name: str, one: Compared) -> dict[str, object]:
    return {"network": name, "kind": one.kind, "limit_ms": one.limit_ms, "kept": one.chosen.kept} | described(
        one.judged
    )


def table(compared: Sequence[tuple[str, Compared]], where: str) -> Table:
    shown = Table("network", "policy", "limit (ms)", "exits", "accuracy (%)", "expected (ms)", "95 % within (ms)")
    shown.title = where
    for name, one in compared:
        judged = one.judged
        accuracy = f"{100 * judged.accuracy:.2f} ± {100 * judged.standard_error:.2g}"
        exits = ", ".join(str(exit + 1) for exit in one.chosen.kept)
        times = [f"{value:.3g}" for value in (judged.latency_ms, judged.latency_p95_ms)]
        shown.add_row(name, one.kind, f"{one.limit_ms:.3g}", exits, accuracy, *times)
    return shown
