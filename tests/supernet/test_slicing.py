import pickle

import pytest
import torch
from timm.layers import Attention
from torch import nn

from supernet import SearchSpace, Supernet
from supernet.slicing import blocks, centred, layer_rule, leading, take


def test_leading_keeps_the_first_entries_of_every_dimension():
    tensor = torch.arange(12).reshape(3, 4)
    assert leading(tensor, torch.Size((2, 3))).tolist() == [[0, 1, 2], [4, 5, 6]]


def test_centred_keeps_leading_channels_and_the_middle_of_the_kernel():
    kernel = torch.arange(2 * 25).reshape(2, 1, 5, 5)
    assert centred(kernel, torch.Size((1, 1, 3, 3))).tolist() == [[[[6, 7, 8], [11, 12, 13], [16, 17, 18]]]]
    assert centred(kernel, torch.Size((1, 1, 3, 1))).flatten().tolist() == [7, 12, 17]


def test_blocks_slices_every_block_on_its_own():
    tensor = torch.arange(12).reshape(6, 2)  # three blocks of two rows
    assert blocks(3)(tensor, torch.Size((3, 1))).tolist() == [[0], [4], [8]]


@pytest.mark.parametrize(
    ("layer", "rule"), [(nn.Conv2d(1, 1, 3), centred), (nn.Conv1d(1, 1, 3), centred), (nn.Linear(1, 1), leading)]
)
def test_kernels_are_centred_and_all_else_leads(layer, rule):
    assert layer_rule(layer, "weight") is rule
    assert layer_rule(layer, "bias") is leading


def test_blocks_of_columns_are_sliced_each_on_its_own():
    tensor = torch.arange(12).reshape(2, 6)  # three blocks of two columns
    assert blocks(3, dim=1)(tensor, torch.Size((1, 3))).tolist() == [[0, 2, 4]]
    both = blocks(2, blocks(2, dim=1))(torch.arange(16).reshape(4, 4), torch.Size((2, 2)))
    assert both.tolist() == [[0, 2], [8, 10]]


def fill_by_hand(smaller: nn.Module, larger: nn.Module, parts: dict[str, list]) -> nn.Module:
    """`smaller` with its tensors filled from those of `larger`: for every name the index of the rows, and of the
    columns if there are any, that mean the same."""
    with torch.no_grad():
        for name, tensor in smaller.named_parameters():
            rows, *columns = parts[name]
            part = larger.get_parameter(name)[torch.tensor(rows)]
            tensor.copy_(part[:, torch.tensor(columns[0])] if columns else part)
    return smaller


