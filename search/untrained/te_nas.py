"""Training-free search by trainability and expressivity (TE-NAS, Chen et al., ICLR 2021, arXiv 2102.11535).

An architecture is measured by the condition number of its neural tangent kernel (lower is better) and its number of
linear regions (higher is better), each on a small network in its place, and ranked by the sum of both ranks (see
`search.untrained.ensemble.mean_rank`). `search_by_pruning` cuts a full supernet of operations down to an architecture.

The authors' code departs from their paper. `PUBLISHED` and the networks of `search.untrained.proxies` are those of the
code, which give the published correlations on NAS-Bench-201; the paper names batches of 32 images and regions of 5,000
images, with 3 repeats each. A condition number that is not a number is the worst in the code, too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from scipy.stats import rankdata
from torch import Tensor, nn

from search.untrained.initialisation import built, initialise, seeded_generator
from search.untrained.mixed_operations import Builder, Candidates, check_operations, mix
from search.untrained.ntk import BatchNormMode, condition_number, linear_regions
from supernet.calibration import Inputs, as_arguments
from supernet.space import Arch, SearchSpace
from supernet.training.data.batch import chosen

# N images to draw from, C channels, H height, W width


@dataclass(frozen=True)
class TeNasConfig:
    """How condition number and regions are measured."""

    repeats: int = 3
    """Draws of weights and images; both numbers are means over them."""
    ntk_images: int = 72
    """Images of the tangent kernel (all there are, if fewer)."""
    batch_norm: BatchNormMode = "batch"
    """Whether gradients run through the batch's statistics ("batch") or not ("frozen"); see `search.untrained.ntk`."""
    region_images: int = 3000
    """Patches whose activation patterns are told apart."""
    region_batch: int = 1000
    """Patches that share BatchNorm statistics."""

    def __post_init__(self):
        if min(self.repeats, self.region_images, self.region_batch) < 1 or self.ntk_images < 2:
            raise ValueError(f"repeats, region images and batches are positive and NTK images at least 2, not {self}")


PUBLISHED = TeNasConfig()


@dataclass(frozen=True)
class Proxies:
    """The networks that are measured in an architecture's place, and the patches that regions are counted on."""

    ntk: Builder
    regions: Builder
    patch: tuple[int, int, int]
    """Channels, height and width of the patches, cut out of the images at random."""


class TeNasMeasurement(NamedTuple):
    """Means over draws: the condition number (lower is better) and the number of linear regions (higher is better)."""

    condition_number: float
    regions: float


def measure_architecture(
    proxies: Proxies, arch: Arch, images: Tensor, settings: TeNasConfig = PUBLISHED, seed: int = 0
) -> TeNasMeasurement:
    """Condition number and linear regions of `arch` on draws from `images` [N, C, H, W]; deterministic from `seed`.

    A draw gives layers of the same name and shape the same weights, whatever the architecture.
    """
    return TeNasMeasurement(
        float(condition_numbers(built(proxies.ntk, arch, seed), images, settings, seed).mean()),
        float(region_counts(built(proxies.regions, arch, seed), proxies.patch, images, settings, seed).mean()),
    )


Change = Callable[[Candidates, Candidates], tuple[float, float]]
"""Of (before, after) a cut: the parts by which the condition number and the regions fall."""


def search_by_pruning(
    space: SearchSpace,
    proxies: Proxies,
    images: Tensor,
    settings: TeNasConfig = PUBLISHED,
    seed: int = 0,
    exclude: Sequence[str] = ("none",),
    on_round: Callable[[Candidates], None] = lambda candidates: None,
) -> Arch:
    """The architecture that is left when TE-NAS cuts the full supernet down, measured on draws from `images`.

    See `prune` for the search and its errors. Deterministic from `seed`. Measures 54 cuts on NAS-Bench-201.
    """
    return prune(space, change_by_cutting(space, proxies, images, settings, seed), exclude, on_round=on_round)


def prunable(space: SearchSpace, proxies: Proxies) -> bool:
    """Whether `search_by_pruning` applies: the space chooses between operations, which the proxies can mix."""
    candidates = {name: choice.values for name, choice in space.choices.items()}
    try:
        for build in (proxies.ntk, proxies.regions):
            mix(space, build, candidates)
    except ValueError:
        return False
    return True


