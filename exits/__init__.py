"""Networks with several exits: each example leaves at the first that its policy trusts."""

from typing import TYPE_CHECKING

from exits.policies import POLICIES, Confidence, Entropy, Patience, Policy, exits_taken
from exits.runner import Answer, Chain
from supernet.imports import lazily

if TYPE_CHECKING:
    from exits.chain import export_chain
    from exits.choosing import Chosen, Tradeoff, candidates, choose, tradeoff
    from exits.comparing import Compared, choose_network, compare, compare_networks, plot_compared
    from exits.network import Exits, ExitTask, exits_family, with_exits
    from exits.parts import Latencies, cumulative_ms, measure_parts, parts_of

__all__ = [
    "POLICIES",
    "Answer",
    "Chain",
    "Chosen",
    "Compared",
    "Confidence",
    "Entropy",
    "ExitTask",
    "Exits",
    "Latencies",
    "Patience",
    "Policy",
    "Tradeoff",
    "candidates",
    "choose",
    "choose_network",
    "compare",
    "compare_networks",
    "cumulative_ms",
    "exits_family",
    "exits_taken",
    "export_chain",
    "measure_parts",
    "parts_of",
    "plot_compared",
    "tradeoff",
    "with_exits",
]

# a device that runs a chain needs no torch
__getattr__ = lazily(
    __name__,
    {
        "exits.chain": ["export_chain"],
        "exits.network": ["ExitTask", "Exits", "exits_family", "with_exits"],
        "exits.parts": ["Latencies", "cumulative_ms", "measure_parts", "parts_of"],
        "exits.comparing": ["Compared", "choose_network", "compare", "compare_networks", "plot_compared"],
        "exits.choosing": ["Chosen", "Tradeoff", "candidates", "choose", "tradeoff"],
    },
)
