"""How well latencies are predicted from few measurements: two third-party tables, and this machine.

    python benchmarks/latency_prediction.py --quick                                      # a minute
    python benchmarks/latency_prediction.py --json benchmarks/results/latency_prediction.json    # 15 minutes
    python benchmarks/latency_prediction.py --parts local --local runs/latency           # what was measured there
    python benchmarks/latency_prediction.py --parts coverage                             # 10 minutes

FBNet (HELP, Lee et al., NeurIPS 2021, arXiv 2106.08630): predictors of nine source devices, each from 4,000 samples,
and ten samples of a new device; Spearman correlation over all other architectures, mean of ten seeds. The ten samples
are random, as published (MAML 0.736, Meta-SGD 0.806, HELP 0.910 on average over the test devices), or those that
`suggest` picks among the table's. Beside that with MACs and parameters among the sources, which HELP had not.
Methods were chosen by leaving out source devices, and on the validation devices.

Once-for-All: one device at a time, from 100, 300 and 1,000 random samples; mean absolute percentage error and
Spearman correlation on the rest. Beside ours, an additive lookup table (ridge regression on indicators of the choices)
and MACs alone (a straight line). With batch 1 the table is noisy: ours with 4,000 samples shows about what the noise
allows there.

Coverage: of 95 % intervals, from 10 to 300 random samples of FBNet's devices and of synthetic ones
(`latency_coverage`), with sources and, from 30 samples on, without. FBNet's are all that are neither sources nor for
validation; three of them, the test devices, are sums of a lookup table to the last digit, which 300 samples would
determine, so that their measurements are given a noise of 1 %.

This machine: 200 subnets of ofa_mobilenet_v3 of at most 160 pixels that `supernet measure-latency` measured into the
folder `--local`, 100 of them held out, ten random splits; and the noise floor, from its `--noise-floor`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import tyro
from fbnet_costs import totals
from latency_coverage import Device, coverage_rows, summary, synthetic
from report import report
from rich.progress import track
from scipy.stats import spearmanr
from sklearn.linear_model import RidgeCV

from predictors import LatencyPredictor, family_costs, suggest
from predictors.measuring.measurements import read_measurements
from predictors.measuring.noise import relative_differences
from predictors.transfer import Cost
from supernet.families import FAMILIES
from supernet.space import Arch, SearchSpace

OPERATIONS = ("k3_e1", "k3_e1_g2", "k3_e3", "k3_e6", "k5_e1", "k5_e1_g2", "k5_e3", "k5_e6", "skip")
SOURCES = "1080ti_1 1080ti_32 1080ti_64 silver_4114 silver_4210r samsung_a50 pixel3 essential_ph_1 samsung_s7".split()
VALIDATION = "titanx_1 titanx_32 titanx_64 gold_6240".split()
TEST = "fpga raspi4 eyeriss".split()
OTHERS = "2080ti_1 2080ti_32 2080ti_64 titan_rtx_1 titan_rtx_32 titan_rtx_64 titanxp_1 titanxp_32 titanxp_64".split()
OTHERS += "gold_6226 pixel2".split()
COUNTED = ", with MACs and parameters"
LOOKUP_NOISE = 0.01  # of a measurement, where a table is exactly a sum of its blocks' latencies, as of all TEST devices
TARGET_SAMPLES = 10
SOURCE_SAMPLES = 4000
SAMPLES = (100, 300, 1000)
HELD_OUT = 100


@dataclass(frozen=True)
class Arguments:
    quick: bool = False
    """One seed, two devices of the Once-for-All table, fewer source samples."""
    parts: tuple[Literal["fbnet", "ofa", "local", "speed", "coverage"], ...] = ("fbnet", "ofa", "speed")
    """What to run."""
    json: Path | None = None
    """Where to write the results."""
    data: Path = Path(__file__).parents[2] / "shared/data/latency"
    """Folder of the tables."""
    local: Path = Path("runs/latency")
    """Folder of measurements of this machine, as `supernet measure-latency` writes it."""
    seeds: int = 10
    """Seeds of the FBNet benchmark."""


def main() -> None:
    arguments = tyro.cli(Arguments, description=__doc__)
    rows, summary = [], {}
    for part in arguments.parts:
        part_rows, part_summary = PARTS[part](arguments)
        rows += part_rows
        summary |= part_summary
    report(rows, summary, arguments.json)


def read_table(path: Path) -> dict[str, np.ndarray]:
    names = np.genfromtxt(path, delimiter=",", max_rows=1, dtype=str)
    columns = np.genfromtxt(path, delimiter=",", skip_header=1)
    return dict(zip(names, columns.T))


def row(table: str, device: str, method: str, samples: int, spearman: float | None, mape: float | None = None) -> dict:
    return {
        "table": table,
        "device": device,
        "method": method,
        "samples": samples,
        "spearman": "" if spearman is None else spearman,
        "mape_percent": "" if mape is None else mape,
    }


def mape(predicted: np.ndarray, latency: np.ndarray) -> float:
    return float(100 * np.abs(predicted / latency - 1).mean())


def read_fbnet(arguments: Arguments) -> tuple[dict[str, np.ndarray], SearchSpace, np.ndarray]:
    """FBNet's table, its space, and the codes of its architectures."""
    table = read_table(arguments.data / "fbnet.csv.gz")
    blocks = [name for name in table if name.startswith("block")]
    codes = np.stack([table[name] for name in blocks], axis=1).astype(int)
    return table, SearchSpace({name: OPERATIONS for name in blocks}), codes


