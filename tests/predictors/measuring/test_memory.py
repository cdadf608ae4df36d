import pytest
import torch
from torch import nn

from predictors import Device
from predictors.measuring import memory
from predictors.measuring.memory import peak_memory_bytes

MIB = 2**20


def weights(mebibytes):
    """A network whose weights take so much, and its activations next to nothing."""
    return nn.Linear(256, mebibytes * MIB // 4 // 256, bias=False)


def example():
    return (torch.empty(1, 256, device="meta"),)


def test_what_a_network_needs_more_is_seen_in_its_process():
    device = Device("here", "onnxruntime")
    small, large = (peak_memory_bytes(weights(size), device, example()) for size in (1, 65))
    assert 10 * MIB < small < 1024 * MIB
    assert large - small > 60 * MIB


@pytest.mark.exhaustive  # torch is imported anew
def test_torch_runs_in_a_process_of_its_own_too():
    assert peak_memory_bytes(weights(1), Device("here", "torch"), example()) > 50 * MIB


def test_where_it_cannot_be_measured_there_is_one_line(monkeypatch, tmp_path):
    with pytest.raises(ValueError, match=r"peak memory cannot be measured with torch_compile.*leave out peak_memory"):
        memory.check(Device("here", "torch_compile"))
    memory.check(Device("here", "onnxruntime"))
    monkeypatch.setattr(memory, "STATUS", tmp_path / "status")
    with pytest.raises(ValueError, match=r"without Linux's .*status"):
        memory.check(Device("here", "onnxruntime"))


def test_what_the_process_says_when_it_fails_is_passed_on(monkeypatch, tmp_path):
    script = tmp_path / "fails.py"
    script.write_text("raise SystemExit('no kernel for this layer')")
    monkeypatch.setattr(memory.resident, "__file__", str(script))
    with pytest.raises(RuntimeError, match="peak memory failed: no kernel for this layer"):
        peak_memory_bytes(weights(1), Device("here", "onnxruntime"), example())


def test_on_a_gpu_what_was_there_before_does_not_count(monkeypatch):
    allocated = {"now": 100, "most": 900}

    def prepare(model, device, example):
        allocated["now"] += 50

        def timer(count):
            allocated["most"] = max(allocated["most"], allocated["now"] + 30)

        return timer

    monkeypatch.setattr(memory, "prepare", prepare)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: allocated["now"])
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: allocated["most"])
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: allocated.update(most=allocated["now"]))
    assert peak_memory_bytes(weights(1), Device("gpu", "cuda"), example()) == 80
