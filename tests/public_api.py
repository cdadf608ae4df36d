"""A user's program, for the type checker: what each package offers has the types that its documentation says.

`make types` checks this file alone; what the packages do inside is not looked at.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from torch import Tensor, nn
from typing_extensions import assert_type

from compress import load_compressed, save_compressed
from compress.tickets import magnitude_mask
from distill import Objective, kl_divergence
from predictors import Device, LatencyPredictor, Prediction, family_costs, prepare, stratified, this_device
from search import (
    STRATEGIES,
    Evaluation,
    Problem,
    Result,
    SearchJob,
    Strategy,
    ask_and_tell,
    evaluate_here,
    make_strategy,
    read_history,
    run_search,
)
from supernet import Arch, Choice, Family, SearchSpace, Supernet, load_run, load_subnet
from supernet.artifacts import Run, Subnet, SubnetConfig, save_subnet, take_out
from supernet.families import FAMILIES, from_timm
from supernet.training.data import Data, DataConfig, ImageData, load_data, open_images


def spaces(generator: np.random.Generator) -> None:
    space = SearchSpace({"depth": (1, 2), "kernel_size.1": Choice((3, 5), when={"depth": (2,)})})
    assert_type(space.largest, Arch)
    assert_type(space.size, int)
    assert_type(space.sample(generator), Arch)
    assert_type(space.mutate(space.smallest, generator, 0.1), Arch)
    assert_type(space.decode(space.encode([space.smallest])), list[Arch])
    assert_type(space.validate({"depth": 1}), Arch)
    assert_type(Arch.from_json(space.largest.to_json()), Arch)
    SearchSpace(3)  # type: ignore[arg-type]
    space.sample(0)  # type: ignore[arg-type]


def supernets(space: SearchSpace, build: Callable[[Arch], nn.Module], images: Tensor) -> None:
    net = Supernet(space, build)
    assert_type(net.space, SearchSpace)
    assert_type(net.extract(space.smallest), nn.Module)
    family = Family(space, build, num_classes=10, input_size=32)
    assert_type(family.macs(space.smallest), int)
    assert_type(family.parameters(space.smallest), int)
    assert_type(family.resolution(space.smallest), int | None)
    assert_type(family.supernet(), Supernet)
    assert_type(FAMILIES["ofa_mobilenet_v3"](num_classes=10), Family)
    assert_type(from_timm("resnet18", num_classes=10), Family)
    assert_type(kl_divergence(images, images), Tensor)
    Objective(teacher=3)  # type: ignore[call-arg]


def runs(folder: Path, arch: Arch) -> None:
    run = load_run("runs/mine")
    assert_type(run, Run)
    assert_type(run.family, Family)
    assert_type(run.net, Supernet)
    assert_type(run.data, Data)
    model, config = load_subnet(folder)
    assert_type(model, nn.Module)
    assert_type(config, SubnetConfig)
    subnet = take_out(run, arch)
    assert_type(subnet, Subnet)
    save_subnet(folder, subnet, onnx=False)
    assert_type(load_data(DataConfig("digits")), Data)
    assert_type(open_images(DataConfig("digits")), ImageData)
    load_subnet(3)  # type: ignore[arg-type]


def files(subnet: Subnet, folder: Path) -> None:
    assert_type(save_compressed(folder / "small.compressed", subnet), int)
    assert_type(load_compressed(folder / "small.compressed"), Subnet)
    assert_type(magnitude_mask(dict(subnet.model.named_parameters()), 0.8, "layer"), dict[str, Tensor])
    save_compressed(subnet, folder)  # type: ignore[arg-type]


def latencies(family: Family, generator: np.random.Generator) -> None:
    archs = stratified(family.space, family.macs, 40, generator)
    assert_type(archs, list[Arch])
    device = this_device("onnxruntime")
    assert_type(device, Device)
    timer = prepare(family.build(archs[0]), device, (3, 32, 32))
    milliseconds = [float(timer(2)[1]) for _ in archs]
    predictor = LatencyPredictor.fit(family.space, archs, milliseconds, family_costs(family), device)
    assert_type(predictor.predict(archs), Prediction)
    assert_type(predictor.predict(archs).latency_ms, np.ndarray)


def searches(run: Run, predictor: LatencyPredictor, score: Callable[[Sequence[Arch]], Sequence[float]]) -> None:
    outcome = run_search(SearchJob(evaluations=100), run, {"phone": predictor}, Path("search.jsonl"))
    assert_type(outcome.result, Result)
    assert_type(outcome.result.front, list[Evaluation])
    assert_type(outcome.result.front[0].scores, Mapping[str, float])
    problem = Problem(run.family.space, ["accuracy"], {"phone": predictor.cost}, {"phone": 3.0})
    assert_type(make_strategy("evolution", problem, 0), Strategy)
    assert_type(STRATEGIES["random"](problem, 0, 10), Strategy)
    strategy = make_strategy("evolution", problem, 0)
    assert_type(ask_and_tell(problem, strategy, evaluate_here({"accuracy": score}), budget=100), Result)
    assert_type(read_history("search.jsonl")[1], list[Evaluation])
    SearchJob(evaluation=100)  # type: ignore[call-arg]
