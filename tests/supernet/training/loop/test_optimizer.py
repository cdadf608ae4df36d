from types import SimpleNamespace

import pytest
from torch import nn

from supernet.training.loop.config import LoopConfig
from supernet.training.loop.optimizer import _fused, make_optimizer


@pytest.mark.parametrize(("opt", "expected"), [("sgd", {}), ("adamw", {"fused": True}), ("rmsproptf", {})])
def test_updates_are_fused_on_a_gpu_where_torch_can(opt, expected):
    on_gpu = SimpleNamespace(parameters=lambda: [SimpleNamespace(is_cuda=True)])
    assert _fused(on_gpu, opt) == expected
    optimizer, _ = make_optimizer(nn.Linear(2, 2), LoopConfig(opt=opt), 5)
    assert not any(group.get("fused") for group in optimizer.param_groups)


def test_an_unknown_optimizer_is_named():
    with pytest.raises(ValueError, match=r"^opt is an optimizer of timm's, such as sgd, adamw or lamb: .*nothere"):
        make_optimizer(nn.Linear(2, 2), LoopConfig(opt="nothere"), 10)
