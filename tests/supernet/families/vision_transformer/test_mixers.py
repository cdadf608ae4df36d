"""Token mixers by block of a vision transformer, against networks written out by hand."""

import math

import pytest
import safetensors.torch
import timm
import torch
from timm.models.vision_transformer import Block, VisionTransformer
from torch import nn
from torch.nn import functional as F

from exits import parts_of, with_exits
from search.prefix.pieces import cut
from supernet.artifacts.export import export_onnx, onnx_runner
from supernet.families import FAMILIES
from supernet.families.transformers.mixers import MIXERS, SelfAttention
from supernet.families.vision_transformer import rewire, transformer_channels

HEAD_DIM = 8
SIZES = {
    "embed_dim": (24, 32), "depth": (2, 5), "num_heads": (2, 4), "mlp_ratio": (1.0, 2.0), "patch_size": (16, 8),
    "resolution": (16, 32), "head_dim": HEAD_DIM, "num_classes": 7,
}  # fmt: skip
MIXED = ("own", "average", "reused", "none", "reused")
NAMES = {"own": "attn", "reused": "reused", "average": "average"}


def mixing(**options):
    return FAMILIES["vit"](**SIZES | {"mixers": MIXERS} | options)


def with_mixers(space, mixers, **values):
    """The largest architecture with these mixers and values."""
    chosen = {f"blocks.{b}.mixer": mixer for b, mixer in enumerate(mixers) if f"blocks.{b}.mixer" in space.choices}
    return space.validate({**space.largest, **chosen, **values})


def stirred(net):
    """`net` with norms and biases that do something."""
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=draw))
    return net.eval()


def images(size=32):
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))


def by_hand(model, x, mixers):
    """The logits of a network with a class token, by its tensors and the formulas of SAN and AAN."""
    state = model.state_dict()

    def linear(name, x):
        return F.linear(x, state[f"{name}.weight"], state.get(f"{name}.bias"))

    def norm(name, x):
        return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], 1e-6)

    def scaled(name, x):
        return x * state.get(f"{name}.gamma", 1.0)

    def heads(x):
        return x.unflatten(-1, (-1, HEAD_DIM)).transpose(1, 2)

    x = F.conv2d(x, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], stride=8).flatten(2).mT
    x = torch.cat([state["cls_token"].expand(len(x), 1, -1), x + state["pos_embed"]], 1)
    matrices = None
    for index, mixer in enumerate(mixers):
        block = f"blocks.{index}"
        if mixer != "none":
            y, name = norm(f"{block}.norm1", x), f"{block}.{NAMES[mixer]}"
            if mixer == "average":
                mean = y.mean(1, keepdim=True).expand_as(y)
                gates = linear(f"{name}.token_gate", y) + linear(f"{name}.average_gate", mean)
                of_token, of_mean = gates.sigmoid().chunk(2, -1)
                branch = of_token * y + of_mean * mean
            else:
                if mixer == "own":
                    query, key, value = map(heads, linear(f"{name}.qkv", y).chunk(3, -1))
                    matrices = (query @ key.mT / math.sqrt(HEAD_DIM)).softmax(-1)
                else:
                    value = heads(linear(f"{name}.value", y))
                branch = linear(f"{name}.proj", (matrices @ value).transpose(1, 2).flatten(-2))
            x = x + scaled(f"{block}.ls1", branch)
        hidden = F.gelu(linear(f"{block}.mlp.fc1", norm(f"{block}.norm2", x)))
        x = x + scaled(f"{block}.ls2", linear(f"{block}.mlp.fc2", hidden))
    return linear("head", norm("norm", x)[:, 0])


@pytest.fixture(scope="module")
def net():
    return stirred(mixing().supernet())


@pytest.mark.parametrize("mixers", [MIXED, ("own", "reused", "own", "average", "reused")])
def test_a_subnet_computes_what_the_formulas_say(net, mixers):
    family, x = mixing(), images()
    for width in (24, 32):
        arch = with_mixers(family.space, mixers, embed_dim=width)
        model = net.extract(arch)
        torch.testing.assert_close(model(x), by_hand(model, x, mixers), rtol=1e-5, atol=1e-4)
        assert torch.equal(net(x, arch), model(x))


def test_layer_scale_stays():
    family = mixing(name="vit_small_patch14_dinov2.lvd142m", pool=("token",))
    model = stirred(family.supernet()).extract(with_mixers(family.space, MIXED))
    assert "blocks.2.ls1.gamma" in model.state_dict()
    assert "blocks.3.ls1.gamma" not in model.state_dict()
    torch.testing.assert_close(model(images()), by_hand(model, images(), MIXED), rtol=1e-4, atol=1e-4)
    arch = with_mixers(family.space, MIXED)
    assert sum(parameter.numel() for parameter in model.parameters()) == family.parameters(arch)


