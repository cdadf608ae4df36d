"""Images for training, calibration and evaluation: where they come from, how they are split, prepared and loaded."""

from supernet.training.data.image_data import Data, DataConfig, load_data, resize

__all__ = ["Data", "DataConfig", "load_data", "resize"]
