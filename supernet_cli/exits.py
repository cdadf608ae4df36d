"""Put exits into a subnet, train them, and show what leaving early is worth, by images or texts.

    supernet exits --subnet subnets/mine --run runs/mine --output exits/mine --epochs 3
    supernet exits --subnet subnets/mine --run runs/mine --output exits/mine --after blocks.0 blocks.2 --weights equal

After each block, or after the modules that are named, an exit is put; all of them and the network learn in one forward
pass. For parts of the measured latency of the whole network, ending early for all, patience, entropy and confidence get
the exits and the threshold that are best on held-out examples, and are judged on test examples. Writes exits.json,
exits.svg, which has them all in one picture, the weights, and of images a chain of ONNX files (chain/) for the part
--chain. Latencies are of the network's parts in torch on one thread, one example at a time. Minutes for digits.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro
from rich.table import Table
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from exits import choose, cumulative_ms, export_chain, measure_parts, tradeoff
from exits.choosing import MOST_EXITS
from exits.comparing import Compared, answers, compare, plot_compared
from exits.network import Exits, ExitTask, with_exits
from exits.policies import to_json
from supernet.artifacts import provenance
from supernet.artifacts.atomic import write_json
from supernet.artifacts.runs import open_data
from supernet.artifacts.subnet import Subnet
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
    subnet: str
    """Folder of a saved subnet, NAME=FILE or NAME of a timm model."""
    output: Path
    """Folder for what is found, with the training in training/."""
    after: tuple[str, ...] = ()
    """Modules to exit after, in their order; by default the blocks but the last, at most eleven, evenly."""
    weights: Literal["depth", "equal", "internal"] = "depth"
    """Whether an exit weighs as much as it is deep (PABEE), all weigh alike (BranchyNet), or exits alone learn."""
    parts: tuple[float, ...] = (0.4, 0.55, 0.7, 0.85)
    """Limits of the expected latency, as parts of that of the whole network without exits."""
    chain: float = 0.7
    """The part for which a chain of ONNX files is written, by the best policy of any kind."""
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


def main() -> None:
    job = said_job(Arguments)
    train = model_settings(job.train)
    gentle = dataclasses.replace(train, epochs=max(1, train.epochs // 5), lr=train.lr / 10, warmup_epochs=0.0)
    default = Arguments(job.data, gentle, tyro.MISSING, tyro.MISSING, workers=job.execution.workers)
    put_exits(parse_flags(Arguments, __doc__, default=default, omit_prefixes=True))


def put_exits(arguments: Arguments) -> None:
    """What the command does."""
    if arguments.examples < 2 or not arguments.parts or min(arguments.parts) <= 0 or arguments.chain <= 0:
        raise ValueError("examples are at least 2, and parts of the latency above 0")
    if (arguments.output / "exits.json").exists():
        raise ValueError(f"{arguments.output} holds a network with exits already; name another folder")
    data = open_data(arguments.data, arguments.train.seed, arguments.workers)
    subnet = opened(arguments.subnet, data, arguments.input_size, arguments.space)
    task = subnet.config.family().task
    if not isinstance(task, Classification):
        raise ValueError(f"exits are judged by classes, and {arguments.subnet} tells something else")
    size = None
    if isinstance(data, ImageData):
        data = dataclasses.replace(data, config=subnet.config.preparing(data.config))
        size = subnet.config.input_size[-1]
    torch.set_num_threads(1)
    network = trained(subnet, data, task, size, arguments)
    example = tuple(torch.zeros(tensor.shape, dtype=tensor.dtype) for tensor in subnet.config.example())[:1]
    latencies = measure_parts(network, example)
    held_out = answers(network, task, list(take(data.evaluation_batches(data.holdout, size), arguments.examples)))
    tested = answers(network, task, list(data.evaluation_batches(data.test, size)))
    last = len(network.after)
    whole_ms = cumulative_ms(latencies, (last,))[0]
    whole = tradeoff(None, tested[0][:, -1:], tested[1], [whole_ms])
    compared = compare(held_out, tested, latencies, [part * whole_ms for part in arguments.parts])
    arguments.output.mkdir(parents=True, exist_ok=True)
    save_weights(arguments.output / "model.safetensors", network.state_dict())
    plot_compared(arguments.output / "exits.svg", compared, whole)
    if size is not None:
        chosen = choose(*held_out, latencies, arguments.chain * whole_ms)
        latency_ms = cumulative_ms(latencies, chosen.kept)
        export_chain(network, arguments.output / "chain", example, chosen.found.policy, chosen.kept, latency_ms)
    console.print(table(compared, f"{len(tested[1])} test examples; the whole network {whole.accuracy:.2%}"))
    content = {
        "command": provenance.command(),
        "date": provenance.today(),
        "versions": provenance.versions(),
        "hardware": provenance.hardware(),
        "after": network.after,
        "latencies": latencies._asdict(),
        "whole": described(whole),
        "compared": [
            {"kind": one.kind, "limit_ms": one.limit_ms, "kept": one.chosen.kept, **described(one.judged)}
            for one in compared
        ],
    }
    write_json(arguments.output / "exits.json", content)


def trained(subnet: Subnet, data: Data, task: Task, size: int | None, arguments: Arguments) -> Exits:
    """The subnet with exits, trained, on from its last checkpoint."""
    after = arguments.after or places(subnet.model)
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(arguments.train.seed)
        network = with_exits(subnet.model, after, len(subnet.config.classes), subnet.config.example())
    if arguments.weights == "internal":
        if any(isinstance(module, _BatchNorm) for module in subnet.model.modules()):
            raise ValueError(
                "exits alone cannot learn on a network with BatchNorm, whose statistics would change: say --weights "
                "depth or equal"
            )
        network.model.requires_grad_(False)
    (network,) = train_models(
        [network],
        [size],
        data,
        arguments.train,
        arguments.output / "training",
        task=ExitTask(task, arguments.weights),
        execution=Execution("cpu", eval_epochs=0),
        resume=True,
    )
    return network.eval()


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


def table(compared: Sequence[Compared], where: str) -> Table:
    shown = Table("policy", "limit (ms)", "exits", "accuracy (%)", "expected (ms)", "95 % within (ms)", title=where)
    for one in compared:
        judged = one.judged
        accuracy = f"{100 * judged.accuracy:.2f} ± {100 * judged.standard_error:.2g}"
        exits = ", ".join(str(exit + 1) for exit in one.chosen.kept)
        times = [f"{value:.3g}" for value in (judged.latency_ms, judged.latency_p95_ms)]
        shown.add_row(one.kind, f"{one.limit_ms:.3g}", exits, accuracy, *times)
    return shown
