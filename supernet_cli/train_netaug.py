"""Train a tiny model by network augmentation: within wider networks, which are then thrown away.

    supernet train-netaug --model mobilenetv2_035 --input-size 32 --output models/tiny
    supernet train-netaug --model mobilenetv2_035 --recipe cifar10 --root images/ --output models/tiny
    supernet train-netaug --model tinynet_e --recipe cifar10 --root images/ --output models/tiny \
        --widths 1 1.8 2.6 --expansions 1 1.6 2.2 2.8 --teacher models/big --kl 1 --temperature 2
    supernet train-netaug --subnet subnets/mine --run runs/mine --output subnets/augmented

NetAug (Cai et al., arXiv 2110.08890) is for models that are too small to overfit. What comes out is the model itself,
as `supernet train-standalone` would have trained it: for a timm model, timm.create_model loads its weights. A step
costs the tiny model's and one wider network's; --weight 0 trains it alone. Writes the output folder as `supernet
extract` does, and the run in training/ within it. Digits take about two minutes on 2 cores.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro

from netaug.training import NetAugJob, run_netaug_job
from supernet_cli.model_training import FromScratch, as_kind, from_scratch, parse, train


@dataclass(frozen=True)
class Arguments(FromScratch):
    job: Annotated[NetAugJob, tyro.conf.arg(name="")]


def main() -> None:
    train(parse(Arguments, __doc__, settings, NetAugJob), run_netaug_job)


def settings(job, known) -> NetAugJob:
    return as_kind(NetAugJob, from_scratch(job, known))
