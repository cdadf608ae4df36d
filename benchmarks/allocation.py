"""Whether the exact allocation gives the bits that HAWQ-V3 published for ResNet-18.

    python benchmarks/allocation.py [--json FILE] [--data ../shared/data]

The authors' traces of the Hessian, squared errors, sizes, MACs and latencies on a T4 of 19 layers (Yao et al., ICML
2021, arXiv 2011.10680) are given to `compress.allocation.allocate`: the gain of a layer in b bits is minus trace times
squared error, and the limit the cost of all layers in 4 bits plus 0.75, 0.5 or 0.25 of what 8 bits cost more. Nine
assignments of bits are published. A second.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from report import report

from compress import allocate

BITS = (8, 4)


@dataclass(frozen=True)
class Arguments:
    data: Path = Path("../shared/data")
    """Folder with quantisation/."""
    quick: bool = False
    """The same: it takes a second."""
    json: Path | None = None
    """File for the result."""


def main() -> None:
    arguments = tyro.cli(Arguments, description=__doc__)
    layers = json.loads((arguments.data / "quantisation" / "hawq_v3_resnet18.json").read_text())
    gain = np.stack([-np.multiply(layers["trace"], layers[f"squared_error_{bits}bit"]) for bits in BITS], axis=1)
    costs = {
        "modelsize": np.outer(layers["parameters_mi"], BITS) / 8,
        "bops": np.outer(layers["macs_m"], np.square(BITS)),
        "latency": np.stack([layers[f"latency_ms_{bits}bit"] for bits in BITS], axis=1),
    }
    rows = []
    for name, cost in costs.items():
        most, least = cost.sum(0)
        for part, published in layers["published_bits"][name].items():
            chosen = allocate(gain, cost, least + float(part) * (most - least), layers["tied"])
            found = "".join(str(BITS[option]) for option in chosen)
            rows.append({"limited": name, "part": part, "found": found, "as published": found == published})
    same = sum(row["as published"] for row in rows)
    report(rows, {"assignments": len(rows), "as_published": same}, arguments.json)


if __name__ == "__main__":
    main()