def fbnet_sources(
    arguments: Arguments,
    table: dict[str, np.ndarray],
    space: SearchSpace,
    codes: np.ndarray,
    generator: np.random.Generator,
) -> list[LatencyPredictor]:
    sources = []
    for device in SOURCES:
        part = generator.permutation(len(codes))[: 900 if arguments.quick else SOURCE_SAMPLES]
        sources.append(LatencyPredictor.fit(space, codes[part], table[f"ms_{device}"][part]))
    return sources


def fbnet_costs(space: SearchSpace) -> list[Cost]:
    """MACs and parameters, as the commands always have them among the sources."""
    return [lambda archs, which=which: totals(OPERATIONS, space.encode(archs))[which] for which in (0, 1)]


def fbnet(arguments: Arguments) -> tuple[list[dict], dict[str, float]]:
    table, space, codes = read_fbnet(arguments)
    archs = space.decode(codes)
    index = {arch: i for i, arch in enumerate(archs)}
    scores: dict[tuple[str, str], list[float]] = {}
    for seed in track(range(1 if arguments.quick else arguments.seeds), "FBNet"):
        generator = np.random.default_rng(seed)
        sources = fbnet_sources(arguments, table, space, codes, generator)
        shuffled = [archs[i] for i in generator.permutation(len(archs))]
        random = generator.permutation(len(codes))[:TARGET_SAMPLES]
        for which, of in (("", sources), (COUNTED, [*sources, *fbnet_costs(space)])):
            suggested = np.array([index[arch] for arch in suggest(space, TARGET_SAMPLES, of, shuffled)])
            for how, part in ((f"random{which}", random), (f"suggested{which}", suggested)):
                rest = np.setdiff1d(np.arange(len(codes)), part)
                for device in VALIDATION + TEST:
                    latency = table[f"ms_{device}"]
                    predictor = LatencyPredictor.fit(space, codes[part], latency[part], of)
                    score = spearmanr(predictor.cost(codes[rest]), latency[rest]).statistic
                    scores.setdefault((device, how), []).append(score)
    rows = [row("fbnet", d, f"transfer, {how}", TARGET_SAMPLES, float(np.mean(s))) for (d, how), s in scores.items()]
    summary = {}
    suffixes = {"suggested": "", "random": "_random"}
    suffixes |= {f"{how}{COUNTED}": f"{suffix}_with_macs" for how, suffix in suffixes.items()}
    for how, suffix in suffixes.items():
        means = {device: float(np.mean(scores[device, how])) for device in TEST}
        of_seeds = np.mean([scores[device, how] for device in TEST], axis=0)
        summary[f"fbnet_spearman_mean{suffix}"] = float(np.mean(list(means.values())))
        if len(of_seeds) > 1:
            summary[f"fbnet_spearman_error{suffix}"] = float(of_seeds.std(ddof=1) / np.sqrt(len(of_seeds)))
        summary |= {f"fbnet_spearman_{device}{suffix}": value for device, value in means.items()}
        summary[f"fbnet_validation_spearman{suffix}"] = float(np.mean([np.mean(scores[d, how]) for d in VALIDATION]))
    return rows, summary


