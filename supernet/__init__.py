"""One-shot neural architecture search: train one weight-sharing supernet, take out the best subnet for each device."""

from typing import TYPE_CHECKING

from supernet.imports import lazily
from supernet.space import Arch, Choice, SearchSpace

if TYPE_CHECKING:
    from supernet.artifacts.runs import load_run
    from supernet.artifacts.subnet import load_subnet
    from supernet.families.family import Family
    from supernet.supernet import Supernet

__version__ = "0.1.0"
__all__ = ["Arch", "Choice", "Family", "SearchSpace", "Supernet", "load_run", "load_subnet"]

# torch and timm, which take seconds, wait until one of these is asked for
__getattr__ = lazily(
    __name__,
    {
        "supernet.artifacts.runs": ["load_run"],
        "supernet.artifacts.subnet": ["load_subnet"],
        "supernet.families.family": ["Family"],
        "supernet.supernet": ["Supernet"],
    },
)
