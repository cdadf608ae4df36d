"""Training-free scores of architectures by name: what a search uses in the place of a trained supernet.

A score is a callable from a list of architectures to one float each, higher is better. Those of
`search.untrained.zero_cost` see the network as its builder initialises it and one batch; `ntk` (the condition number,
negated) and `regions` see the proxies of `search.untrained.te_nas`; `macs` and `parameters` are the baselines that a
score has to beat.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from search.untrained import te_nas, zero_cost
from search.untrained.ensemble import majority_vote, mean_rank
from search.untrained.initialisation import built
from supernet.calibration import Inputs
from supernet.families.family import Family
from supernet.space import Arch
from supernet.training.data import resize

# N images, B batch, n architectures, s scores

PROXIED = ("ntk", "regions")
COSTS = ("macs", "parameters")
NAMES = (*zero_cost.SCORES, *PROXIED, *COSTS)
ENSEMBLES: Mapping[str, tuple[Callable[..., np.ndarray], tuple[str, ...]]] = {
    "te_nas": (mean_rank, PROXIED),  # arXiv 2102.11535, section 3.3
    "vote": (majority_vote, ("synflow", "jacob_cov", "snip")),  # arXiv 2101.08134, section 4.2
}


@dataclass(frozen=True)
class LabelledImages:
    """What architectures are scored on."""

    images: Inputs
    """Normalised images [N, C, H, W], which every architecture sees at its own resolution; or what networks are called
    with in their place: tokens [N, L], or a tuple of these and a mask."""
    labels: Tensor
    """Their classes [N], or those of every position [N, L]."""
    size: int = 64
    """So many of the images, the first ones, are the batch of the zero-cost scores; `ntk` and `regions` draw from
    all."""

    def to(self, device: torch.device | str) -> LabelledImages:
        """The same on `device`, where the architectures then run."""
        return replace(self, images=tree_map(lambda x: x.to(device), self.images), labels=self.labels.to(device))


def score_architecture(
    family: Family,
    names: Sequence[str],
    arch: Arch,
    batch: LabelledImages,
    seed: int = 0,
    proxies: te_nas.Proxies | None = None,
    settings: te_nas.TeNasConfig = te_nas.PUBLISHED,
) -> dict[str, float]:
    """The scores `names` (of `NAMES`) of one architecture, each higher is better; deterministic from `seed`.

    The network is initialised from `seed`, whatever the architecture. `proxies` stand in for it in `ntk` and `regions`,
    see `search.untrained.proxies`. Without proxies, `ntk` measures the network itself, and `regions` cannot be counted:
    ValueError, as for an unknown name.
    """
    check_names(names, proxies)
    images, resolution = batch.images, family.resolution(arch)
    if resolution is not None:
        images = resize(images, resolution)
    scores = {}
    if networks := [name for name in names if name in zero_cost.SCORES]:
        model = build_untrained(family, arch, seed).to(batch.labels.device)
        first, labels = tree_map(lambda x: x[: batch.size], (images, batch.labels))
        scores |= {name: zero_cost.SCORES[name](model, first, labels) for name in networks}
    if "ntk" in names:
        network = built(proxies.ntk if proxies else family.build, arch, seed)
        scores["ntk"] = -te_nas.condition_numbers(network, images, settings, seed).mean()
    if "regions" in names:
        network = built(proxies.regions, arch, seed)
        scores["regions"] = te_nas.region_counts(network, proxies.patch, images, settings, seed).mean()
    scores |= {"macs": family.macs(arch), "parameters": family.parameters(arch)}
    return {name: float(scores[name]) for name in names}


class TrainingFreeScore:
    """A search's score from `names`: of `NAMES`, or a single one of `ENSEMBLES` ("te_nas", "vote").

    One name gives that score. Several give the mean rank (see `search.untrained.ensemble.mean_rank`), an ensemble its
    own combination, both among `reference` architectures sampled from `seed` and scored when the score is first called
    (or by `prepare`): so values of different calls compare. ValueError for unknown names.
    """

    def __init__(
        self,
        family: Family,
        names: Sequence[str],
        batch: LabelledImages,
        seed: int = 0,
        proxies: te_nas.Proxies | None = None,
        settings: te_nas.TeNasConfig = te_nas.PUBLISHED,
        reference: int = 100,
    ) -> None:
        ensemble = ENSEMBLES.get(names[0]) if len(names) == 1 else None
        self._combine, self._members = ensemble or (mean_rank, tuple(names))
        check_names(self._members, proxies)
        self.batch = batch
        self._family, self._proxies, self._settings = family, proxies, settings
        self._seed = seed
        self._reference = reference
        self._reference_rows: np.ndarray | None = None  # once they are scored

    def to(self, device: torch.device | str) -> TrainingFreeScore:
        """Puts the images on `device`, where the architectures then run, in place."""
        self.batch = self.batch.to(device)
        return self

    def __call__(self, archs: Sequence[Arch]) -> list[float]:
        if not archs:
            return []
        self.prepare()
        rows = self._rows(archs)
        return (rows[0] if self._reference_rows is None else self._combine(rows, self._reference_rows)).tolist()

    def each(self, archs: Sequence[Arch]) -> Iterator[tuple[int, float | Exception]]:
        """The index and the score of each architecture, or what scoring it raised, as soon as it is known."""
        for index, arch in enumerate(archs):
            try:
                yield index, self([arch])[0]
            except Exception as error:
                yield index, error

    def prepare(self) -> None:
        """Score the reference, if there is one and it is not known."""
        if len(self._members) > 1 and self._reference_rows is None:
            generator = np.random.default_rng(self._seed)
            self._reference_rows = self._rows([self._family.space.sample(generator) for _ in range(self._reference)])

    def _rows(self, archs: Sequence[Arch]) -> np.ndarray:
        """The scores [s, n] of architectures."""
        scored = [
            score_architecture(self._family, self._members, arch, self.batch, self._seed, self._proxies, self._settings)
            for arch in archs
        ]
        return np.array([[scores[name] for scores in scored] for name in self._members])


def build_untrained(family: Family, arch: Arch, seed: int) -> nn.Module:
    """The plain module of `arch` with the weights that its builder draws from `seed`."""
    return built(family.build, arch, seed)


def check_names(names: Sequence[str], proxies: te_nas.Proxies | None) -> None:
    """ValueError unless all `names` are scores that can be computed with these proxies."""
    if not names:
        raise ValueError(f"name at least one score: {', '.join(NAMES)}")
    if unknown := [name for name in names if name not in NAMES]:
        raise ValueError(
            f"there is no score {unknown[0]!r}; scores are {', '.join(NAMES)}, or {' or '.join(ENSEMBLES)} by itself"
        )
    if "regions" in names and proxies is None:
        raise ValueError(
            "regions cannot be counted in this space: every image of a network this large has a region of its own; "
            "give te_nas.Proxies of smaller networks, or leave the score out"
        )
