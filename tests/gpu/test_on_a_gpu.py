"""What trains and judges on a GPU does there what it does on a CPU, to rounding.

    GPU_TESTS=1 python -m pytest tests/gpu

Without a GPU some of them run on the CPU, which shows that they can, and no more. benchmarks/gpu/run.sh runs all
of them on a GPU, and keeps what they said beside the card's results.
"""

import dataclasses
import json

import pytest
import torch
from torch import nn

from search.scores.accuracy import SupernetScore, held_out
from supernet import SearchSpace, Supernet
from supernet.artifacts.export import export_onnx
from supernet.evaluation import calibrated
from supernet.families import FAMILIES
from supernet.tasks import Classification
from supernet.training.data import DataConfig, load_data
from supernet.training.data.batch import on
from supernet.training.execution import Execution
from supernet.training.loop import Loop
from supernet.training.loop.checkpoint import load_checkpoint
from supernet.training.pieces.graphs import GraphedPieces
from supernet.training.pieces.recording import CudaRecorder
from supernet.training.step import TrainConfig
from supernet.training.train import train
from tests.small import small

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
IS_GPU = DEVICE == "cuda"
METHODS = ("sandwich", "best_up", "worst_up", "spos", "fairnas", "cream") if IS_GPU else ("sandwich", "cream")
CONFIG = TrainConfig(epochs=1, batch_size=32, random_subnets=1, warmup_epochs=0, ema_decay=0.9, lr=0.05, clip=1.0)
EXECUTION = Execution(DEVICE, workers=0, eval_epochs=0, log_steps=1, checkpoint_steps=2)


@pytest.fixture(scope="module")
def family():
    return FAMILIES["mobilenet_v3_micro"]()


@pytest.fixture(scope="module")
def data():
    return load_data(DataConfig(holdout=0.85))  # 6 steps


@pytest.fixture(autouse=True)
def exact():
    """Single precision is that, and not TF32."""
    allowed = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = allowed


def losses(folder):
    return [json.loads(line)["losses"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def config_of(method):
    return dataclasses.replace(CONFIG, method=method, macs_step=1.0, board_epoch=0, matching_steps=2)


@pytest.mark.parametrize("method", METHODS)
def test_a_training_has_the_losses_of_one_on_the_cpu(method, family, data, tmp_path):
    for device in ("cpu", DEVICE):
        execution = dataclasses.replace(EXECUTION, device=device)
        train(family, family.supernet(), data, config_of(method), tmp_path / device, execution)
    expected, found = losses(tmp_path / "cpu"), losses(tmp_path / DEVICE)
    assert len(expected) == len(found) == 6
    for step, (own, wanted) in enumerate(zip(found, expected)):  # as many losses as the step has subnets
        assert own == pytest.approx(wanted, rel=1e-3 if step < 2 else 0.05), step


@pytest.mark.parametrize("method", METHODS)
def test_a_training_goes_on_from_a_checkpoint(method, family, data, tmp_path):
    whole = train(family, family.supernet(), data, config_of(method), tmp_path, EXECUTION)
    for path in sorted((tmp_path / "checkpoints").iterdir())[1:]:
        path.unlink()
    again = train(family, family.supernet(), data, config_of(method), tmp_path, EXECUTION, resume=True)
    for name, tensor in whole.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], tensor, rtol=1e-3, atol=1e-4)


def test_batches_are_those_of_the_cpu_bit_for_bit_while_steps_run(data, tmp_path):
    size = 4000 if IS_GPU else 4
    net, busy, found = nn.Linear(1, 1), torch.randn(size, size, device=DEVICE), []
    loop = Loop(net, data, dataclasses.replace(CONFIG, epochs=4), tmp_path, lambda net: {}, EXECUTION)
    for _, (images, labels) in loop.batches(16):
        for _ in range(20):  # the next batch arrives meanwhile
            busy = (busy @ busy).tanh()
        found.append((images.clone(), labels.clone()))
    expected = [on(torch.device("cpu"), batch) for batch in data.training_batches(16, 32, CONFIG.seed, range(24))]
    for (images, labels), (own_images, own_labels) in zip(expected, found, strict=True):
        assert torch.equal(own_images.cpu(), images)
        assert torch.equal(own_labels.cpu(), labels)


@pytest.mark.parametrize("amp", ["bf16", "fp16"] if IS_GPU else ["bf16"])
def test_low_precision_trains(amp, family, data, tmp_path):
    execution = dataclasses.replace(EXECUTION, amp=amp, eval_epochs=1, eval_images=100)
    net = train(family, family.supernet(), data, CONFIG, tmp_path, execution)
    assert all(tensor.isfinite().all() for tensor in net.state_dict().values())
    assert next(net.parameters()).device.type == DEVICE
    assert load_checkpoint(tmp_path / "checkpoints")["step"] == 6


def test_subnets_give_what_extracted_ones_give(family):
    net = family.supernet().to(DEVICE).eval()
    x = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    with torch.no_grad():
        for arch in (family.space.smallest, family.space.largest):
            torch.testing.assert_close(net(x, arch), net.extract(arch)(x), rtol=1e-5, atol=1e-5)


