"""The loop that every training goes through, and what it is made of."""

from supernet.training.loop.config import LoopConfig
from supernet.training.loop.loop import Loop, StepResult

__all__ = ["Loop", "LoopConfig", "StepResult"]
