import torch

from predictors import this_device
from supernet.artifacts import provenance


def test_hardware_names_the_gpu_where_there_is_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert provenance.hardware() == provenance.processor()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H100")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    found = {"gpu": "NVIDIA H100", "gpus": 2, "cuda": "13.0"}
    assert provenance.hardware() == provenance.processor() | found
    assert found.items() <= this_device("cuda_graph").hardware.items()
    assert "gpu" not in this_device("torch").hardware  # what runs on the processor is as fast without one


def test_the_command_can_be_given_to_a_shell_again(monkeypatch):
    monkeypatch.setattr("sys.argv", ["supernet extract", "--arch", '{"width": 8}', "--output", "subnets/mine"])
    assert provenance.command() == """supernet extract --arch '{"width": 8}' --output subnets/mine"""
    monkeypatch.setattr("sys.argv", ["benchmarks/little_data.py", "--arms", "as it is"])
    assert provenance.command() == "python benchmarks/little_data.py --arms 'as it is'"