def test_gradients_are_those_of_the_cpu(family):
    x = torch.randn(4, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = []
    for device in ("cpu", DEVICE):
        net = family.supernet().double().to(device).train()
        for arch in (family.space.largest, family.space.smallest):
            net(x.to(device), arch, accumulate=True).square().sum().backward()
        found.append({name: parameter.grad.cpu() for name, parameter in net.named_parameters()})
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-12)


def test_scores_are_those_of_the_cpu(family, data):
    archs = [family.space.smallest, family.space.largest]
    task = Classification(10, resolution=family.resolution)
    values = []
    for device in ("cpu", DEVICE):
        net = family.supernet().to(device).eval()
        score = SupernetScore(net, task, lambda size: held_out(data, 100, 0, 300, size), family.resolution)
        values.append(score(archs))
    assert values[1] == pytest.approx(values[0], abs=0.02)


def test_a_calibrated_subnet_is_exported_from_where_it_is(family, data, tmp_path):
    net = family.supernet().to(DEVICE).eval()
    arch = family.space.smallest
    images = data.calibration_images(family.resolution(arch), 50, 0)
    model = calibrated(net, arch, [(images.to(DEVICE),)])
    export_onnx(model.cpu(), tmp_path / "model.onnx", (3, 32, 32))
    assert (tmp_path / "model.onnx").stat().st_size > 0


@pytest.mark.skipif(not IS_GPU, reason="CUDA graphs")
def test_graphs_train_the_same_weights(family, data, tmp_path):
    config = dataclasses.replace(CONFIG, drop_rate=0.0, epochs=4)  # 24 steps
    found = []
    for step in ("eager", "graphs"):
        execution = dataclasses.replace(EXECUTION, step=step)
        found.append(train(family, family.supernet(), data, config, tmp_path / step, execution).state_dict())
    for name, tensor in found[0].items():
        torch.testing.assert_close(found[1][name], tensor, rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(not IS_GPU, reason="CUDA graphs")
def test_gradients_of_graphs_are_those_of_eager_steps(family):
    net = family.supernet().to(DEVICE).train()
    pieces = GraphedPieces(CudaRecorder(torch.device(DEVICE)), 2**33)
    x = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    archs = [family.space.largest, family.space.smallest] * 4
    found = []
    for stand_in in (None, pieces):
        net.zero_grad()
        for arch in archs:
            net(x, arch, accumulate=True, stand_in=stand_in).square().mean().backward()
        found.append({name: parameter.grad.clone() for name, parameter in net.named_parameters()})
    assert pieces.recorded > 10
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-3, atol=1e-5)


class AsksForAValue(nn.Module):
    def __init__(self, arch):
        super().__init__()
        self.layer = nn.Linear(8, arch["width"])

    def forward(self, x):
        return self.layer(x) / max(1.0, x.abs().max().item())


class Plain(AsksForAValue):
    def forward(self, x):
        return self.layer(x)


@pytest.mark.skipif(not IS_GPU, reason="CUDA graphs")
def test_what_cannot_be_a_graph_runs_as_it_is(caplog):
    net = Supernet(SearchSpace({"width": (2, 4)}), AsksForAValue).to(DEVICE).train()
    pieces = GraphedPieces(CudaRecorder(torch.device(DEVICE)), 2**33)
    x = torch.randn(5, 8, device=DEVICE)
    outputs = [net(x, {"width": 4}, accumulate=True, stand_in=pieces) for _ in range(4)]
    assert "cannot be a CUDA graph and runs as it is" in caplog.text
    assert all(torch.equal(output, outputs[0]) for output in outputs)
    before = torch.cuda.memory_allocated()
    for _ in range(3):  # what was not recorded holds nothing, and keeps nothing else from being recorded
        net(x, {"width": 4}, accumulate=True, stand_in=pieces)
    assert torch.cuda.memory_allocated() == before
    other = Supernet(SearchSpace({"width": (2, 4)}), Plain).to(DEVICE).train()
    for _ in range(4):
        other(x, {"width": 4}, accumulate=True, stand_in=pieces).sum().backward()
    assert pieces.recorded == 1


@pytest.mark.skipif(not IS_GPU, reason="waiting for a GPU")
@pytest.mark.parametrize("step", ["eager", "graphs"])
def test_a_step_that_logs_nothing_waits_for_nothing(step, family, data, tmp_path):
    def on_step(result):  # behind each step; torch raises where one waits
        torch.cuda.set_sync_debug_mode("error" if 5 < result.step < 22 else "default")

    config = dataclasses.replace(CONFIG, epochs=4)  # 24 steps
    execution = dataclasses.replace(EXECUTION, step=step, log_steps=100, checkpoint_steps=100)
    try:
        train(family, family.supernet(), data, config, tmp_path, execution, on_step=on_step)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.skipif(not IS_GPU, reason="CUDA graphs")
def test_resolutions_that_stay_train_the_same_by_graphs(data, tmp_path):
    config = dataclasses.replace(CONFIG, epochs=4, resolution_steps=5)
    found = []
    for step in ("eager", "graphs"):
        family, execution = small(), dataclasses.replace(EXECUTION, step=step)
        found.append(train(family, family.supernet(), data, config, tmp_path / step, execution).state_dict())
    for name, tensor in found[0].items():
        torch.testing.assert_close(found[1][name], tensor, rtol=1e-4, atol=1e-5)
