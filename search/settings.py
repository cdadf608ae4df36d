"""What a search was asked to do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from search.blockwise.dna import DnaConfig
from search.scores.teacher_guided import GuidanceConfig
from search.strategies import ACCURACY, GUIDED, check_strategy
from search.untrained.te_nas import PUBLISHED, TeNasConfig

SCORES = (ACCURACY, *GUIDED)
SAID_ANEW = ("batch_size", "dna.workers", "dna.device", "rdm.device")
"""Settings of a search that its result does not follow from: it goes on under others."""


@dataclass(frozen=True)
class SearchJob:
    """All that the result of a search follows from, given the run."""

    strategy: str = "evolution"
    """One of search.strategies.STRATEGIES, or te_nas, zero_cost, rdm or dna, which search by the score of that name."""
    score: str | None = None
    """What the other strategies judge architectures by: accuracy, the default, te_nas, zero_cost, rdm or dna."""
    limits: Mapping[str, float] = field(default_factory=dict)
    """The largest admissible macs, parameters, activation_bytes (for one image) and milliseconds by device name."""
    objectives: tuple[str, ...] = ()
    """Costs to trade off against the score; by default the latency on every device, or macs if there is none."""
    evaluations: int = 1000
    """Architectures to evaluate."""
    population: int = 100
    """Architectures in a generation."""
    images: int | None = None
    """Held-out images that judge an architecture; all if None."""
    calibration_images: int | None = None
    """Training images for BatchNorm; as in training if None."""
    batch_size: int = 500
    """Images that a subnet runs on at a time."""
    zero_cost: tuple[str, ...] = ("synflow", "jacob_cov", "snip")
    """Scores of search.scores.untrained.NAMES whose mean rank is the score zero_cost, or vote."""
    zero_cost_images: int = 64
    """Images that the scores without training see at a time; TE-NAS draws from eight times as many."""
    te_nas: TeNasConfig = PUBLISHED
    """How the score te_nas measures."""
    teacher: str | None = None
    """Whom rdm and dna follow: a pretrained model of timm's, or the folder of an extracted subnet or a training run."""
    rdm: GuidanceConfig = field(default_factory=GuidanceConfig)
    """How the score rdm compares with the teacher."""
    dna: DnaConfig = field(default_factory=DnaConfig)
    """How the score dna trains blocks by the teacher."""
    seed: int = 0
    """All that is random follows from it."""

    def __post_init__(self):
        check_strategy(self.strategy)
        if self.score is not None and self.score not in SCORES:
            raise ValueError(f"there is no score {self.score!r}; the scores are {', '.join(SCORES)}")
        if self.strategy in GUIDED and self.score not in (None, self.strategy):
            raise ValueError(f"the strategy {self.strategy} goes by the score of its own name, not by {self.score}")
        for name in ("evaluations", "population", "batch_size", "zero_cost_images"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is at least 1, not {getattr(self, name)}")

    @property
    def judged_by(self) -> str:
        """The name of the score."""
        return self.strategy if self.strategy in GUIDED else self.score or ACCURACY
