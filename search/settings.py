"""What a search was asked to do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from search.blockwise.dna import DnaConfig
from search.scores.ensemble import EnsembleConfig
from search.scores.teacher_guided import GuidanceConfig
from search.scores.trained_alone import AkdConfig
from search.strategies import check_strategy
from search.untrained.te_nas import PUBLISHED, TeNasConfig
from supernet.evaluation import CALIBRATION_BYTES

ACCURACY = "accuracy"
ENSEMBLE = "ensemble"
AKD = "akd"
SCORES = (ACCURACY, "te_nas", "zero_cost", "rdm", "dna", ENSEMBLE, AKD)
WITH_SEARCH = ("te_nas", "dna")
"""Scores that come with a search of their own: pruning, and the traversal of blocks."""
BY_TEACHER = ("rdm", "dna", AKD)
"""Scores that ask a teacher."""
READ_BY = {name: (name,) for name in ("zero_cost", "te_nas", "rdm", "dna", ENSEMBLE, AKD)} | {"teacher": BY_TEACHER}
"""Settings of a search, by name, that are read for these scores alone."""
POPULATION = 100
RACE = 0.9
"""Confidence of races if nothing is said. With 0.9, what searches find cannot be told from what they find without
races; benchmarks/races.py measures it."""
RACE_FROM = 1000
"""Held-out examples from which on races save enough to be worth their rejections."""
MOST_OF_A_GENERATION = 10_000
"""Evolution compares all of a generation with each other."""
SAID_ANEW = ("batch_size", "calibration_bytes", "dna.workers", "dna.device", "dna.amp", "rdm.device")
"""Settings of a search that its result does not follow from, but for little: the search goes on under others. The
devices are in histories of former versions alone."""


@dataclass(frozen=True)
class SearchJob:
    """All that the result of a search follows from, given the run."""

    strategy: str | None = None
    """One of search.strategies.NAMES; by default the search that comes with the score, or else evolution."""
    score: str = ACCURACY
    """What architectures are judged by: accuracy, te_nas, zero_cost, rdm, dna, ensemble or akd."""
    limits: Mapping[str, float] = field(default_factory=dict)
    """The largest admissible macs, parameters, activation_bytes (for one image), stored_bytes, both at a precision too
    (`search.counts`), and milliseconds by device name."""
    objectives: tuple[str, ...] = ()
    """Costs to trade off against the score; by default the latency on every device, or macs if there is none."""
    evaluations: int = 1000
    """Architectures to evaluate."""
    population: int | None = None
    """Architectures in a generation, no more than are evaluated; POPULATION unless given."""
    images: int | None = 10_000
    """Held-out images that judge an architecture, at most; all if None. An accuracy of 80 % of so many has a standard
    error of 0.4 %."""
    resize_images: bool = False
    """Prepare images at the largest resolution alone and resize them for each subnet, as training does. Otherwise they
    are prepared at every resolution by themselves, as for use, which takes so many times the memory and the loading."""
    calibration_images: int | None = None
    """Training images for BatchNorm; as in training if None."""
    batch_size: int = 500
    """Images that a subnet runs on at a time."""
    calibration_bytes: int = CALIBRATION_BYTES
    """Bytes that the activations of images may take at once, at one depth of the largest subnet. BatchNorm is
    recalibrated exactly where all calibration images are within them, and in chunks where they are not, which changes
    values by much less than other images would (docs/methods/calibration.md)."""
    amp: Literal["bf16"] | None = None
    """bf16 judges by networks that compute in bfloat16, which is faster where the device has instructions for it, and
    refused where it has not; None in single precision."""
    race: float | Literal["auto"] | None = "auto"
    """Confidence, such as 0.9, with which each architecture of the front survives races (`search.racing`): all are
    judged by some of the images, and only those that may be on the front by all. None judges all by all. auto races at
    RACE where the score is a mean over RACE_FROM held-out examples or more (`search.scores.judges.settled`)."""
    zero_cost: tuple[str, ...] = ("synflow", "jacob_cov", "snip")
    """Scores of search.scores.untrained.NAMES whose mean rank is the score zero_cost, or vote."""
    zero_cost_images: int = 64
    """Images that the scores without training see at a time; TE-NAS draws from eight times as many."""
    te_nas: TeNasConfig = PUBLISHED
    """How the score te_nas measures."""
    teacher: str | None = None
    """Whom rdm, dna and akd follow: a pretrained model of timm's, or the folder of a subnet or a training run."""
    rdm: GuidanceConfig = field(default_factory=GuidanceConfig)
    """How the score rdm compares with the teacher."""
    dna: DnaConfig = field(default_factory=DnaConfig)
    """How the score dna trains blocks by the teacher."""
    ensemble: EnsembleConfig = field(default_factory=EnsembleConfig)
    """Which scores the score ensemble combines, and what it learns from."""
    akd: AkdConfig = field(default_factory=AkdConfig)
    """How the score akd trains each architecture by the teacher."""
    seed: int = 0
    """All that is random follows from it."""

    def __post_init__(self):
        if self.population is not None and self.population > min(self.evaluations, MOST_OF_A_GENERATION):
            raise ValueError(
                f"a generation of {self.population} architectures is too large: population is at most "
                f"{MOST_OF_A_GENERATION:,}, and no more than the {self.evaluations} evaluations"
            )
        if self.strategy in SCORES:
            raise ValueError(f"{self.strategy} is no strategy but a score: say --score {self.strategy}")
        if self.strategy is not None:
            check_strategy(self.strategy)
        if self.score not in SCORES:
            raise ValueError(f"there is no score {self.score!r}; the scores are {', '.join(SCORES)}")
        if isinstance(self.race, str) and self.race != "auto":
            raise ValueError(f"race is auto, None, or a confidence such as 0.9, not {self.race!r}")
        if isinstance(self.race, float | int) and not 0 < self.race < 1:
            raise ValueError(f"the confidence of a race is between 0 and 1, such as 0.9, not {self.race}")
        for name in ("evaluations", "population", "batch_size", "calibration_bytes", "zero_cost_images"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name} is at least 1, not {value}")

    @property
    def generation_size(self) -> int:
        """Architectures in a generation."""
        return POPULATION if self.population is None else self.population

    @property
    def searches_by(self) -> str | None:
        """The name of the strategy; None for the search that comes with the score."""
        return self.strategy or (None if self.score in WITH_SEARCH else "evolution")