def prune(
    space: SearchSpace,
    change: Change,
    exclude: Sequence[str] = ("none",),
    digits: int = 3,
    on_round: Callable[[Candidates], None] = lambda candidates: None,
) -> Arch:
    """Cut operations until each choice has one left (TE-NAS, section 3.3 and algorithm 1).

    Starts from all operations but those in `exclude`. In each round every operation of every undecided choice is cut
    tentatively, and all these cuts are ranked twice: by how much the condition number falls (most first) and by how
    much the number of regions does (least first), relatively and rounded to `digits`, as the authors' code does. Each
    undecided choice then loses the operation with the smallest sum of ranks, of equal ones that with the larger fall
    of the condition number. `on_round` sees what is left after each round.

    ValueError if the space has other choices than between operations, or if `exclude` leaves none.
    """
    check_operations(space)
    candidates = {name: tuple(v for v in c.values if v not in exclude) for name, c in space.choices.items()}
    if empty := [name for name, operations in candidates.items() if not operations]:
        raise ValueError(f"choice {empty[0]!r} has no operation left when {', '.join(exclude)} are excluded")
    while cuts := [(name, operation) for name, left in candidates.items() if len(left) > 1 for operation in left]:
        falls = np.array([change(candidates, _without(candidates, *cut)) for cut in cuts]).round(digits)
        by_condition, by_regions = rankdata(-falls[:, 0], "dense"), rankdata(falls[:, 1], "dense")
        best_last = np.lexsort((by_condition, by_condition + by_regions))[::-1]
        for cut in dict(cuts[index] for index in best_last).items():  # the last of a choice overrides those before
            candidates = _without(candidates, *cut)
        on_round(candidates)
    return space.validate({name: operations[0] for name, operations in candidates.items()})


def change_by_cutting(
    space: SearchSpace, proxies: Proxies, images: Tensor, settings: TeNasConfig = PUBLISHED, seed: int = 0
) -> Change:
    """The relative falls of condition number and regions when operations are cut from those that `proxies` mix.

    ((k_before - k_after) / k_before, (r_before - r_after) / r_before), means over draws. In a draw both networks have
    the same weights and see the same images, and so do all cuts; in the authors' code every cut has draws of its own.
    """

    @lru_cache(maxsize=2)  # the supernet of a round is asked for with every cut
    def measurements(candidates: tuple[tuple[str, tuple[str, ...]], ...]) -> np.ndarray:
        ntk_network, region_network = (
            built(lambda candidates, build=build: mix(space, build, candidates), dict(candidates), seed)
            for build in (proxies.ntk, proxies.regions)
        )
        conditions = condition_numbers(ntk_network, images, settings, seed)
        return np.array([conditions, region_counts(region_network, proxies.patch, images, settings, seed)])

    def change(whole: Candidates, part: Candidates) -> tuple[float, float]:
        before, after = (measurements(tuple(candidates.items())) for candidates in (whole, part))
        condition, regions = ((before - after) / before).mean(axis=1).tolist()
        return condition, regions

    return change


def condition_numbers(network: nn.Module, inputs: Inputs, settings: TeNasConfig, seed: int) -> np.ndarray:
    """The condition number in each draw [repeats], with fan-out initialisation, where the inputs are.

    Deterministic from `seed` for a network of `search.untrained.initialisation.built`; the network stays there, with
    the weights of the last draw.
    """
    values = []
    first = as_arguments(inputs)[0]
    for draw in range(settings.repeats):
        initialise(network.cpu(), "fan_out", seed, draw)
        network.to(first.device)
        drawn = torch.randperm(len(first), generator=seeded_generator(seed, draw))[: settings.ntk_images]
        values.append(condition_number(network, chosen(inputs, drawn), settings.batch_norm))
    return np.array(values)


def region_counts(
    network: nn.Module, patch: tuple[int, int, int], images: Tensor, settings: TeNasConfig, seed: int
) -> np.ndarray:
    """The number of linear regions in each draw [repeats], with fan-in initialisation, where the images are.

    Deterministic from `seed` for a network of `search.untrained.initialisation.built`; the network stays there, with
    the weights of the last draw.
    """
    values = []
    for draw in range(settings.repeats):
        initialise(network.cpu(), "fan_in", seed, draw)
        network.to(images.device)
        patches = random_patches(images, patch, settings.region_images, seeded_generator(seed, draw))
        values.append(linear_regions(network, patches, settings.region_batch))
    return np.array(values)


def random_patches(images: Tensor, shape: tuple[int, int, int], count: int, generator: torch.Generator) -> Tensor:
    """Patches [count, C, H, W] of `shape`, cut out of `images` [N, C', H', W'] at random places and, where C is less
    than C', of random channels in order.

    ValueError if the images are smaller than the patches.
    """
    if any(have < want for have, want in zip(images.shape[1:], shape)):
        raise ValueError(f"patches of {list(shape)} cannot be cut out of images of {list(images.shape[1:])}")
    channels, height, width = shape

    def runs(size: int, part: int) -> Tensor:
        """For each patch `part` successive indices below `size` [count, part]."""
        return torch.randint(size - part + 1, (count, 1), generator=generator) + torch.arange(part)

    which = torch.randint(len(images), (count,), generator=generator)
    chosen = torch.rand(count, images.shape[1], generator=generator).argsort(dim=1)[:, :channels].sort(dim=1).values
    rows, columns = runs(images.shape[2], height), runs(images.shape[3], width)
    return images[which[:, None, None, None], chosen[:, :, None, None], rows[:, None, :, None], columns[:, None, None]]


def _without(candidates: Candidates, name: str, operation: str) -> Candidates:
    return {**candidates, name: tuple(left for left in candidates[name] if left != operation)}