def test_norms_of_queries_and_keys_are_in_matrices_that_are_kept():
    torch.manual_seed(0)
    attention = SelfAttention(24, 2, 8, qkv_bias=True, qk_norm=True, scale_norm=True, norm_layer=nn.LayerNorm)
    for parameter in attention.parameters():
        nn.init.normal_(parameter)
    x = torch.randn(2, 5, 24)
    mixed, matrices = attention(x, keep=True)
    torch.testing.assert_close(mixed, attention(x))
    torch.testing.assert_close(matrices.sum(-1), torch.ones(2, 2, 5))


def test_costs_are_what_is_counted(numpy_generator):
    family = mixing(registers=(1, 2), pool=("avg", "token"))
    archs = [family.space.largest, family.space.smallest, with_mixers(family.space, MIXED)]
    for arch in archs + [family.space.sample(numpy_generator) for _ in range(5)]:
        assert family.macs(arch) == family._count_macs(arch)
        assert family.parameters(arch) == family._count_parameters(arch)


def test_with_attention_of_its_own_everywhere_a_subnet_is_timms(net):
    arch = with_mixers(net.space, ["own"] * 5)
    extracted = net.extract(arch)
    assert type(extracted) is VisionTransformer
    assert type(extracted.blocks) is nn.Sequential
    assert {type(block) for block in extracted.blocks} == {Block}
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=32, depth=5, num_heads=4, mlp_ratio=2.0,
        num_classes=7, no_embed_class=True,
    )  # fmt: skip
    model.load_state_dict(extracted.state_dict())
    assert torch.equal(model.eval()(images()), extracted(images()))
    assert net.space.largest == arch


def test_only_blocks_that_mix_otherwise_or_lend_their_attention_are_no_blocks_of_timms():
    family = mixing()
    model = family.build(with_mixers(family.space, ("own", "reused", "own", "none", "own")))
    assert [type(block) is Block for block in model.blocks] == [False, False, True, False, True]


def test_pretrained_weights_are_those_of_the_largest(tmp_path):
    torch.manual_seed(0)
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=32, depth=5, num_heads=4, mlp_ratio=2.0,
        num_classes=7,
    ).eval()  # fmt: skip
    safetensors.torch.save_file(model.state_dict(), tmp_path / "model.safetensors")
    family = mixing(pretrained=str(tmp_path / "model.safetensors"))
    net = family.supernet().eval()
    torch.testing.assert_close(net(images(), family.space.largest), model(images()), rtol=1e-5, atol=1e-5)
    rewire(net, [(images(), torch.tensor([0, 1]))], lambda model, batch: F.cross_entropy(model(batch[0]), batch[1]))
    torch.testing.assert_close(net(images(), family.space.largest), model(images()), rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="attention of their own alone, not 'average'"):
        transformer_channels(net.extract(with_mixers(family.space, MIXED)))


@torch.no_grad()
def test_beginnings_are_cut_where_no_attention_goes_on(net):
    model = net.extract(with_mixers(net.space, ("own", "none", "reused", "average", "own"))).eval()
    pieces, carried = cut(model), images()
    for piece in pieces:
        carried = piece(carried)
    torch.testing.assert_close(carried, model(images()))
    within = [sum(isinstance(layer, Block) for layer in piece.layers) for piece in pieces]
    assert [count for count in within if count] == [3, 1, 1]  # the first one's attention is the third one's
    network = with_exits(model, ["blocks.2", "blocks.3"], 7, (images(),))
    assert len(parts_of(network)) == 3
    with pytest.raises(ValueError, match=r"'blocks\.0' gives \[\]"):
        with_exits(model, ["blocks.0"], 7, (images(),))
    with pytest.raises(ValueError, match=r"blocks\.1"):
        parts_of(with_exits(model, ["blocks.1"], 7, (images(),)))


def test_mixers_are_exported(net, tmp_path):
    arch = with_mixers(net.space, MIXED)
    model, path = net.extract(arch), tmp_path / "model.onnx"
    export_onnx(model, path, mixing().example(arch), dynamic_batch=True)
    with torch.no_grad():
        torch.testing.assert_close(onnx_runner(path)(images()), model(images()), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("mixers", "message"),
    [
        (("own", "convolution"), "mixers are of none, average, reused, own, not 'convolution'"),
        (("none", "average"), "mixers have own among them"),
    ],
)
def test_mixers_that_make_no_network_are_refused(mixers, message):
    with pytest.raises(ValueError, match=message):
        mixing(mixers=mixers)
