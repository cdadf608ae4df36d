import copy

import pytest
import timm
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from supernet.costs import _count, count_macs, count_parameters
from supernet.families import FAMILIES, Family
from supernet.skeleton import copy_to
from supernet.space import SearchSpace


class Calls(nn.Module):
    """`function` of the input and of layers."""

    def __init__(self, function, *layers: nn.Module) -> None:
        super().__init__()
        self.function, self.layers = function, nn.ModuleList(layers)

    def forward(self, x):
        return self.function(x, *self.layers)


def attend(x, layer, **options):
    return layer(x, x, x, **options)[0]


def first(x, layer):
    return layer(x)[0]


STEP = 8 * 16 + 16 * 16  # the weights of one gate on 8 inputs and 16 states
ATTENTION = 5 * 4 * 8 * 8 + 2 * 5 * 5 * 8  # four projections of 5 tokens, and the two products with the weights
x5 = (5, 8)  # 5 tokens of 8 channels

BY_HAND = {
    "linear": (Calls(lambda x, m: m(x), nn.Linear(8, 4)), x5, 5 * 8 * 4),
    "grouped convolution": (nn.Conv2d(8, 6, 3, stride=2, groups=2, padding=1), (8, 5, 7), 3 * 4 * 6 * 4 * 9),
    "transposed convolution": (nn.ConvTranspose2d(8, 6, 3, stride=2, groups=2), (8, 5, 5), 25 * 8 * 3 * 9),
    "convolution in 3d": (nn.Conv3d(2, 4, 3), (2, 5, 5, 5), 27 * 27 * 2 * 4),
    "convolution, time first": (
        Calls(lambda x: torch.conv_tbc(x.permute(2, 0, 1), torch.ones(3, 8, 4), torch.ones(4))),
        (8, 7),
        5 * 3 * 8 * 4,
    ),
    "deformable convolution": (
        Calls(lambda x, m: m(x, x.new_zeros(1, 18, 3, 3)), torchvision.ops.DeformConv2d(4, 6, 3)),
        (4, 5, 5),
        9 * 9 * 4 * 6,
    ),
    "lstm": (Calls(first, nn.LSTM(8, 16, batch_first=True)), x5, 5 * 4 * STEP),
    "lstm, two layers, both ways, projected": (
        Calls(first, nn.LSTM(8, 16, 2, batch_first=True, bidirectional=True, proj_size=4)),
        x5,
        2 * 5 * 2 * (4 * (8 * 16 + 4 * 16) + 16 * 4),
    ),
    "gru": (Calls(first, nn.GRU(8, 16, batch_first=True)), x5, 5 * 3 * STEP),
    "rnn": (Calls(first, nn.RNN(8, 16, batch_first=True)), x5, 5 * STEP),
    "lstm cell": (Calls(lambda x, m: m(x[:, 0])[0], nn.LSTMCell(8, 16)), x5, 4 * STEP),
    "gru cell": (Calls(lambda x, m: m(x[:, 0]), nn.GRUCell(8, 16)), x5, 3 * STEP),
    "attention with weights": (Calls(attend, nn.MultiheadAttention(8, 2, batch_first=True)), x5, ATTENTION),
    "attention without": (
        Calls(lambda x, m: attend(x, m, need_weights=False), nn.MultiheadAttention(8, 2, batch_first=True)),
        x5,
        ATTENTION,
    ),
    "encoder": (
        nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2, enable_nested_tensor=False),
        x5,
        2 * (ATTENTION + 2 * 5 * 8 * 16),
    ),
    "attention function": (Calls(lambda x: F.scaled_dot_product_attention(x, x, x)), (2, 5, 8), 2 * 2 * 5 * 5 * 8),
    "masked attention": (
        Calls(lambda x: F.scaled_dot_product_attention(x, x, x, is_causal=True)),
        (2, 5, 8),
        2 * 2 * 5 * 5 * 8,
    ),
    "shared keys": (
        Calls(lambda x: F.scaled_dot_product_attention(x, x[:, :1], x[:, :1], enable_gqa=True)),
        (2, 5, 8),
        2 * 2 * 5 * 5 * 8,
    ),
    "narrower values": (
        Calls(lambda x: F.scaled_dot_product_attention(x, x[:, :, :4], x[:, :, :4, :3])),
        (2, 5, 8),
        2 * 5 * 4 * (8 + 3),
    ),
    "einsum": (Calls(lambda x: torch.einsum("bnc,bmc,bmd->bnd", x, x, x)), x5, 2 * 25 * 8),
    "einsum to a vector": (Calls(lambda x: torch.einsum("bnc,bnc->bn", x, x)), x5, 5 * 8),
    "tensordot": (Calls(lambda x: torch.tensordot(x, x, dims=([2], [2]))), x5, 25 * 8),
    "multi_dot": (Calls(lambda x: torch.linalg.multi_dot([x[0], x[0].T, x[0]])), x5, 2 * 25 * 8),
    "baddbmm": (Calls(lambda x: torch.baddbmm(x @ x.mT, x, x.mT)), x5, 2 * 25 * 8),
    "baddbmm_": (Calls(lambda x: (x @ x.mT).baddbmm_(x, x.mT)), x5, 2 * 25 * 8),
    "addbmm": (Calls(lambda x: torch.addbmm(x[0, :, :5], x, x.mT)), x5, 25 * 8),
    "addmm_": (Calls(lambda x: (x[0] @ x[0].T).addmm_(x[0], x[0].T)), x5, 2 * 25 * 8),
    "addmv": (Calls(lambda x: torch.addmv(x[0, :, 0], x[0], x[0, 0])), x5, 5 * 8),
    "matrix and vector": (Calls(lambda x: x[0] @ x[0, 0]), x5, 5 * 8),
    "two vectors": (Calls(lambda x: x[0, 0] @ x[0, 1]), x5, 8),
    "bilinear": (Calls(lambda x, m: m(x, x[..., :3]), nn.Bilinear(8, 3, 4)), x5, 5 * (8 * 4 * 3 + 4 * 3)),
    "a gate": (Calls(lambda x, m: m(x) * x.sigmoid() + torch.outer(x[0, 0], x[0, 0]).sum(), nn.Identity()), x5, 0),
}


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize("case", BY_HAND)
def test_macs_are_those_counted_by_hand(case):
    module, size, expected = BY_HAND[case]
    assert count_macs(module, size) == expected
    cpu = torch.device("cpu")
    with torch.no_grad(), cpu:
        assert _count(size, copy_to(module, cpu).eval(), cpu) == expected  # where torch has other kernels


