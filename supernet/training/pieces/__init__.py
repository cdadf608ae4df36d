"""How the pieces of subnets run in training: as they are, as CUDA graphs, or compiled."""

from supernet.training.pieces.ways import Ways, ways_of

__all__ = ["Ways", "ways_of"]
