"""What a report shows, as plain data: computed here once, drawn by the page's script and by `figures`."""

from __future__ import annotations

import dataclasses
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from search import pareto
from search.certainty import NORMAL_95, wilson
from search.counts import COUNTS, is_count
from search.front import AS_GOOD, CONFIRMED, HIGH, LOW
from search.history import Evaluation
from search.report.answered import answers_content
from search.report.bottlenecks import bottlenecks
from search.report.candidate import Candidate
from search.report.facts import facts
from search.report.groups import groups as groups_of
from search.report.importance import importances
from search.report.limits import notes, within
from search.report.progress import Content, comparison, rounded, search_content
from search.report.sources import DeviceRecord, Sources, Training
from search.settings import ACCURACY
from supernet.artifacts import provenance
from supernet.space import Arch, Value

# n candidates, a axes, c choices


def make_content(sources: Sources, title: str = "") -> Content:
    """All of the report as JSON. ValueError if nothing was evaluated successfully and there is no training either.

    Architectures are judged by accuracy, or if no search has it by the first score of the first search; searches that
    lack this score are only named (`left_out`).

    Candidates are columns, index by index; those whose score is no number are left out. `axes` are what accuracy is
    traded off against: the latency on each device (of searches and of predictors), then MACs, parameters and other
    costs. `fronts[axis]` holds the indices of the candidates that none beats in score and that cost, by increasing
    cost; `group_fronts` the same for each strategy (or folder) alone. Uncertainty is that of 95 %: of what is on a
    search's front the interval in its front.csv, else Wilson's for an accuracy on so many images (other scores have
    none, and are not in per cent), and the predictor's standard error of a latency. `as_good` and `confirmed` are what
    front.csv says of the front: whether each cannot be told apart from the best, and its score on fresh examples.
    `notes` are lines on how sure fronts are, and on those that may not keep, or were measured not to keep, within a
    search's limit on a latency; `within` is how probable it is that a candidate does. `standings` are those of a
    sweep's strategies by one yardstick. `bottlenecks` are what holds some of each front back. `importance` is what
    `search.report.importance` says of the choices. `facts` are what searches and trainings were asked for. `answers`
    are what classifiers that were taken out make of the test images, the thumbnails of which take `MOST_BYTES` at the
    most.
    """
    names = [
        name for search in sources.searches for e in search.evaluations for name in e.scores if _is_judged(e, name)
    ]
    if not names and not sources.trainings:
        raise ValueError("no architecture was evaluated successfully: there is nothing to report")
    judge = names[0] if names and ACCURACY not in names else ACCURACY
    judged = [search for search in sources.searches if any(_is_judged(e, judge) for e in search.evaluations)]
    left_out = [search.name for search in sources.searches if search not in judged]
    sources = dataclasses.replace(sources, searches=judged)
    candidates = [
        Candidate(s, line, e.generation, e.arch, e.scores[judge], e.costs)
        for s, search in enumerate(sources.searches)
        for line, e in enumerate(search.evaluations, start=1)
        if _is_judged(e, judge)
    ]
    rows = [sources.searches[candidate.search].front.get(candidate.arch, {}) for candidate in candidates]
    groups, group_of = groups_of(sources.searches)
    choices = _choices(candidate.arch for candidate in candidates)
    score = np.array([candidate.score for candidate in candidates])
    axes, costs, errors, measured = _axes(sources, candidates)
    devices = {device.name: device for device in sources.devices}
    probabilities = [within(devices.get(axis["name"]), sources.searches, candidates) for axis in axes]
    member = np.array([group_of[candidate.search] for candidate in candidates])
    everyone = np.ones(len(candidates), bool)
    fronts = [_front(candidates, score, column, everyone) for column in costs]
    group_fronts = [[_front(candidates, score, column, member == g) for g in range(len(groups))] for column in costs]
    several = len(judged) > 1
    lines = [f"{search.name}: {note}" if several else note for search in judged for note in search.notes]
    for axis, column, probability, found in zip(axes, costs, probabilities, measured):
        if probability:
            of_search = np.array([candidate.search for candidate in candidates])
            own = [_front(candidates, score, column, of_search == index) for index in range(len(judged))]
            lines += notes(judged, devices[axis["name"]], probability, found, own)
    worst = min([0.0, *score])
    searches = [search_content(judged, index, group, judge, worst) for index, group in enumerate(group_of)]
    return {
        "title": title or " and ".join(dict.fromkeys(folder.resolve().name for folder in sources.folders)),
        "date": provenance.today(),
        "versions": provenance.versions(),
        "score": {"name": judge, "percent": judge == ACCURACY},
        "searches": searches,
        "left_out": left_out,
        "notes": lines,
        "groups": groups,
        "axes": axes,
        "choices": {name: list(values) for name, values in choices.items()},
        "candidates": {
            "search": [candidate.search for candidate in candidates],
            "line": [candidate.line for candidate in candidates],
            "codes": [_codes(choices, candidate.arch) for candidate in candidates],
            "score": _rounded(score),
            "interval": _intervals(sources, candidates, judge),
            "as_good": [row.get(AS_GOOD) for row in rows],
            "tested": [_tested(sources.searches[c.search].taken_out.get(c.arch), judge) for c in candidates],
            "confirmed": [_confirmed(row, judge) for row in rows],
            "costs": [_rounded(column) for column in costs],
            "errors": [None if column is None else _rounded(column) for column in errors],
            "measured": measured,
            "within": probabilities,
        },
        "fronts": fronts,
        "group_fronts": group_fronts,
        "bottlenecks": [
            bottlenecks(sources, devices.get(axis["name"]), candidates, front) for axis, front in zip(axes, fronts)
        ],
        "frequencies": [_frequencies(choices, candidates, front) for front in fronts],
        "importance": _importance(choices, candidates, score),
        "facts": facts(sources),
        "devices": [_device(device) for device in sources.devices if device.measurements],
        "trainings": [_training(training) for training in sources.trainings if training.metrics],
        "comparison": comparison(sources.searches, searches, groups, judge),
        "standings": [_standing(row) for row in sources.standings],
        "diagnoses": [_diagnosis(row) for row in sources.diagnoses],
        "answers": answers_content(sources.searches),
    }