class Wrapped(nn.Module):
    """The output of a layer alone, without its states or weights."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x):
        y = self.layer(x, x, x) if isinstance(self.layer, nn.MultiheadAttention) else self.layer(x)
        return y[0] if isinstance(y, tuple) else y


def rows_of(gates: int, have: int, want: int) -> list[int]:
    return [gate * have + row for gate in range(gates) for row in range(want)]


@pytest.mark.parametrize(("kind", "gates"), [(nn.LSTM, 4), (nn.GRU, 3), (nn.RNN, 1)])
def test_gates_of_a_recurrent_layer_keep_their_leading_states(kind, gates):
    """Two layers in both directions, 4 of 6 states and 2 of 3 inputs."""

    def build(arch):
        return Wrapped(kind(arch["inputs"], arch["states"], 2, batch_first=True, bidirectional=True))

    space = SearchSpace({"inputs": (2, 3), "states": (4, 6)})
    net = Supernet(space, build)
    rows, parts = rows_of(gates, 6, 4), {}
    for way in ("", "_reverse"):
        parts[f"layer.weight_ih_l0{way}"] = [rows, [0, 1]]
        parts[f"layer.weight_ih_l1{way}"] = [rows, rows_of(2, 6, 4)]
        for layer in (0, 1):
            parts[f"layer.weight_hh_l{layer}{way}"] = [rows, range(4)]
            parts[f"layer.bias_ih_l{layer}{way}"] = parts[f"layer.bias_hh_l{layer}{way}"] = [rows]
    parts = {name: [list(index) for index in indices] for name, indices in parts.items()}
    x = torch.randn(2, 5, 2, generator=torch.Generator().manual_seed(0))
    expected = fill_by_hand(build(space.smallest), net.extract(space.largest), parts)(x)
    assert torch.equal(net(x, space.smallest), expected)
    assert torch.equal(net.extract(space.smallest)(x), expected)


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
def test_the_projection_of_an_lstm_keeps_leading_entries():
    def build(arch):
        return Wrapped(nn.LSTM(2, arch["states"], 2, batch_first=True, bidirectional=True, proj_size=arch["outputs"]))

    space = SearchSpace({"states": (4, 6), "outputs": (2, 3)})
    net = Supernet(space, build)
    rows, parts = rows_of(4, 6, 4), {}
    for way in ("", "_reverse"):
        for layer, columns in ((0, [0, 1]), (1, rows_of(2, 3, 2))):
            parts[f"layer.weight_ih_l{layer}{way}"] = [rows, columns]
            parts[f"layer.weight_hh_l{layer}{way}"] = [rows, [0, 1]]
            parts[f"layer.weight_hr_l{layer}{way}"] = [[0, 1], [0, 1, 2, 3]]
            parts[f"layer.bias_ih_l{layer}{way}"] = parts[f"layer.bias_hh_l{layer}{way}"] = [rows]
    x = torch.randn(2, 5, 2, generator=torch.Generator().manual_seed(0))
    expected = fill_by_hand(build(space.smallest), net.extract(space.largest), parts)(x)
    assert torch.equal(net(x, space.smallest), expected)


@pytest.mark.parametrize(("kind", "gates"), [(nn.LSTMCell, 4), (nn.GRUCell, 3), (nn.RNNCell, 1)])
def test_gates_of_a_cell_keep_their_leading_states(kind, gates):
    space = SearchSpace({"states": (4, 6)})
    net = Supernet(space, lambda arch: Wrapped(kind(2, arch["states"])))
    rows = rows_of(gates, 6, 4)
    parts = {"weight_ih": [rows, [0, 1]], "weight_hh": [rows, [0, 1, 2, 3]], "bias_ih": [rows], "bias_hh": [rows]}
    parts = {f"layer.{name}": indices for name, indices in parts.items()}
    x = torch.randn(3, 2, generator=torch.Generator().manual_seed(0))
    expected = fill_by_hand(net.build(space.smallest), net.extract(space.largest), parts)(x)
    assert torch.equal(net(x, space.smallest), expected)


def test_narrower_attention_keeps_the_leading_heads_of_queries_keys_and_values():
    """Two of three heads of 4 channels, in torch's attention."""
    space = SearchSpace({"heads": (2, 3)})
    net = Supernet(
        space, lambda arch: Wrapped(nn.MultiheadAttention(4 * arch["heads"], arch["heads"], batch_first=True))
    )
    rows, kept = rows_of(3, 12, 8), list(range(8))
    parts = {"in_proj_weight": [rows, kept], "in_proj_bias": [rows], "out_proj.weight": [kept, kept]}
    parts = {f"layer.{name}": indices for name, indices in (parts | {"out_proj.bias": [kept]}).items()}
    x = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))
    for bias in ("in_proj_bias", "out_proj.bias"):  # zeros at first
        nn.init.normal_(net.get_parameter(f"layer.{bias}"), generator=torch.Generator().manual_seed(1))
    expected = fill_by_hand(net.build(space.smallest), net.extract(space.largest), parts)(x)
    assert torch.equal(net(x, space.smallest), expected)


def test_a_narrower_encoder_is_the_one_sliced_by_hand():
    space = SearchSpace({"heads": (1, 2), "hidden": (8, 16)})

    def build(arch):
        return nn.TransformerEncoderLayer(4 * arch["heads"], arch["heads"], arch["hidden"], batch_first=True)

    net = Supernet(space, build).eval()
    kept, hidden, rows = list(range(4)), list(range(8)), rows_of(3, 8, 4)
    parts = {"self_attn.in_proj_weight": [rows, kept], "self_attn.in_proj_bias": [rows]}
    parts |= {"self_attn.out_proj.weight": [kept, kept], "self_attn.out_proj.bias": [kept]}
    parts |= {"linear1.weight": [hidden, kept], "linear1.bias": [hidden]}
    parts |= {"linear2.weight": [kept, hidden], "linear2.bias": [kept]}
    parts |= {f"norm{i}.{name}": [kept] for i in (1, 2) for name in ("weight", "bias")}
    x = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0))
    expected = fill_by_hand(build(space.smallest), net.extract(space.largest), parts).eval()(x)
    assert torch.equal(net(x, space.smallest), expected)


