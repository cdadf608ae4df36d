"""Which data a job names, and how images are prepared."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Literal

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from supernet.conditions import only_where, other_than

TRAINING = ("second_labels", "scale", "ratio", "balanced", "hflip", "color_jitter", "auto_augment", "re_prob")
"""Settings of `DataConfig` that nothing but a training reads."""


@dataclass(frozen=True)
class DataConfig:
    """Which images, and how they are prepared."""

    dataset: str = "digits"
    """`digits` (8x8 pixels, within scikit-learn), or a name for timm's create_dataset: `folder` for folders and tar
    files, torch/NAME, hfds/NAME, wds/NAME, ...; `multilabel` for images of any number of classes each, by tables of
    their labels in `root` (supernet/training/data/label_table.py); `text` for a table of texts with classes; or code of
    your own, package.module:function or path/to/file.py:function, which gives data of any kind. These two take `root`
    and `dataset_options` alone."""
    root: Annotated[str | None, only_where(dataset=other_than("digits"))] = None
    """Folder (with train/ and val/ in it, say) or tar file of the images; a cache folder for hfds/NAME."""
    test_root: Annotated[str | None, only_where(dataset=other_than("digits"))] = None
    """Where the test images are, if not under `root`."""
    train_split: str = "train"
    """Name of the split to train on."""
    test_split: str = "validation"
    """Name of the split that only the chosen subnet is tested on."""
    holdout: float = 0.1
    """Part of the training images that is not trained on but judges subnets, above 0 and below 1."""
    holdout_split: str | None = None
    """Name of a split to judge subnets by instead; needed where images cannot be picked by index (wds/NAME, ...)."""
    num_classes: int | None = None
    """Number of classes, where the dataset does not tell (wds/NAME)."""
    rules: int = 3
    """Version of the rules by which images are found and held out, 3; runs from before go by theirs. By 2 the images of
    `holdout_split` are in the order in which they lie, often class by class, so that the first of them are of few
    classes. By 1, besides, files .png, .jpg and .jpeg alone are images, their innermost folder is their class, and they
    are held out regardless of it."""
    second_labels: str | None = None
    """CSV file with the labels of a second task, such as coarse classes or colours, in its columns file and label: what
    else a network learns to tell of the training images, by a head that is thrown away, with the weight second_task."""
    dataset_options: str = "{}"
    """Options of the dataset `text`, or of one of your own, as a JSON object, such as {"label": "topic"}."""
    scale: tuple[float, float] = (0.08, 1.0)
    """Area of a random training crop, as a part of the image."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Aspect ratio of a random training crop."""
    balanced: bool = False
    """Draw the images of an epoch with replacement, so that every class comes equally often however few it has."""
    hflip: float = 0.5
    """Probability of a horizontal flip in training."""
    color_jitter: float = 0.4
    """Strength of random brightness, contrast and saturation in training; 0 for none."""
    auto_augment: str | None = None
    """timm's name of an augmentation policy, such as rand-m9-mstd0.5."""
    re_prob: float = 0.0
    """Probability of random erasing."""
    interpolation: Literal["bicubic", "bilinear", "lanczos", "nearest"] = "bicubic"
    """How images are resized."""
    crop_pct: float = 0.875
    """Part of the image's shorter side that the central crop keeps in evaluation."""
    mean: tuple[float, float, float] | None = None
    """Mean of each channel, subtracted; by default that of the pretrained model that a training starts from, or else
    ImageNet's."""
    std: tuple[float, float, float] | None = None
    """Standard deviation of each channel, divided by; by default as the mean."""

    @property
    def normalised(self) -> DataConfig:
        """With ImageNet's mean and standard deviation where none are said."""
        return replace(self, mean=self.mean or IMAGENET_DEFAULT_MEAN, std=self.std or IMAGENET_DEFAULT_STD)

    def __post_init__(self):
        if self.rules not in (1, 2, 3):
            raise ValueError(f"rules are 3, or 1 or 2, the former ones, not {self.rules}")
        if not 0 < self.holdout < 1:
            raise ValueError(f"holdout is a part of the training images, between 0 and 1, not {self.holdout}")
        if not 0 < self.crop_pct <= 1:
            raise ValueError(f"crop_pct is a part of the image, above 0 and at most 1, not {self.crop_pct}")
        for name in ("hflip", "re_prob"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is a probability, not {getattr(self, name)}")
        for name in ("scale", "ratio"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise ValueError(f"{name} is a range of positive numbers, the smaller first, not {low} {high}")
        if self.color_jitter < 0:
            raise ValueError(f"color_jitter is 0 or more, not {self.color_jitter}")