def _is_judged(evaluation: Evaluation, judge: str) -> bool:
    return not math.isnan(evaluation.scores.get(judge, math.nan))


def _importance(
    choices: Mapping[str, Sequence[Value]], candidates: Sequence[Candidate], score: np.ndarray
) -> list[Content]:
    """Of different architectures, each once."""
    first = {candidate.arch: index for index, candidate in reversed(list(enumerate(candidates)))}
    own = sorted(first.values())
    codes = np.array([_codes(choices, candidates[index].arch) for index in own]).reshape(len(own), len(choices))
    found = importances(choices, codes, score[own])
    return [{**each._asdict(), **{name: rounded(getattr(each, name)) for name in each._fields[1:]}} for each in found]


def _diagnosis(found: Mapping[str, Any]) -> Content:
    """What holds a network back: its layers as points of a roofline, in FLOP/byte and GFLOP/s at most, and advice."""
    names = ("network", "device", "bottlenecks", "limits", "exceeded", "shares", "activation_bytes", "stored_bytes")
    rates = {int(size): rate for size, rate in found["bandwidths"].items()}
    points = [
        (
            layer["name"],
            rounded(layer["intensity"]),
            rounded(
                2e-6 * layer["macs"] / (max(layer["compute_ms"], layer["transfer_ms"]) + layer["overhead_ms"]),
            ),
            layer["bound_by"],
        )
        for layer in found["layers"]
        if layer["macs"]
    ]
    return {
        **{name: found[name] for name in names},
        "estimate_ms": rounded(found["estimate_ms"]),
        "peak_gflops": rounded(2e-9 * found["peak_macs"]),
        "bandwidth_gb": [rounded(1e-9 * rate) for rate in (max(rates.values()), rates[max(rates)])],
        "points": points,
        "advice": [
            {**row, **{name: rounded(row[name]) for name in ("estimate_ms", "activation_bytes", "stored_bytes")}}
            for row in found["advice"]
        ],
    }


def _standing(row: Mapping[str, str]) -> Content:
    """A row of how strategies stand, its numbers as such; None for one that is not known."""
    texts = ("judged_by", "device", "strategy", "told_apart")
    return {name: text if name in texts else rounded(float(text or "nan")) for name, text in row.items()}


