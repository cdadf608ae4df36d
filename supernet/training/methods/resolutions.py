"""Resolutions that stay for several steps.

On a GPU a layer is slow the first time that it meets a shape, and a CUDA graph is of one shape. Where a step's subnets
have a resolution from a long list, most of what is made for a shape is not needed again for hundreds of steps.
"""

from __future__ import annotations

from supernet.space import SearchSpace, Value
from supernet.training.randomness import Stream, generator

METHODS = ("sandwich", "spos", "cream", "progressive")
"""Methods whose random subnets may have one resolution for several steps. Those of best_up and worst_up are chosen by
MACs, and fairnas trains every resolution in every step."""


class ResolutionRuns:
    """Parts of `space` for random subnets to be drawn from, of one resolution for `steps` steps in a row.

    The resolution of a run follows from `seed` and the run's number, uniformly, so that it is the same after a resume
    and in all processes. A random subnet of a step is drawn as it is without runs, so that the gradient is the same on
    average; but random subnets of one step, and of neighbouring steps, have the resolution in common.

    One step, the default, leaves all resolutions to each subnet. ValueError for more where the space has no choice of
    the resolution, or one that depends on others.
    """

    def __init__(self, space: SearchSpace, steps: int, seed: int) -> None:
        self._space, self._steps, self._seed = space, steps, seed
        self._parts: dict[Value, SearchSpace] = {}
        choice = space.choices.get("resolution")
        if steps > 1 and (choice is None or choice.when):
            raise ValueError(
                f"resolution_steps {steps}: this space has no choice 'resolution' that is independent of others; leave "
                "it out"
            )

    def space_of(self, step: int) -> SearchSpace:
        """What random subnets of a step, counted from 0, are drawn from."""
        if self._steps == 1:
            return self._space
        values = self._space.choices["resolution"].values
        value = values[generator(self._seed, Stream.RESOLUTION, step // self._steps).integers(len(values))]
        if value not in self._parts:
            self._parts[value] = self._space.restrict({"resolution": [value]})
        return self._parts[value]
