"""How fast a device can compute and move data at best: the roofline that no network's time goes below.

A layer of M multiply-accumulates that moves B bytes takes at least max(M / peak, B / bandwidth) (Williams, Waterman and
Patterson, Communications of the ACM 52(4), 2009). `predictors.roofline` measures it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from supernet.artifacts.atomic import write_json
from supernet.artifacts.formats import ROOFLINE, UnknownFormat
from supernet.artifacts.reading import parse_json, typed

FILE = "roofline.json"


@dataclass(frozen=True)
class Roofline:
    """The best that a device does, at its precision and with its threads."""

    peak_macs: float  # multiply-accumulates a second
    bandwidths: Mapping[
        int, float
    ]  # bytes a second, by the bytes that an operation moves: caches are faster than memory
    overhead_ms: float = 0.0  # of each operation, whatever it does

    def __post_init__(self):
        if not self.peak_macs > 0 or not self.bandwidths or not min(self.bandwidths.values()) > 0:
            raise ValueError(f"peak and bandwidth are positive, not {self.peak_macs} and {dict(self.bandwidths)}")

    def bandwidth(self, moved: float) -> float:
        """Bytes a second at best where an operation moves so many bytes: the most at any measured number of bytes that
        is not smaller, and at the next smaller one."""
        smaller = [size for size in self.bandwidths if size <= moved]
        least = max(smaller, default=min(self.bandwidths))
        return max(rate for size, rate in self.bandwidths.items() if size >= least)

    @property
    def memory_bandwidth(self) -> float:
        """Bytes a second of what no cache holds."""
        return self.bandwidths[max(self.bandwidths)]

    def compute_ms(self, macs: float) -> float:
        return 1e3 * macs / self.peak_macs

    def transfer_ms(self, moved: float) -> float:
        return 1e3 * moved / self.bandwidth(moved)

    def save(self, folder: str | Path) -> None:
        """Write `roofline.json` beside what else is known of the device."""
        content = {"format": ROOFLINE.label, **dataclasses.asdict(self)}
        write_json(Path(folder, FILE), content)

    @classmethod
    def load(cls, folder: str | Path) -> Roofline:
        """The roofline in `folder`; ValueError if there is none or it cannot be read."""
        path = Path(folder, FILE)
        if not path.exists():
            raise ValueError(f"there is no {path}: measure the device, or say its peak and bandwidth")
        try:
            content = parse_json(path.read_bytes(), dict)
            content = ROOFLINE.upgraded(content, content.pop("format", None), path)
            rates = {int(size): rate for size, rate in typed(dict[str, float], content.pop("bandwidths", {})).items()}
            return typed(cls, content | {"bandwidths": rates})
        except UnknownFormat:
            raise
        except ValueError as error:
            raise ValueError(f"{path} is no roofline, or damaged ({error}): delete it and measure again") from None