def test_timms_fused_attention_needs_no_rule_by_name():
    space = SearchSpace({"heads": (2, 3)})
    net = Supernet(space, lambda arch: Attention(12, arch["heads"], attn_head_dim=4, qkv_bias=True))
    rows, inputs, kept = rows_of(3, 12, 8), list(range(12)), list(range(8))
    parts = {"qkv.weight": [rows, inputs], "qkv.bias": [rows], "proj.weight": [inputs, kept], "proj.bias": [inputs]}
    x = torch.randn(2, 5, 12, generator=torch.Generator().manual_seed(0))
    expected = fill_by_hand(net.build(space.smallest), net.extract(space.largest), parts)(x)
    assert torch.equal(net(x, space.smallest), expected)


@pytest.mark.parametrize(
    ("build", "tensor", "sizes"),
    [
        (lambda w: nn.MultiheadAttention(8 * w, 4), "in_proj_weight", ("heads of 2 channels", "of 4 in")),
        (lambda w: Attention(8 * w, 4), "qkv.weight", ("heads of 2 channels", "of 4 in")),
        (lambda w: nn.Conv2d(4 * w, 4 * w, 3, groups=2), "weight", ("groups of 2 x 2 channels", "of 4 x 4 in")),
        (lambda w: nn.ConvTranspose2d(8, 4 * w, 3, groups=2), "weight", ("groups of 2 x 4 channels", "of 4 x 4 in")),
        (lambda w: nn.Conv2d(8, 8 * w, 3, groups=8), "weight", ("groups of 1 x 1 channels", "of 2 x 1 in")),
    ],
)
def test_smaller_heads_and_groups_are_refused_by_name(build, tensor, sizes):
    space = SearchSpace({"width": (1, 2)})
    with pytest.raises(
        ValueError, match=f"the layer of tensor '{tensor}' has .*alone, or give slicing rules by name"
    ) as error:
        Supernet(space, lambda arch: build(arch["width"]))
    assert all(size in str(error.value) for size in sizes)
    Supernet(space, lambda arch: build(arch["width"]), {"*": leading})


def test_fewer_groups_and_a_single_smaller_one_are_parts():
    by_width = SearchSpace({"width": (1, 2)})
    for build in (
        lambda w: nn.Conv2d(4 * w, 4 * w, 3, groups=4 * w),  # depthwise
        lambda w: nn.Conv2d(4 * w, 8 * w, 3, groups=4 * w),  # of two outputs an input
        lambda w: nn.Conv2d(4 * w, 4 * w, 3, groups=w),  # of four channels a group
        lambda w: nn.MultiheadAttention(4 * w, 1),
    ):
        net = Supernet(by_width, lambda arch, build=build: build(arch["width"]))
        net.extract(by_width.smallest)


def test_rules_survive_pickling():
    rule = pickle.loads(pickle.dumps(blocks(4, blocks(2, dim=1))))
    assert rule == blocks(4, blocks(2, dim=1)) != blocks(3)


@pytest.mark.parametrize("rule", [leading, blocks(2)])
def test_gradients_land_in_the_part_and_nowhere_else(rule):
    shared = torch.arange(16.0).reshape(4, 4).requires_grad_()
    take(shared, torch.Size((2, 3)), rule).backward(torch.tensor([[1.0, 2, 3], [4, 5, 6]]))
    rows = (0, 1) if rule is leading else (0, 2)
    expected = torch.zeros(4, 4)
    expected[rows, :3] = torch.tensor([[1.0, 2, 3], [4, 5, 6]])
    assert torch.equal(shared.grad, expected)


def test_a_whole_tensor_is_passed_on_and_a_vector_is_a_view():
    tensor = torch.zeros(4, 4)
    assert take(tensor, tensor.shape, leading) is tensor
    statistics = torch.zeros(4)
    take(statistics, torch.Size((2,)), leading).add_(1)
    assert statistics.tolist() == [1, 1, 0, 0]


def test_the_entries_of_a_vector_lie_side_by_side():
    vector = torch.arange(64.0)
    part = take(vector, torch.Size((32,)), lambda tensor, shape: tensor.unflatten(0, (32, 2))[:, 0])
    assert torch.equal(part, vector[::2])
    assert part.is_contiguous()


def test_a_part_of_a_weight_is_dense_in_the_format_of_the_whole():
    weight = torch.randn(8, 8, 3, 3).contiguous(memory_format=torch.channels_last)
    part = take(weight, torch.Size((4, 2, 3, 3)), centred)
    assert part.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(part, weight[:4, :2])
    assert take(torch.randn(8, 8), torch.Size((4, 4)), leading).is_contiguous()
