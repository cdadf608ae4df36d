import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from supernet.families import FAMILIES
from supernet.families.text.bert import encoder_weights, read_bert

VOCABULARY, LENGTH, DIM, HEADS, HIDDEN, DEPTH, CLASSES = 50, 12, 128, 2, 256, 2, 3


def bert_state(seed: int = 0) -> dict[str, torch.Tensor]:
    """Random weights of a small BERT with a classifier, by Hugging Face's names."""
    shapes = {
        "bert.embeddings.word_embeddings.weight": (VOCABULARY, DIM),
        "bert.embeddings.position_embeddings.weight": (16, DIM),
        "bert.embeddings.token_type_embeddings.weight": (2, DIM),
        "bert.pooler.dense.weight": (DIM, DIM),
        "classifier.weight": (CLASSES, DIM),
    }
    norms = ["bert.embeddings.LayerNorm"]
    for layer in (f"bert.encoder.layer.{index}" for index in range(DEPTH)):
        attention = (f"{layer}.attention.{part}.weight" for part in ("self.query", "self.key", "self.value"))
        shapes |= dict.fromkeys([*attention, f"{layer}.attention.output.dense.weight"], (DIM, DIM))
        shapes |= {f"{layer}.intermediate.dense.weight": (HIDDEN, DIM), f"{layer}.output.dense.weight": (DIM, HIDDEN)}
        norms += [f"{layer}.attention.output.LayerNorm", f"{layer}.output.LayerNorm"]
    draw = torch.Generator().manual_seed(seed)
    state = {name: 0.2 * torch.randn(shape, generator=draw) for name, shape in shapes.items()}
    for name, shape in shapes.items():
        if "embeddings" not in name:
            state[name.replace("weight", "bias")] = 0.2 * torch.randn(shape[0], generator=draw)
    for norm in norms:
        state[f"{norm}.weight"] = 1 + 0.2 * torch.randn(DIM, generator=draw)
        state[f"{norm}.bias"] = 0.2 * torch.randn(DIM, generator=draw)
    return state


