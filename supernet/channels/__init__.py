"""Which channels of a model belong together, and models with fewer, more, or reordered ones."""

from supernet.channels.tracer import Call, Channels, Layer, Member, Trace, trace, trace_on
from supernet.channels.widths import narrow, slicing_rules, widen

__all__ = ["Call", "Channels", "Layer", "Member", "Trace", "narrow", "slicing_rules", "trace", "trace_on", "widen"]
