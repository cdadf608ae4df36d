"""Network augmentation: a fixed tiny model trains within wider networks, which are then thrown away."""

from netaug.augmentation import Augmentation, augment
from netaug.training import NetAugConfig, NetAugJob, run_netaug_job, train_netaug

__all__ = ["Augmentation", "NetAugConfig", "NetAugJob", "augment", "run_netaug_job", "train_netaug"]
