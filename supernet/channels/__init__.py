"""Which channels of a model belong together, and models with fewer, more, or reordered ones."""

from supernet.channels.tracer import Channels, Layer, Member, Trace, trace
from supernet.channels.widths import narrow, slicing_rules, widen

__all__ = ["Channels", "Layer", "Member", "Trace", "narrow", "slicing_rules", "trace", "widen"]