def test_queries_that_are_parameters_are_no_obstacle():
    assert 0.69e9 < count_macs(timm.create_model("pit_ti_224"), (3, 224, 224)) < 0.71e9  # timm's table: 0.70


class Awkward(nn.Module):
    """Tensors made in the forward pass, as mere attributes, and from other parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 4)
        self.tables = {"scale": [torch.ones(8)]}
        self.cache = {}

    def forward(self, x):
        positions = torch.arange(x.shape[1])[:, None]
        self.cache["last"] = x
        return self.linear(x * self.tables["scale"][0] + positions + torch.zeros(8))


class AsksForValues(nn.Module):
    def forward(self, x):
        return x[:, : int(torch.ones(3).sum())] @ torch.from_numpy(x[0].numpy()).T


@pytest.mark.parametrize(("module", "macs"), [(Awkward(), 5 * 8 * 4), (AsksForValues(), 3 * 8 * 5)])
def test_tensors_of_a_models_own_are_no_obstacle(module, macs):
    assert count_macs(module, x5) == macs


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
def test_weights_that_are_computed_are_no_obstacle():
    for normalised in (nn.utils.weight_norm, nn.utils.parametrizations.weight_norm):
        model = normalised(nn.Linear(8, 4))
        model(torch.zeros(8)).sum().backward()
        assert count_macs(model, x5) == 5 * 8 * 4


def test_the_module_stays_as_it_is():
    module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), Awkward())
    module[1].eval()
    tensors = dict([*module.named_parameters(), *module.named_buffers()])
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    module[0].bias.requires_grad_(False)
    count_macs(nn.Sequential(*module, nn.Flatten()), (3, 10, 10))
    assert [child.training for child in module] == [True, False, True]
    assert not module[2].cache
    assert not module[0].bias.requires_grad
    assert module[0].weight.requires_grad
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        assert tensor is tensors[name]
        assert torch.equal(tensor, before[name])


def test_weights_without_memory_and_of_other_types_are_counted_too():
    for model in (nn.Linear(8, 4, device="meta"), nn.Linear(8, 4).double(), nn.Linear(8, 4).bfloat16()):
        assert count_macs(model, x5) == 5 * 8 * 4


def test_what_does_not_run_is_named_in_one_line():
    with pytest.raises(ValueError, match=r"Conv2d does not run: .*4 channels") as error:
        count_macs(nn.Conv2d(3, 8, 3), (4, 8, 8))
    assert "\n" not in str(error.value)


def test_frozen_parameters_count_and_tied_ones_count_once():
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8, bias=False))
    model[0].requires_grad_(False)
    assert count_parameters(model) == 8 * 8 + 8 + 8 * 8
    model[1].weight = model[0].weight
    assert count_parameters(model) == 8 * 8 + 8


def test_every_family_counts_frozen_parameters():
    micro = FAMILIES["mobilenet_v3_micro"]()

    def frozen(arch):
        return micro.build(arch).requires_grad_(False)

    assert Family(micro.space, frozen, 10).parameters(micro.space.largest) == micro.parameters(micro.space.largest)
    single = Family(SearchSpace({"resolution": (8,)}), lambda arch: copy.deepcopy(nn.Linear(8, 4)), 4)
    assert single.parameters(single.space.largest) == 8 * 4 + 4
