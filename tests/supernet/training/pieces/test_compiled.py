import numpy as np
import pytest
import torch
from torch import nn

from supernet import SearchSpace, Supernet
from supernet.training.pieces.compiled import CompiledPieces


class Model(nn.Module):
    def __init__(self, arch):
        super().__init__()
        self.layer = nn.Linear(8, arch["width"])
        self.last = nn.Linear(arch["width"], 3)

    def forward(self, x):
        return self.last(self.layer(x).relu())


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # torch's own tracing looks at it
def test_gradients_are_the_same_and_told_and_sizes_have_their_code_in_common():
    compiled, told = [], []

    def trace_only(graph, inputs):
        compiled.append(graph)
        return graph

    space = SearchSpace({"width": (2, 3, 4, 5, 6, 7)})
    net = Supernet(space, Model, pieces=lambda arch: {"layer": arch["width"], "last": arch["width"]}).train()
    pieces = CompiledPieces(backend=trace_only)
    x = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    for arch in [space.sample(np.random.default_rng(seed)) for seed in range(12)]:
        found = []
        for stand_in, arrived in ((None, None), (pieces, None), (pieces, told.append)):
            net.zero_grad()
            net(x, arch, accumulate=True, stand_in=stand_in, arrived=arrived).square().sum().backward()
            found.append({name: parameter.grad.clone() for name, parameter in net.named_parameters()})
        for name, gradient in found[0].items():
            assert torch.equal(found[1][name], gradient)
            assert torch.equal(found[2][name], gradient)
        assert {id(parameter) for parameter in told[-4:]} == {id(parameter) for parameter in net.parameters()}
    assert len(compiled) < 8  # of 12 pieces: of each kind the first by itself, and the others together