def _choices(archs: Iterable[Arch]) -> dict[str, list[Value]]:
    """The values of every choice that occur, numbers in increasing order; choices in the order of the space, as far as
    the architectures, which have some of them each, say it: a choice comes right behind one that it follows."""
    found: dict[str, set[Value]] = {}
    order: list[str] = []
    for arch in sorted(archs, key=len, reverse=True):  # the deepest first: it names the most choices in their order
        if not arch.keys() <= found.keys():
            place = 0
            for name in arch:
                if name not in found:
                    order.insert(place, name)
                    found[name] = set()
                place = order.index(name) + 1
        for name, value in arch.items():
            found[name].add(value)
    return {name: sorted(found[name], key=lambda value: (isinstance(value, str), value)) for name in order}


def _codes(choices: Mapping[str, Sequence[Value]], arch: Arch) -> list[int]:
    return [values.index(arch[name]) if name in arch else -1 for name, values in choices.items()]


def _axes(sources: Sources, candidates: Sequence[Candidate]):
    """The axes, and for each the costs [n], standard errors [n] or None, and measured values by candidate's index."""
    spaces = [sources.searches[candidate.search].settings.get("space") for candidate in candidates]
    aliases = {cost: device.name for device in sources.devices for cost in device.costs}
    axes: list[dict[str, str]] = []
    costs: list[np.ndarray] = []
    errors: list[np.ndarray | None] = []
    measured: list[dict[int, float]] = []
    names = [aliases.get(n, n) for candidate in candidates for n in candidate.costs]
    counted = sorted((n for n in names if is_count(n)), key=lambda n: COUNTS.index(n.partition(".")[0]))
    names = [*(n for n in names if not is_count(n)), *(device.name for device in sources.devices), *counted]
    for name in dict.fromkeys(names):
        device = next((device for device in sources.devices if device.name == name), None)
        known = device.costs if device else {name}
        column = np.array([_cost(candidate, known) for candidate in candidates])
        error, found = None, {}
        if device:
            error = np.full(len(candidates), np.nan)
            own = [i for i, space in enumerate(spaces) if space == device.predictor.space.fingerprint]
            if own:
                predicted = device.predictor.predict([candidates[i].arch for i in own])
                column[own] = np.where(np.isnan(column[own]), predicted.latency_ms, column[own])
                error[own] = predicted.standard_error_ms
            times = {row.arch: row.latency_ms for row in device.measurements}
            found = {i: rounded(times[candidates[i].arch]) for i in own if candidates[i].arch in times}
        if np.isfinite(column).any():
            axes.append({"name": name, "unit": "" if is_count(name) else "ms"})
            costs.append(column)
            errors.append(error)
            measured.append(found)
    return axes, costs, errors, measured


def _cost(candidate: Candidate, names: Iterable[str]) -> float:
    return next((candidate.costs[name] for name in names if name in candidate.costs), math.nan)


def _front(candidates: Sequence[Candidate], score: np.ndarray, cost: np.ndarray, member: np.ndarray) -> list[int]:
    """Indices of the front among the members, by increasing cost, no architecture twice."""
    values = np.where(member[:, None], np.stack([cost, -score], axis=1), np.inf)
    first = {candidates[index].arch: int(index) for index in reversed(pareto.front(values))}
    return sorted(first.values(), key=lambda index: cost[index])


def _intervals(sources: Sources, candidates: Sequence[Candidate], judge: str) -> list[tuple[float, float] | None]:
    """Those in front.csv, and of other accuracies Wilson's."""
    images = []
    for search in sources.searches:
        holdout = sources.runs[search.run]["held_out"] if search.run in sources.runs else None
        asked = search.settings.get("images")
        images.append(min(asked, holdout or asked) if asked else holdout)
    found: list[tuple[float, float] | None] = []
    for c in candidates:
        own = _interval(sources.searches[c.search].front.get(c.arch, {}), judge)
        if own is None and judge == ACCURACY and images[c.search] and 0 <= c.score <= 1:
            own = wilson(c.score, images[c.search])
        found.append(own and tuple(map(rounded, own)))
    return found


def _interval(row: Mapping[str, str], name: str) -> tuple[float, float] | None:
    """That of a column of front.csv; None where it has none."""
    ends = [row.get(f"{name}, {end}") for end in (LOW, HIGH)]
    return (float(ends[0]), float(ends[1])) if all(ends) else None


