"""Token mixers by layer, against networks written out by hand."""

import math

import pytest
import torch
from torch.nn import functional as F

from supernet.artifacts.export import export_onnx, onnx_runner
from supernet.families import FAMILIES
from supernet.families.transformers.mixers import MIXERS

VOCABULARY, LENGTH, HEAD_DIM = 30, 8, 4
OPTIONS = {
    "vocabulary": VOCABULARY, "length": LENGTH, "embed_dim": [8, 16], "depth": [2, 5], "num_heads": [1, 2],
    "mlp_ratio": [1, 2], "head_dim": HEAD_DIM,
}  # fmt: skip
NAMES = {"own": "attn", "reused": "reused", "average": "average"}
MIXED = ("own", "average", "reused", "none", "reused")


def by_hand(model, tokens, mask, mixers, *, causal):
    """The features of a network by its tensors and the formulas of SAN and AAN, token by token where they say so."""
    state = model.state_dict()

    def linear(name, x):
        bias = state.get(f"{name}.bias")
        return x @ state[f"{name}.weight"].T + (0 if bias is None else bias)

    def norm(name, x):
        return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], 1e-5 if causal else 1e-12)

    def heads(x):
        return x.unflatten(-1, (-1, HEAD_DIM)).transpose(1, 2)

    def mixed(name, mixer, x, matrices):
        if mixer == "average":
            means = torch.zeros_like(x)
            for text in range(len(x)):
                for j in range(LENGTH):
                    seen = [k for k in range(LENGTH) if mask[text, k] and (k <= j or not causal)]
                    means[text, j] = sum(x[text, k] for k in seen) / max(len(seen), 1)
            gates = (linear(f"{name}.token_gate", x) + linear(f"{name}.average_gate", means)).sigmoid()
            of_token, of_mean = gates.chunk(2, -1)
            return of_token * x + of_mean * means, matrices
        if mixer == "own":
            query, key, value = map(heads, linear(f"{name}.qkv", x).chunk(3, -1))
            scores = query @ key.mT / math.sqrt(HEAD_DIM) + -1e9 * (1 - mask[:, None, None].float())
            if causal:
                scores = scores + torch.full((LENGTH, LENGTH), -1e9).triu(1)
            matrices = scores.softmax(-1)
        else:
            value = heads(linear(f"{name}.value", x))
        return linear(f"{name}.proj", (matrices @ value).transpose(1, 2).flatten(-2)), matrices

    x, matrices = model.embeddings(tokens), None
    for index, mixer in enumerate(mixers):
        block = f"blocks.{index}"
        if mixer != "none":
            branch, matrices = mixed(
                f"{block}.{NAMES[mixer]}", mixer, norm(f"{block}.norm1", x) if causal else x, matrices
            )
            x = x + branch if causal else norm(f"{block}.norm1", x + branch)
        hidden = linear(f"{block}.mlp.fc1", norm(f"{block}.norm2", x) if causal else x)
        branch = linear(f"{block}.mlp.fc2", F.gelu(hidden, approximate="tanh" if causal else "none"))
        x = x + branch if causal else norm(f"{block}.norm2", x + branch)
    return x


def with_mixers(space, mixers, **values):
    """The largest architecture with these mixers and values."""
    chosen = {f"blocks.{b}.mixer": mixer for b, mixer in enumerate(mixers) if f"blocks.{b}.mixer" in space.choices}
    return space.validate({**space.largest, **chosen, **values})


def texts():
    tokens = torch.randint(1, VOCABULARY, (3, LENGTH), generator=torch.Generator().manual_seed(0))
    return tokens, (torch.arange(LENGTH)[None] < torch.tensor([8, 5, 1])[:, None]).long()


def stirred(net):
    """`net` with norms and biases that do something."""
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=draw))
    return net.eval()


@pytest.mark.parametrize("mixers", [MIXED, ("own", "reused", "own", "average", "reused")])
def test_an_encoder_computes_what_the_formulas_say(mixers):
    family = FAMILIES["text_encoder"](num_classes=3, mixers=MIXERS, **OPTIONS)
    net, (tokens, mask) = stirred(family.supernet()), texts()
    for width in (8, 16):
        arch = with_mixers(family.space, mixers, embed_dim=width)
        model = net.extract(arch)
        seen = mask.bool()
        found = model.forward_features(tokens, mask)
        torch.testing.assert_close(found[seen], by_hand(model, tokens, mask, mixers, causal=False)[seen])
        assert torch.equal(net(tokens, mask, arch), model(tokens, mask))
        torch.testing.assert_close(model(tokens[1:2, :5]), model(tokens, mask)[1:2])  # without what fills it up
        assert model(tokens, torch.zeros_like(mask)).isfinite().all()


