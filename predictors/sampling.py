"""Which subnets to measure when nothing is known yet: small, middling and large ones alike."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from supernet.space import Arch, SearchSpace

POOL = 20  # architectures drawn for each that is kept


def graded(space: SearchSpace, count: int, generator: np.random.Generator) -> list[Arch]:
    """`count` architectures of all sizes between the smallest and the largest.

    Uniform sampling gives middling architectures only. Here each architecture draws its own place between 0 and 1, and
    every ordered choice falls near that place of its range (binomially); unordered ones are uniform.
    """
    choices = list(space.choices.values())
    sizes = np.array([len(choice.values) for choice in choices])
    places = generator.random((count, 1))
    codes = generator.binomial(sizes - 1, np.broadcast_to(places, (count, len(sizes))))
    uniform = generator.integers(sizes, size=codes.shape)
    return space.decode(np.where([choice.ordered for choice in choices], codes, uniform))


def stratified(
    space: SearchSpace, macs: Callable[[Arch], float], count: int, generator: np.random.Generator
) -> list[Arch]:
    """`count` distinct architectures: half of them uniform, half spread evenly over the logarithm of `macs`.

    ValueError if the space has fewer.
    """
    if space.size < count:
        raise ValueError(f"the space has {space.size} architectures, fewer than {count}")
    uniform = distinct(space, count - count // 2, generator)
    pool = [arch for arch in dict.fromkeys(graded(space, POOL * count, generator)) if arch not in uniform]
    if len(pool) < count // 2:  # a space so small that most of it is wanted
        return distinct(space, count, generator)
    sizes = np.log([macs(arch) for arch in pool])
    taken = np.zeros(len(pool), dtype=bool)
    for wanted in np.linspace(sizes.min(), sizes.max(), count // 2):
        taken[np.where(taken, np.inf, np.abs(sizes - wanted)).argmin()] = True
    return [*uniform, *(arch for arch, is_taken in zip(pool, taken) if is_taken)]


def distinct(space: SearchSpace, count: int, generator: np.random.Generator) -> list[Arch]:
    """`count` distinct architectures, each uniform. ValueError if the space has fewer."""
    if space.size < count:
        raise ValueError(f"the space has {space.size} architectures, fewer than {count}")
    archs: dict[Arch, None] = {}
    while len(archs) < count:
        archs[space.sample(generator)] = None
    return list(archs)
