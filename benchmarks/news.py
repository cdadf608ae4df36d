"""AG's news (Zhang et al., NeurIPS 2015) as data of benchmarks: text/ag_news.csv.gz in the folder of data."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from torch import nn

from supernet.families import Family
from supernet.training.data import Data, DataConfig
from supernet.training.loop.config import LoopConfig

LENGTH, VOCABULARY = 48, 16384
OPTIONS = {"text": ["title", "text"], "length": LENGTH, "vocabulary": VOCABULARY, "token_dropout": 0.5}


def news(data: Path, seed: int, vocabulary: int = VOCABULARY) -> DataConfig:
    """The 6,400 news in four classes, half of whose tokens are dropped in training, split by `seed`."""
    return DataConfig(
        "text",
        root=str(data / "text" / "ag_news.csv.gz"),
        dataset_options=json.dumps(OPTIONS | {"seed": seed, "vocabulary": vocabulary}),
    )


def training(epochs: int, seed: int) -> LoopConfig:
    """How an encoder learns them, alone, as the recipe `text` does."""
    return LoopConfig(
        epochs=epochs, batch_size=32, opt="adamw", lr=1e-3, scale_lr=False, weight_decay=0.05, warmup_epochs=1,
        clip=1.0, ema_decay=0.99, seed=seed,
    )  # fmt: skip


@torch.inference_mode()
def right(family: Family, model: nn.Module, data: Data) -> np.ndarray:
    """For each tested text whether `model` tells its class."""
    model.eval()
    batches = data.evaluation_batches(data.test, None)
    found = [family.task.per_example(model(*family.task.inputs(batch, None)), batch) for batch in batches]
    return torch.cat(found).double().numpy()