def bert(state: dict[str, torch.Tensor], tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Logits of the BERT with these weights, by the formulas of the paper."""

    def linear(name, x):
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    def norm(name, x):
        x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + 1e-12).sqrt()
        return x * state[f"{name}.weight"] + state[f"{name}.bias"]

    def heads(x):
        return x.unflatten(-1, (HEADS, DIM // HEADS)).transpose(1, 2)

    tables = {kind: state[f"bert.embeddings.{kind}_embeddings.weight"] for kind in ("word", "position", "token_type")}
    x = tables["word"][tokens] + tables["position"][: tokens.shape[1]] + tables["token_type"][0]
    x = norm("bert.embeddings.LayerNorm", x)
    for layer in (f"bert.encoder.layer.{index}" for index in range(DEPTH)):
        query, key, value = (heads(linear(f"{layer}.attention.self.{part}", x)) for part in ("query", "key", "value"))
        scores = query @ key.mT / math.sqrt(DIM // HEADS) - 1e9 * (1 - mask[:, None, None].float())
        attended = (scores.softmax(-1) @ value).transpose(1, 2).flatten(-2)
        x = norm(f"{layer}.attention.output.LayerNorm", x + linear(f"{layer}.attention.output.dense", attended))
        hidden = F.gelu(linear(f"{layer}.intermediate.dense", x))
        x = norm(f"{layer}.output.LayerNorm", x + linear(f"{layer}.output.dense", hidden))
    return linear("classifier", linear("bert.pooler.dense", x[:, 0]).tanh())


def texts(count: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    tokens = torch.randint(VOCABULARY, (count, LENGTH), generator=torch.Generator().manual_seed(1))
    return tokens, (torch.arange(LENGTH)[None] < torch.tensor([12, 7, 1, 9])[:count, None]).long()


@pytest.fixture
def saved(tmp_path):
    torch.save(bert_state(), tmp_path / "bert.bin")
    return str(tmp_path / "bert.bin")


def test_the_largest_subnet_computes_what_the_bert_does(saved):
    family = FAMILIES["text_encoder"](num_classes=CLASSES, length=LENGTH, pretrained=saved, importance=None)
    net = family.supernet().eval()
    assert family.space.largest["embed_dim"] == DIM
    tokens, mask = texts()
    torch.testing.assert_close(
        net(tokens, mask, family.space.largest), bert(bert_state(), tokens, mask), rtol=0, atol=1e-5
    )


def test_what_matters_most_comes_first_and_the_largest_computes_the_same(saved):
    tokens, mask = texts()
    options = {"num_classes": CLASSES, "length": LENGTH, "pretrained": saved}
    families = [FAMILIES["text_encoder"](**options, importance=importance) for importance in (None, "l1")]
    as_it_is, ordered = (family.supernet().extract(family.space.largest).double().eval() for family in families)
    torch.testing.assert_close(ordered(tokens, mask), as_it_is(tokens, mask), rtol=0, atol=1e-10)
    neurons = ordered.blocks[1].mlp.fc1.weight.abs().sum(1)
    assert torch.equal(neurons, neurons.sort(descending=True).values)
    heads = ordered.blocks[0].attn.qkv.weight.abs().sum(1).unflatten(0, (3, HEADS, -1)).sum((0, 2))
    assert torch.equal(heads, heads.sort(descending=True).values)


def test_a_classifier_for_other_classes_starts_anew(saved):
    family = FAMILIES["text_encoder"](num_classes=5, length=LENGTH, pretrained=saved)
    first, again, other = (family.supernet(seed).state_dict()["head.weight"] for seed in (0, 0, 1))
    assert first.shape == (5, DIM)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_names_of_old_files_are_known(tmp_path, saved):
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
        for name, tensor in bert_state().items()
    }
    torch.save(old, tmp_path / "old.bin")
    found, expected = (encoder_weights(read_bert(path), LENGTH) for path in (tmp_path / "old.bin", saved))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"length": 17}, "a text of 17 tokens is longer than the 16 positions of this BERT"),
        ({"embed_dim": [64, 96]}, "is \\[12, 128\\], not \\[12, 96\\]"),
        ({"depth": [3]}, "tensors are missing, the first 'blocks.2.attn.qkv.weight'"),
    ],
)
def test_weights_that_do_not_fit_are_refused(saved, change, message):
    options = {"num_classes": CLASSES, "length": LENGTH, "pretrained": saved} | change
    with pytest.raises(ValueError, match=message):
        FAMILIES["text_encoder"](**options).supernet()


def test_other_weights_are_refused(tmp_path):
    torch.save({"conv.weight": torch.zeros(1)}, tmp_path / "other.bin")
    with pytest.raises(ValueError, match=r"is no BERT of Hugging Face's: it has no tensor 'embeddings\.word_"):
        FAMILIES["text_encoder"](pretrained=str(tmp_path / "other.bin"))


def test_transformers_gives_the_same(tmp_path):
    transformers = pytest.importorskip("transformers", reason="the package transformers is not installed")
    config = transformers.BertConfig(
        vocab_size=VOCABULARY, hidden_size=DIM, num_hidden_layers=DEPTH, num_attention_heads=HEADS,
        intermediate_size=HIDDEN, max_position_embeddings=16, num_labels=CLASSES,
    )  # fmt: skip
    torch.manual_seed(0)
    theirs = transformers.BertForSequenceClassification(config).eval()
    for parameter in theirs.parameters():  # biases and norms that do something
        nn.init.normal_(parameter, mean=float(parameter.mean() > 0.5), std=0.1)
    theirs.save_pretrained(tmp_path)
    options = {"num_classes": CLASSES, "length": LENGTH, "pretrained": str(tmp_path), "importance": None}
    family = FAMILIES["text_encoder"](**options)
    tokens, mask = texts()
    model = family.supernet().eval().extract(family.space.largest)
    with torch.no_grad():
        expected = theirs(input_ids=tokens, attention_mask=mask, output_hidden_states=True)
        features = model.forward_features(tokens, mask)
        torch.testing.assert_close(model(tokens, mask), expected.logits, rtol=0, atol=1e-5)
    seen = mask.bool()
    torch.testing.assert_close(features[seen], expected.hidden_states[-1][seen], rtol=0, atol=1e-5)


@pytest.mark.parametrize("pool", ["mean", "first"])
@pytest.mark.parametrize("embedding_size", [None, 16])
def test_what_fills_up_a_text_changes_nothing(pool, embedding_size):
    options = {"vocabulary": VOCABULARY, "length": LENGTH, "pool": pool, "embedding_size": embedding_size}
    family = FAMILIES["text_encoder"](num_classes=CLASSES, **options)
    net = family.supernet().eval()
    tokens, mask = texts()
    other = torch.where(mask.bool(), tokens, (tokens + 7) % VOCABULARY)
    for arch in (family.space.smallest, family.space.largest):
        logits = net(tokens, mask, arch)
        torch.testing.assert_close(net(other, mask, arch), logits)
        assert (net(other, torch.ones_like(mask), arch) - logits)[1:].abs().min() > 0
        torch.testing.assert_close(net(tokens[1:2, :7], arch=arch), logits[1:2])  # without what fills it up


def test_factorised_embeddings_are_counted():
    options = {"vocabulary": VOCABULARY, "length": LENGTH, "embedding_size": 16, "pool": "first"}
    family = FAMILIES["text_encoder"](num_classes=CLASSES, **options)
    for arch in (family.space.smallest, family.space.largest):
        model = family.build(arch)
        assert sum(p.numel() for p in model.parameters()) == family.parameters(arch)
        assert model.embeddings.tokens.weight.shape == (VOCABULARY, 16)
        assert family.macs(arch) == family._count_macs(arch)


@pytest.mark.parametrize("embedding_size", [None, 16, 256])
def test_blocks_begin_with_vectors_as_large_as_normalised_ones(embedding_size):
    """Of half the size, an encoder of factorised embeddings hardly learns by the sandwich rule."""
    options = {"vocabulary": VOCABULARY, "length": LENGTH, "embedding_size": embedding_size}
    family = FAMILIES["text_encoder"](num_classes=CLASSES, **options)
    net = family.supernet()
    for arch in (family.space.smallest, family.space.largest):
        made = net.extract(arch).embeddings(texts()[0])
        assert made.square().mean().sqrt().item() == pytest.approx(1, abs=0.15)


def test_a_text_of_no_tokens_is_no_error():
    family = FAMILIES["text_encoder"](num_classes=CLASSES, vocabulary=VOCABULARY, length=LENGTH)
    logits = family.build(family.space.smallest).eval()(
        torch.zeros(1, LENGTH, dtype=torch.int64), torch.zeros(1, LENGTH)
    )
    assert logits.isfinite().all()


def test_layers_may_have_one_set_of_weights():
    """As ALBERT's: a block that runs several times, with parameters once and gradients that add up."""
    options = {"vocabulary": VOCABULARY, "length": LENGTH, "depth": [2, 4], "distinct_layers": [1, 2, 4]}
    family = FAMILIES["text_encoder"](num_classes=CLASSES, **options)
    net = family.supernet().eval()
    tokens, mask = texts()
    largest = dict(family.space.largest)
    found = {}
    for count, sources in ((1, [0, 0, 0, 0]), (2, [0, 0, 2, 2]), (4, [0, 1, 2, 3])):
        arch = family.space.validate(largest | {"distinct_layers": count})
        model = net.extract(arch)
        logits = model(tokens, mask)
        assert torch.equal(net(tokens, mask, arch), logits)
        x = model.embeddings(tokens)
        for source in sources:
            x = model.blocks[source](x, mask[:, None, None].bool())
        assert torch.equal(model.forward_head(x, mask), logits)
        found[count] = family.parameters(arch)
        assert family.macs(arch) == family.macs(family.space.largest)
    layer = (found[4] - found[1]) // 3
    assert layer > 0
    assert found[2] == found[1] + layer
    one = family.space.validate(largest | {"distinct_layers": 1})
    model = net.extract(one)
    model(tokens, mask).square().sum().backward()
    net(tokens, mask, one).square().sum().backward()
    gradients = {name: parameter.grad for name, parameter in net.named_parameters()}
    torch.testing.assert_close(gradients["blocks.0.mlp.fc1.weight"], model.blocks[3].mlp.fc1.weight.grad)
    assert gradients["blocks.1.mlp.fc1.weight"] is None


def test_attention_alone_may_be_shared():
    options = {"vocabulary": VOCABULARY, "length": LENGTH, "distinct_layers": [1, 3], "shared": ["attn"]}
    family = FAMILIES["text_encoder"](num_classes=CLASSES, **options)
    model = family.supernet().extract(family.space.validate(dict(family.space.largest) | {"distinct_layers": 1}))
    assert model.blocks[2].attn.qkv.weight is model.blocks[0].attn.qkv.weight
    assert model.blocks[2].mlp.fc1.weight is not model.blocks[0].mlp.fc1.weight
    with pytest.raises(ValueError, match="distinct_layers end in the most blocks, 3, not in"):
        FAMILIES["text_encoder"](distinct_layers=[1, 2])
    with pytest.raises(ValueError, match="shared are parts of blocks, attn, mlp, norm, not 'head'"):
        FAMILIES["text_encoder"](distinct_layers=[1, 3], shared=["head"])
