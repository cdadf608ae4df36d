"""Data by name: the images of `supernet.training.data.image_data`, the texts of `supernet.training.data.text`, and data
of one's own (see `supernet.own_code`).

A dataset's function takes its options, and `root` if one is said, and returns a `Data`.
"""

from __future__ import annotations

import dataclasses
import inspect
import json

from supernet.own_code import Kind
from supernet.training.data.config import DataConfig
from supernet.training.data.image_data import ImageData, open_images
from supernet.training.data.protocol import Data
from supernet.training.data.text import text

DATASETS = Kind("dataset", "dataset", "supernet.datasets", Data, {"text": text})

PASSED_ON = ("dataset", "dataset_options", "root")  # settings that a dataset of one's own gets


def load_data(config: DataConfig, seed: int = 0, workers: int | None = 0) -> Data:
    """The data that `config` names.

    Of images, a part of the training images is held out, chosen by `seed`, and `workers` processes load the images,
    which are the same for any number; 0 loads in this process, None leaves the number to the images and the machine.
    Data of one's own follow from their options alone.

    ValueError, naming what is missing or wrong, if the dataset, its package or a part of it is not there, and for
    settings that do not go with it.
    """
    if not is_of_any_kind(config.dataset):
        if config.dataset_options != "{}":
            raise ValueError(
                f"the options {config.dataset_options} are for a dataset of your own, not for {config.dataset!r}"
            )
        return open_images(config, seed, workers)
    function = DATASETS.find(config.dataset)
    for field in dataclasses.fields(DataConfig):
        if field.name not in PASSED_ON and (value := getattr(config, field.name)) != field.default:
            raise ValueError(
                f"{field.name} is a setting of images, here {value}, and no use to the dataset {config.dataset!r}: "
                "leave it out, or make it one of its dataset_options"
            )
    try:
        options = json.loads(config.dataset_options) | ({} if config.root is None else {"root": config.root})
        inspect.signature(function).bind(**options)  # a TypeError from within is the author's to see
    except (TypeError, json.JSONDecodeError) as error:
        root = "" if config.root is None else f" and the root {config.root!r}"
        raise ValueError(
            f"the options {config.dataset_options}{root} do not fit the dataset {config.dataset!r}: {error}"
        ) from error
    data = function(**options)
    if not isinstance(data, Data):
        raise ValueError(
            f"{config.dataset} returns a {type(data).__name__}, where it should return a supernet.training.data.Data"
        )
    try:
        json.dumps(dict(data.family_arguments))
    except TypeError as error:
        raise ValueError(f"the family_arguments of {config.dataset} are to be kept as JSON: {error}") from error
    return data


def is_of_any_kind(dataset: str) -> bool:
    """Whether the name `dataset` stands for data that need not be images: texts, installed ones, or code of one's
    own."""
    return dataset in DATASETS.known or DATASETS.is_own(dataset) or dataset in DATASETS.installed()


def settings_for(dataset: str | None, data: DataConfig) -> DataConfig:
    """`data`, the settings to start from, without those of images where `dataset` names other data of any kind."""
    if dataset is None or not is_of_any_kind(dataset) or DATASETS.same(dataset, data.dataset):
        return data
    return DataConfig(dataset)


def only_images(data: Data, what: str, instead: str, *, several_labels: bool = False) -> ImageData:
    """`data`, if they are images with a class each, or with any number of them where `several_labels` may be.

    ValueError otherwise, which says that `what` needs images with classes, and what to do `instead`.
    """
    if isinstance(data, ImageData):
        if data.several_labels and not several_labels:
            raise ValueError(f"{what} needs images with one class each, and these have several: {instead}")
        return data
    raise ValueError(f"{what} needs images with classes, and the data are {type(data).__name__}: {instead}")
