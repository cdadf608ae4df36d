"""What is trained on: the protocol, and the images: where they come from, how they are split, prepared and loaded."""

from supernet.training.data.config import DataConfig
from supernet.training.data.image_data import ImageData, open_images, resize
from supernet.training.data.named import load_data
from supernet.training.data.protocol import Data

__all__ = ["Data", "DataConfig", "ImageData", "load_data", "open_images", "resize"]
