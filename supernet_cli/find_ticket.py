"""Find a lottery ticket: the few weights of a network by which it trains as well as by all.

    supernet find-ticket --model resnet18 --input-size 32 --recipe cifar10 --root images/ --output tickets/resnet18
    supernet find-ticket --subnet subnets/mine --run runs/mine --rounds 8 --rewind-epochs 1 --output tickets/mine
    supernet find-ticket --subnet subnets/mine --run runs/mine --start subnets/mine --output tickets/mine

Iterative magnitude pruning with rewinding (Frankle and Carbin, arXiv 1803.03635): each of --rounds rounds trains the
network, prunes --fraction of the weights that are left, and puts the others back to what they were in the beginning,
after --rewind-epochs, or, with --start, before they were trained on. Prints the density and the accuracy on held-out
images of each round. Writes the output folder as `supernet extract` does, with the last ticket as it was trained, and
the weights to go back to, masks, rounds.jsonl and the run of each round in training/ within it. Goes on with --resume.
Zeros save no time; `supernet compress` makes them save bytes. Takes one more training than there are rounds.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Annotated

import tyro

from compress.tickets.job import TicketJob, run_ticket_job
from supernet_cli.command_line import console
from supernet_cli.model_training import FromScratch, as_kind, from_scratch, parse, train


@dataclass(frozen=True)
class Arguments(FromScratch):
    job: Annotated[TicketJob, tyro.conf.arg(name="")]


def main() -> None:
    train(parse(Arguments, __doc__, settings, TicketJob), partial(run_ticket_job, on_line=show))


def show(line: dict[str, float]) -> None:
    text = (
        f"round {line['round']}: {line['density']:.1%} of the weights, {line['accuracy']:.2%} of held-out images right"
    )
    console.print(text, highlight=False, soft_wrap=True)


def settings(job, known) -> TicketJob:
    return as_kind(TicketJob, from_scratch(job, known))
