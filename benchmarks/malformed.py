"""Whether whatever is read, and was damaged or edited, ends in one clear line or is read right.

    python benchmarks/malformed.py [--count 10000] [--json FILE] [--quick]

Files as this version writes them are damaged at random, from a seed: bytes changed, taken out, put in, cut off; of
JSON, values replaced by others of any type, entries taken out, renamed and added; of CSV, cells and columns. Each is
then read as commands read it. It counts

    refused     a ValueError or OSError of one line, which names the file where the reader is given one
    read right  what is read is, written again, the same, and for weights with a checksum that which was saved
    wrong       anything else: another exception, an error of several lines, other weights, more than 20 seconds

and prints each wrong one with the seed that repeats it. Every one is a network of a few thousand weights: 10,000 take
a quarter of an hour on 1 core.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import logging
import random
import signal
import sys
import tarfile
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import torch
import tyro
from damage import damaged
from PIL import Image
from report import report
from torch import nn

from compress.container import load_compressed, save_compressed
from compress.pipeline import Record, read_record
from compress.roofline import Roofline
from exits.policies import Patience, to_json
from exits.runner import Chain
from predictors import Device, LatencyPredictor
from predictors.latency import FILE as PREDICTOR
from predictors.measuring.measurements import Measurement, append_measurements, read_measurements
from search.comparison.yardsticks import read_table
from search.history import Evaluation, best_archs, read_history, write_history
from search.report.answered import answered
from search.report.sources import read_sources, write_origin
from search.report.taken_out import note_taken_out
from supernet import Arch, Choice, SearchSpace
from supernet.answers.answers import Answers
from supernet.artifacts import Subnet, SubnetConfig, load_subnet, save_subnet
from supernet.artifacts.export import export_onnx
from supernet.artifacts.onnx_network import load_onnx
from supernet.artifacts.runs import job_from_dict, open_run, read_config, read_family
from supernet.artifacts.settings import note_settings
from supernet.artifacts.weights import read_weights, save_weights
from supernet.families import FAMILIES
from supernet.training.data import load_data
from supernet.training.data.folders import open_folder
from supernet.training.data.label_table import open_label_table
from supernet.training.data.second_labels import read_second_labels
from supernet.training.data.text import read_table as read_texts
from supernet.training.loop.checkpoint import read_checkpoint, save_checkpoint
from supernet.training.loop.config import LoopConfig
from supernet.training.recipes import digits
from supernet_cli import search as search_command
from supernet_cli.flags import typed_words, write_flags

SECONDS = 20  # that a file may take to be read


class Subject(NamedTuple):
    """A kind of file, and how it is read."""

    name: str
    file: str  # of the folder that `write_all` writes, which is damaged
    read: Callable[[Path], Any]  # of the damaged file
    same: Callable[[Any, Any], bool] = lambda found, saved: True  # whether what is read is right, given what was saved


class Outcome(NamedTuple):
    is_wrong: bool
    what: str  # refused, read right, or what is wrong


def subjects(folder: Path) -> list[Subject]:
    """What is read, of what `write_all` wrote to `folder`."""
    family = FAMILIES["mobilenet_v3_micro"](num_classes=10)

    (answers,) = folder.glob("searched/answered_*.json")

    def build(arch: Arch) -> nn.Module:
        return small()

    weights = {name: tensor.numpy() for name, tensor in small().state_dict().items()}

    def same_weights(found: Any, saved: Any) -> bool:
        state = found if isinstance(found, dict) else found.model.state_dict()
        return state.keys() == weights.keys() and all(
            np.array_equal(state[name].numpy(), own) for name, own in weights.items()
        )

    def again(written: Callable[[Any], str], read: Callable[[str], Any]) -> Callable[[Any, Any], bool]:
        return lambda found, saved: read(written(found)) == found

    def own_subnet(path: Path) -> Subnet:
        return load_subnet(path.parent, build=build)

    def read_run(path: Path) -> tuple:
        return job_from_dict(read_config(path.parent)["job"]), read_family(path.parent)

    def read_images(path: Path) -> list:
        found = open_folder(str(path), "train")
        return [found[index] for index in range(len(found))]

    return [
        Subject("architecture", "arch.json", lambda p: Arch.from_json(text(p)), again(Arch.to_json, Arch.from_json)),
        Subject(
            "architecture of a space", "arch.json", lambda p: space().validate(Arch.from_json(text(p))),
            lambda found, saved: found in set(space()),
        ),
        Subject(
            "search space", "space.json", lambda p: SearchSpace.from_json(text(p)),
            again(SearchSpace.to_json, SearchSpace.from_json),
        ),
        Subject("device", "device.json", Device.load, again(Device.to_json, Device.from_json)),
        Subject("run", "run/config.json", read_run),
        Subject("subnet", "subnet/config.json", lambda p: load_subnet(p.parent)),
        Subject("subnet of own code", "own/config.json", own_subnet, same_weights),
        Subject("subnet's weights", "own/model.safetensors", own_subnet, same_weights),
        Subject("weights of safetensors", "weights.safetensors", read_weights, same_weights),
        Subject("weights of torch", "weights.pth", read_weights),
        Subject("checkpoint", "step-000000001.pt", lambda p: read_checkpoint(p)["net"], same_weights),
        Subject("container", "own.compressed", lambda p: load_compressed(p, build=build), same_weights),
        Subject(
            "predictor", f"phone/{PREDICTOR}", lambda p: LatencyPredictor.load(p.parent),
            lambda found, saved: np.array_equal(found.latency_ms, saved.latency_ms),
        ),
        Subject("roofline", "phone/roofline.json", lambda p: Roofline.load(p.parent)),
        Subject("measurements", "phone/measurements.csv", lambda p: read_measurements(p, space())),
        Subject("history", "searched/search.jsonl", lambda p: (read_history(p), best_archs(p, 1))),
        Subject("report by its history", "searched/search.jsonl", lambda p: contents(p.parent)),
        Subject("report by its origin", "searched/search.json", lambda p: contents(p.parent)),
        Subject("report by its front", "searched/front.csv", lambda p: contents(p.parent)),
        Subject("report by a run", "run/config.json", lambda p: contents(p.parent.parent / "searched")),
        Subject("report by metrics", "run/metrics.jsonl", lambda p: contents(p.parent.parent / "searched")),
        Subject("report by a diagnosis", "searched/diagnosis.json", lambda p: contents(p.parent)),
        Subject("report by what was taken out", "searched/taken_out.jsonl", lambda p: contents(p.parent)),
        Subject("report by answers", f"searched/{answers.name}", lambda p: contents(p.parent)),
        Subject("settings", "settings.json", lambda p: note_settings(p, LoopConfig())),
        Subject("published table", "table.csv", lambda p: read_table(p, family, Arch.from_json)),
        Subject("packed table", "table.csv.gz", lambda p: read_table(p, family, Arch.from_json)),
        Subject("archive of images", "images.tar", read_images),
        Subject("second labels", "second.csv", lambda p: read_second_labels(str(p), ("cat/1.png", "dog/2.gif"), None)),
        Subject("labels of images", "marked/train.csv", lambda p: open_label_table(str(p.parent), "train")),
        Subject("table of texts", "texts.csv", lambda p: read_texts(str(p), ["text"], "label")),
        Subject("flags", "train.yaml", flags_of),
        Subject("record of a pipeline", "pipeline.json", read_record),
        Subject("network of ONNX", "network.onnx", load_onnx),
        Subject("chain of exits", "chain/chain.json", lambda p: Chain(p.parent)),
    ]  # fmt: skip


def space() -> SearchSpace:
    return SearchSpace({"width": (8, 16, 24), "op": ("conv", "skip"), "depth": Choice((1, 2), when={"op": ("conv",)})})


def text(path: Path) -> str:
    return path.read_text(errors="surrogateescape")


def small() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10))
    return layers.eval()


def flags_of(path: Path) -> list[str]:
    with mock.patch.object(sys, "argv", ["supernet search", "--config", str(path)]):
        return typed_words(search_command.Arguments)


def contents(folder: Path) -> dict:
    from search.report.content import make_content

    content = make_content(read_sources([folder]))
    json.dumps(content)
    return content


def write_all(folder: Path) -> None:
    """Write a file of each kind to `folder`."""
    generator = np.random.default_rng(0)
    own = space()
    (folder / "arch.json").write_text(own.largest.to_json())
    (folder / "space.json").write_text(own.to_json())
    device = Device("phone", "elsewhere", hardware={"cpu": "any", "cores": 2}, versions={"torch": "2"})
    device.save(folder / "device.json")
    job = digits()
    data = load_data(job.data)
    (folder / "run").mkdir()
    open_run(job, data, folder / "run", resume=False)()
    lines = [{"step": 1, "losses": [3.0, 2.0]}, {"step": 2, "accuracy": {"largest": 0.5}, "seconds": 1.0}]
    (folder / "run" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    family = job.family(data.family_arguments)
    arch = family.space.smallest
    config = SubnetConfig.of(job.space, job.space_options, arch, data)
    save_subnet(folder / "subnet", Subnet(family.build(arch).eval(), config), onnx=False)
    model = small()
    config = SubnetConfig("none.py:none", "{}", {"width": 8}, classes=tuple("abcdefghij"), input_size=(3, 8, 8))
    save_subnet(folder / "own", Subnet(model, config), onnx=False)
    save_weights(folder / "weights.safetensors", model.state_dict())
    torch.save(model.state_dict(), folder / "weights.pth")
    save_checkpoint(folder, 1, {"net": model.state_dict(), "rng": [1, 2], "epoch": 3}, keep=1)
    save_compressed(folder / "own.compressed", Subnet(model, config))
    archs = list(own)
    latency = [float(1 + index) for index in range(len(archs))]
    predictor = LatencyPredictor.fit(own, archs, latency, device=device)
    predictor.save(folder / "phone")
    Roofline(1e9, {1024: 1e10, 2**20: 1e9}, 0.01).save(folder / "phone")
    rows = [Measurement(own, ms, ms, ms, 10) for own, ms in zip(archs, latency)]
    append_measurements(folder / "phone" / "measurements.csv", rows)
    evaluations = [
        Evaluation(own, {"accuracy": 0.1 * index}, {"phone": ms}, index // 3)
        for index, (own, ms) in enumerate(zip(archs, latency))
    ]
    evaluations.append(Evaluation(archs[0], {}, {"phone": 1.0}, 3, "it failed"))
    settings = {"space": own.fingerprint, "strategy": "evolution", "images": 100, "scores": ["accuracy"], "limits": {}}
    search = folder / "searched"
    write_history(search / "search.jsonl", settings, evaluations)
    write_origin(search, folder / "run", [folder / "phone"], notes=["a note"])
    front = ["accuracy,accuracy_lower,accuracy_upper,as_good,phone,arch"]
    front += [
        f'0.{i},0.0,0.9,1,{ms},"{own.to_json().replace(chr(34), chr(34) * 2)}"'
        for i, (own, ms) in enumerate(zip(archs, latency))
    ]
    (search / "front.csv").write_text("\n".join(front) + "\n")
    _write_answers(search, archs[1], folder / "own")
    _write_tables(folder)
    write_flags(folder / "train.yaml", search_command.Arguments(run=Path("run"), limits=("macs=1e6",)))
    Record({"run": "run", "stages": ["prune"]}, {"name": "phone"}).write(folder / "pipeline.json")
    said = SubnetConfig("", "{}", {}, tuple("abcdefghij"), (3, 8, 8), (0.5,) * 3, (0.5,) * 3, "bicubic", 0.9)
    export_onnx(model, folder / "network.onnx", (3, 8, 8), metadata=said.metadata())
    _write_chain(folder / "chain", (folder / "network.onnx").read_bytes())
    _write_diagnosis(search, model)
    note_settings(folder / "settings.json", LoopConfig())
    table = ["arch,accuracy"]
    for index in range(5):
        cell = family.space.sample(generator).to_json().replace('"', '""')
        table.append(f'"{cell}",{90 + index}')
    packed = ("\n".join(table) + "\n").encode()
    (folder / "table.csv").write_bytes(packed)
    (folder / "table.csv.gz").write_bytes(gzip.compress(packed))
    with tarfile.open(folder / "images.tar", "w") as tar:
        for name in ("cat/1.png", "cat/2.jpg", "dog/1.png", "dog/2.gif"):
            image = io.BytesIO()
            pixels = generator.integers(0, 255, (8, 8, 3), np.uint8)
            Image.fromarray(pixels).save(image, {"png": "PNG", "jpg": "JPEG", "gif": "GIF"}[name[-3:]])
            member = tarfile.TarInfo(name)
            member.size = image.tell()
            image.seek(0)
            tar.addfile(member, image)


def _write_tables(folder: Path) -> None:
    (folder / "second.csv").write_text("file,label\ncat/1.png,day\ndog/2.gif,night\n")
    (folder / "texts.csv").write_text('text,label\n"one, two",a\nthree,b\n')
    (folder / "marked").mkdir()
    for name in ("1.png", "2.png"):
        Image.new("RGB", (4, 4)).save(folder / "marked" / name)
    (folder / "marked" / "train.csv").write_text("file,cat,dog\n1.png,1,0\n2.png,,1\n")


def _write_chain(folder: Path, network: bytes) -> None:
    """Two parts that need not fit each other, of which the description alone is read."""
    folder.mkdir()
    for name in ("a.onnx", "b.onnx"):
        (folder / name).write_bytes(network)
    description = {"files": ["a.onnx", "b.onnx"], "policy": to_json(Patience(1))}
    (folder / "chain.json").write_text(json.dumps(description))


def _write_answers(search: Path, arch: Arch, folder: Path) -> None:
    images = [(Image.new("RGB", (4, 4)), 0)]
    answers = Answers(torch.tensor([0]), torch.tensor([[1, 0]]), torch.tensor([[0.75, 0.25]]), 2)
    note_taken_out(search, arch, folder, {"accuracy": 0.5}, 100, answered(answers, ("cat", "dog"), images))


def _write_diagnosis(folder: Path, model: nn.Module) -> None:
    from compress.diagnosis import diagnose
    from compress.diagnosis_record import record, write_record

    diagnosis = diagnose(model, (torch.empty(1, 3, 8, 8, device="meta"),), Roofline(1e9, {2**20: 1e9}, 0.01))
    write_record(folder, record(diagnosis, [], "small", "phone"))


def outcome(subject: Subject, path: Path, saved: Any) -> Outcome:
    """What becomes of reading the damaged file at `path`."""
    try:
        with _time_limit(SECONDS):
            found = subject.read(path)
            if not subject.same(found, saved):
                return Outcome(True, "read wrong")
    except (ValueError, OSError) as error:
        message = str(error)
        if not message.strip() or "\n" in message.strip():
            return Outcome(True, f"an error of {message.count(chr(10)) + 1} lines: {message[:80]!r}")
        return Outcome(False, "refused")
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        return Outcome(True, f"{type(error).__name__} at {Path(frame.filename).name}:{frame.lineno}: {str(error)[:80]}")
    return Outcome(False, "read right")


@contextlib.contextmanager
def _time_limit(seconds: int) -> Iterator[None]:
    def late(*_: object) -> None:
        raise TimeoutError(f"more than {seconds} s\n\n")  # several lines, and so none of the errors that are right

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def examine(count: int, folder: Path, seed: int = 0, only: str = "") -> Iterator[tuple[Subject, int, Outcome]]:
    """The outcomes of `count` damaged files, each subject in turn, written to `folder`; the number with each repeats
    it."""
    write_all(folder)
    found = [subject for subject in subjects(folder) if only in subject.name]
    saved = [subject.read(folder / subject.file) for subject in found]  # which are all read as they are
    for number in range(count):
        index = number % len(found)
        subject, path = found[index], folder / found[index].file
        content = path.read_bytes()
        generator = random.Random(f"{seed} {number // len(found)} {subject.name}")
        path.write_bytes(damaged(content, generator, path.suffix))
        try:
            yield subject, number, outcome(subject, path, saved[index])
        finally:
            path.write_bytes(content)


@dataclass(frozen=True)
class Arguments:
    count: int = 10_000
    """Damaged files in all."""
    seed: int = 0
    only: str = ""
    """Part of the name of what is read, for these alone."""
    quick: bool = False
    """500 of them."""
    json: Path | None = None
    """File for the result."""


def main() -> None:
    arguments = tyro.cli(Arguments, description=__doc__)
    logging.disable()
    warnings.simplefilter("ignore")
    count = 500 if arguments.quick else arguments.count
    counts: dict[str, Counter[str]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for subject, number, found in examine(count, Path(folder), arguments.seed, arguments.only):
            counts.setdefault(subject.name, Counter())["wrong" if found.is_wrong else found.what] += 1
            if found.is_wrong:
                print(f"{subject.name}, number {number}: {found.what}", file=sys.stderr, flush=True)
    names = ("refused", "read right", "wrong")
    rows = [{"what": what, **{name: own[name] for name in names}} for what, own in counts.items()]
    summary = {name.replace(" ", "_"): sum(own[name] for own in counts.values()) for name in names}
    report(rows, summary, arguments.json)


if __name__ == "__main__":
    main()