def once_for_all(arguments: Arguments) -> tuple[list[dict], dict[str, float]]:
    table = read_table(arguments.data / "ofa_mobilenetv3.csv.gz")
    family = FAMILIES["ofa_mobilenet_v3"](num_classes=1000)
    archs = list(ofa_archs(table, family.space))
    codes = family.space.encode(archs)
    macs = np.array([family.macs(arch) for arch in archs], dtype=float)
    costs = family_costs(family)
    devices = [name.removeprefix("ms_") for name in table if name.startswith("ms_")]
    if arguments.quick:
        devices = ["titan_rtx_64", "v100_32"]
    rows = []
    for device in track(devices, "Once-for-All"):
        latency = table[f"ms_{device}"]
        for samples in SAMPLES if arguments.quick or not device.endswith("_1") else (*SAMPLES, 4000):
            results: dict[str, list[tuple[float, float]]] = {}
            for seed in range(1 if arguments.quick or samples >= 1000 else 3):
                order = np.random.default_rng(seed).permutation(len(codes))
                train, rest = order[:samples], order[samples:]
                predictions = {
                    "ours": LatencyPredictor.fit(family.space, codes[train], latency[train], costs).cost(codes[rest]),
                    "ours without MACs": LatencyPredictor.fit(family.space, codes[train], latency[train]).cost(
                        codes[rest]
                    ),
                    "lookup table": lookup_table(family.space, codes, latency, train, rest),
                    "MACs alone": np.polyval(np.polyfit(macs[train], latency[train], 1), macs[rest]),
                }
                for method, predicted in predictions.items():
                    result = float(spearmanr(predicted, latency[rest]).statistic), mape(predicted, latency[rest])
                    results.setdefault(method, []).append(result)
            for method, values in results.items():
                spearman, error = np.mean(values, axis=0)
                rows.append(row("ofa", device, method, samples, float(spearman), float(error)))
    summary = {}
    for samples in SAMPLES:
        for column in ("spearman", "mape_percent"):
            summary[f"ofa_{column}_{samples}"] = float(
                np.mean(
                    [
                        r[column]
                        for r in rows
                        if r["samples"] == samples and r["method"] == "ours" and not r["device"].endswith("_1")
                    ]
                )
            )
    return rows, summary


def ofa_archs(table: dict[str, np.ndarray], space: SearchSpace) -> Iterator[Arch]:
    """The table's architectures; its columns hold four kernel sizes and expansions a stage, whatever the depth."""
    for i in range(len(table["resolution"])):
        values = {"resolution": int(table["resolution"][i])}
        for stage in range(5):
            depth = values[f"blocks.{stage + 1}.depth"] = int(table[f"depth{stage}"][i])
            for block in range(depth):
                at = f"blocks.{stage + 1}.{block}"
                values[f"{at}.kernel_size"] = int(table[f"kernel{4 * stage + block}"][i])
                values[f"{at}.expand_ratio"] = int(table[f"expand{4 * stage + block}"][i])
        yield space.validate(values)


def lookup_table(
    space: SearchSpace, codes: np.ndarray, latency: np.ndarray, train: np.ndarray, rest: np.ndarray
) -> np.ndarray:
    """Additive latencies of every value of every choice, by ridge regression."""
    columns = [codes[:, [i]] == np.arange(len(choice.values)) for i, choice in enumerate(space.choices.values())]
    indicators = np.concatenate(columns, axis=1).astype(float)
    return RidgeCV(np.logspace(-3, 3, 13)).fit(indicators[train], latency[train]).predict(indicators[rest])