def _confirmed(row: Mapping[str, str], judge: str) -> Content | None:
    """The score on fresh examples, and its interval if it has one; None where it was not confirmed."""
    name = f"{judge}, {CONFIRMED}"
    return {"score": rounded(float(row[name])), "interval": _interval(row, name)} if row.get(name) else None


def _tested(taken_out: Mapping[str, Any] | None, judge: str) -> Content | None:
    """The score on test examples of an architecture that was taken out, and its interval if it is an accuracy."""
    if taken_out is None or judge not in taken_out["facts"]:
        return None
    score, count = taken_out["facts"][judge], taken_out["test_examples"]
    known = judge == ACCURACY and count > 0 and 0 <= score <= 1
    interval = tuple(map(rounded, wilson(score, count))) if known else None
    return {"score": rounded(score), "interval": interval, "folder": taken_out["folder"]}


def _frequencies(
    choices: Mapping[str, Sequence[Value]], candidates: Sequence[Candidate], front: Sequence[int]
) -> list[Content]:
    """How often each value of a choice occurs on the front and among all, of those in which the choice applies; the
    choices that differ most first, by total variation, half the sum of absolute differences."""
    rows = []
    for name, values in choices.items():
        if len(values) < 2:
            continue
        chosen = [candidates[index].arch[name] for index in front if name in candidates[index].arch]
        every = [candidate.arch[name] for candidate in candidates if name in candidate.arch]
        shares = [[rounded(part.count(v) / max(len(part), 1)) for v in values] for part in (chosen, every)]
        difference = sum(abs(a - b) for a, b in zip(*shares)) / 2 if chosen else 0.0
        rows.append(
            {
                "choice": name,
                "values": list(values),
                "front": shares[0],
                "population": shares[1],
                "applies": len(chosen),
                "of": len(every),
                "difference": rounded(difference),
            }
        )
    return sorted(rows, key=lambda row: -row["difference"])


def _device(device: DeviceRecord) -> Content:
    """Predicted against measured. What the predictor was fitted to it predicts from all other measurements."""
    predictor = device.predictor
    fitted = predictor.space.decode(predictor.codes)
    left_out = dict(zip(fitted, predictor.held_out_ms))
    fitted = set(fitted)
    predicted = predictor.predict([row.arch for row in device.measurements])
    points = [
        (
            rounded(row.latency_ms),
            rounded(left_out.get(row.arch, prediction)),
            None if row.arch in fitted else rounded(NORMAL_95 * error),
            row.arch in fitted,
        )
        for row, prediction, error in zip(device.measurements, *predicted)
    ]
    spread = [
        50 * (row.upper_quartile_ms - row.lower_quartile_ms) / row.latency_ms for row in device.measurements if row.runs
    ]
    return {
        "name": device.name,
        "points": points,
        "error_percent": rounded(100 * np.mean([abs(p / m - 1) for m, p, _, _ in points])),
        "noise_percent": None if math.isnan(device.noise_percent) else rounded(device.noise_percent),
        "spread_percent": rounded(np.median(spread)) if spread else None,
    }


def _training(training: Training) -> Content:
    """The metrics of the task and the loss by step, of each subnet that was followed."""
    metrics: dict[str, dict[str, list]] = {}
    losses: dict[str, list] = defaultdict(list)
    for line in training.metrics:
        for metric, values in line.items():
            for name, value in values.items() if isinstance(values, Mapping) else ():
                curves = metrics.setdefault(metric, defaultdict(list))
                curves[name.replace("_", " ")].append((line["step"], rounded(value)))
        paths = line.get("losses") or []
        for index, value in enumerate(paths):
            losses[_path(training.method, index, len(paths))].append((line["step"], rounded(value)))
    return {"name": training.name, "metrics": metrics, "losses": losses}


def _path(method: str, index: int, count: int) -> str:
    if method not in ("sandwich", "best_up", "worst_up"):
        return f"subnet {index + 1} of the step"
    return "largest" if index == 0 else "smallest" if index == count - 1 else f"random {index}"


def _rounded(values: Iterable[float]) -> list[float | None]:
    return [rounded(value) for value in values]