def test_a_decoder_computes_what_the_formulas_say():
    family = FAMILIES["text_decoder"](mixers=MIXERS, **OPTIONS)
    net, (tokens, mask) = stirred(family.supernet()), texts()
    model = net.extract(with_mixers(family.space, MIXED))
    found = model.norm(by_hand(model, tokens, torch.ones_like(mask), MIXED, causal=True))
    torch.testing.assert_close(model(tokens), model.head(found), rtol=1e-5, atol=1e-4)
    later = torch.cat([tokens[:, :4], tokens.flip(1)[:, :4]], 1)
    torch.testing.assert_close(model(later)[:, :4], model(tokens)[:, :4])


@pytest.mark.parametrize("space", ["text_encoder", "text_decoder"])
def test_costs_are_what_is_counted(space, numpy_generator):
    family = FAMILIES[space](mixers=MIXERS, **OPTIONS)
    archs = [family.space.largest, family.space.smallest, with_mixers(family.space, MIXED)]
    for arch in archs + [family.space.sample(numpy_generator) for _ in range(5)]:
        assert family.macs(arch) == family._count_macs(arch)
        assert family.parameters(arch) == family._count_parameters(arch)


def test_reusing_attention_saves_what_queries_and_keys_cost():
    family = FAMILIES["text_encoder"](mixers=MIXERS, **OPTIONS)
    own, reused = (with_mixers(family.space, ["own", mixer, "own", "own", "own"]) for mixer in ("own", "reused"))
    dim, channels = 16, 2 * HEAD_DIM
    assert family.parameters(own) - family.parameters(reused) == 2 * (dim + 1) * channels
    assert family.macs(own) - family.macs(reused) == 2 * dim * channels * LENGTH + LENGTH**2 * channels


def test_blocks_share_what_both_have():
    options = OPTIONS | {"depth": [5], "mixers": MIXERS, "distinct_layers": [1, 5]}
    family = FAMILIES["text_encoder"](num_classes=3, **options)
    net, (tokens, mask) = stirred(family.supernet()), texts()
    arch = with_mixers(family.space, MIXED, distinct_layers=1)
    model = net.extract(arch)
    assert model.blocks[4].reused.value.weight is model.blocks[2].reused.value.weight
    assert model.blocks[3].norm2.weight is model.blocks[0].norm2.weight
    assert torch.equal(net(tokens, mask, arch), model(tokens, mask))
    expected = by_hand(model, tokens, mask, MIXED, causal=False)
    torch.testing.assert_close(model.forward_features(tokens, mask)[mask.bool()], expected[mask.bool()])
    apart = with_mixers(family.space, MIXED, distinct_layers=5)
    assert family.parameters(apart) - family.parameters(arch) > 0
    assert family.macs(apart) == family.macs(arch)


def test_mixers_are_exported(tmp_path):
    family = FAMILIES["text_encoder"](num_classes=3, mixers=MIXERS, **OPTIONS)
    model = stirred(family.supernet()).extract(with_mixers(family.space, MIXED))
    example, path = family.example(family.space.largest), tmp_path / "model.onnx"
    export_onnx(model, path, example, names=family.task, dynamic_batch=True)
    with torch.no_grad():
        torch.testing.assert_close(onnx_runner(path)(*texts()), model(*texts()), atol=1e-5, rtol=0)


@pytest.mark.exhaustive
def test_a_causal_average_is_exported(tmp_path):
    family = FAMILIES["text_decoder"](mixers=MIXERS, **OPTIONS)
    model = stirred(family.supernet()).extract(with_mixers(family.space, MIXED))
    example, path = family.example(family.space.largest), tmp_path / "model.onnx"
    export_onnx(model, path, example, names=family.task, dynamic_batch=True)
    with torch.no_grad():
        torch.testing.assert_close(onnx_runner(path)(texts()[0]), model(texts()[0]), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("mixers", "message"),
    [
        (("own", "convolution"), "mixers are of none, average, reused, own, not 'convolution'"),
        (("none", "reused"), "attention that is reused is some layer's own"),
        ((), "mixers are at least one"),
    ],
)
def test_mixers_that_make_no_network_are_refused(mixers, message):
    with pytest.raises(ValueError, match=message):
        FAMILIES["text_encoder"](mixers=mixers)