def this_machine(arguments: Arguments) -> tuple[list[dict], dict[str, float]]:
    family = FAMILIES["ofa_mobilenet_v3"](num_classes=1000)
    rows, noises, errors = [], [], []
    paths = sorted(arguments.local.glob("*/measurements.csv"))
    if not paths:
        raise ValueError(f"{arguments.local} holds no measurements; `supernet measure-latency` makes them")
    for path in paths:
        measured = [r for r in read_measurements(path, family.space) if not r.reference and not r.error]
        archs, latency = [r.arch for r in measured], np.array([r.latency_ms for r in measured])
        results = []
        for seed in range(10):
            order = np.random.default_rng(seed).permutation(len(archs))
            rest, train = order[:HELD_OUT], order[HELD_OUT:]
            predictor = LatencyPredictor.fit(
                family.space, [archs[i] for i in train], latency[train], family_costs(family)
            )
            predicted = predictor.cost([archs[i] for i in rest])
            results.append((float(spearmanr(predicted, latency[rest]).statistic), mape(predicted, latency[rest])))
        spearman, error = np.mean(results, axis=0)
        twice = [read_measurements(path.with_name(f"noise_{i}.csv"), family.space) for i in (1, 2)]
        noises.append(float(100 * np.abs(relative_differences(*twice)).mean()))
        errors.append(float(error))
        device = path.parent.name
        rows.append(row("local", device, "ours", len(archs) - HELD_OUT, float(spearman), float(error)))
        rows.append(row("local", device, "measured twice", 50, None, noises[-1]))
    worst = int(np.argmax([e / n for e, n in zip(errors, noises)]))
    spearmans = [r["spearman"] for r in rows if r["method"] == "ours"]
    return rows, {
        "local_mape_percent": errors[worst],
        "local_noise_percent": noises[worst],
        "local_spearman": min(spearmans),
    }


def coverage(arguments: Arguments) -> tuple[list[dict], dict[str, float]]:
    table, space, codes = read_fbnet(arguments)
    sources = fbnet_sources(arguments, table, space, codes, np.random.default_rng(0))
    devices = {d: Device(table[f"ms_{d}"], LOOKUP_NOISE if d in TEST else 0.0) for d in TEST + OTHERS}
    how = {"seeds": 1, "measurements": (10, 40)} if arguments.quick else {"seeds": 3}
    tables = {"fbnet": (space, codes, devices, sources), "synthetic": synthetic(4 if arguments.quick else 48)}
    rows = []
    for name, of_table in tables.items():
        for found in coverage_rows(name, *of_table, **how):
            rows.append(found)
            print(" ".join(f"{key}={value}" for key, value in found.items()), flush=True)
        how["seeds"] = 1
    return rows, dict(summary(rows))


def speed(arguments: Arguments) -> tuple[list[dict], dict[str, float]]:
    """Encoded architectures a second of CPU time, and the milliseconds of one, for a predictor of 1,000 samples."""
    family = FAMILIES["ofa_mobilenet_v3"](num_classes=1000)
    generator = np.random.default_rng(0)
    archs = [family.space.sample(generator) for _ in range(1000)]
    predictor = LatencyPredictor.fit(family.space, archs, [family.macs(arch) / 1e7 for arch in archs])
    many = np.tile(family.space.encode(archs), (100, 1))
    return [], {
        "queries_per_second": len(many) / best_of(lambda: predictor.predict(many)),
        "one_query_ms": 1e3 * best_of(lambda: predictor.predict(archs[:1])),
    }


def best_of(run: Callable[[], object], repeats: int = 5) -> float:
    seconds = []
    for _ in range(repeats):
        start = time.process_time()
        run()
        seconds.append(time.process_time() - start)
    return min(seconds)


PARTS = {"fbnet": fbnet, "ofa": once_for_all, "local": this_machine, "coverage": coverage, "speed": speed}

if __name__ == "__main__":
    main()
