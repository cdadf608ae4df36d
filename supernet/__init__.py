"""One-shot neural architecture search: train one weight-sharing supernet, take out the best subnet for each device."""

from supernet.space import Arch, Choice, SearchSpace
from supernet.supernet import Supernet

__all__ = ["Arch", "Choice", "SearchSpace", "Supernet"]
