"""What is trained on: the protocol, and the images: where they come from, how they are split, prepared and loaded."""

from supernet.training.data.image_data import DataConfig, ImageData, load_data, resize
from supernet.training.data.protocol import Data

__all__ = ["Data", "DataConfig", "ImageData", "load_data", "resize"]
