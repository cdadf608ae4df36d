import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from supernet.artifacts.export import export_onnx, onnx_runner
from supernet.families import FAMILIES
from supernet.families.text.decoder import generate
from supernet.tasks import NextToken
from supernet.training.data.tensors import TensorData
from supernet.training.execution import Execution
from supernet.training.step import TrainConfig
from supernet.training.train import train

VOCABULARY, LENGTH, DIM, HEADS, DEPTH = 40, 10, 128, 2, 2
SMALL = {"vocabulary": VOCABULARY, "length": LENGTH, "embed_dim": [16, 32], "num_heads": [1, 2], "head_dim": 8}


def gpt2_state() -> dict[str, torch.Tensor]:
    """Random weights of a small GPT-2, by Hugging Face's names."""
    shapes = {"wte.weight": (VOCABULARY, DIM), "wpe.weight": (16, DIM), "ln_f.weight": (DIM,), "ln_f.bias": (DIM,)}
    for layer in (f"h.{index}" for index in range(DEPTH)):
        matrices = {"attn.c_attn": (DIM, 3 * DIM), "attn.c_proj": (DIM, DIM)}
        for name, shape in (matrices | {"mlp.c_fc": (DIM, 256), "mlp.c_proj": (256, DIM)}).items():
            shapes |= {f"{layer}.{name}.weight": shape, f"{layer}.{name}.bias": shape[1:]}
        shapes |= {f"{layer}.ln_{i}.{kind}": (DIM,) for i in (1, 2) for kind in ("weight", "bias")}
    draw = torch.Generator().manual_seed(0)
    return {f"transformer.{name}": 0.2 * torch.randn(shape, generator=draw) for name, shape in shapes.items()}


def gpt2(state: dict[str, torch.Tensor], tokens: torch.Tensor) -> torch.Tensor:
    """Logits of the GPT-2 with these weights, by its formulas."""
    state = {name.removeprefix("transformer."): tensor for name, tensor in state.items()}

    def linear(name, x):
        return x @ state[f"{name}.weight"] + state[f"{name}.bias"]

    def norm(name, x):
        x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
        return x * state[f"{name}.weight"] + state[f"{name}.bias"]

    length = tokens.shape[1]
    x = state["wte.weight"][tokens] + state["wpe.weight"][:length]
    before = torch.full((length, length), -1e9).triu(1)
    for layer in (f"h.{index}" for index in range(DEPTH)):
        parts = linear(f"{layer}.attn.c_attn", norm(f"{layer}.ln_1", x)).split(DIM, -1)
        query, key, value = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in parts)
        weights = (query @ key.mT / math.sqrt(DIM // HEADS) + before).softmax(-1)
        x = x + linear(f"{layer}.attn.c_proj", (weights @ value).transpose(1, 2).flatten(-2))
        hidden = linear(f"{layer}.mlp.c_fc", norm(f"{layer}.ln_2", x))
        hidden = 0.5 * hidden * (1 + torch.tanh(math.sqrt(2 / math.pi) * (hidden + 0.044715 * hidden**3)))
        x = x + linear(f"{layer}.mlp.c_proj", hidden)
    return norm("ln_f", x) @ state["wte.weight"].T


def texts(count: int = 3) -> torch.Tensor:
    return torch.randint(VOCABULARY, (count, LENGTH), generator=torch.Generator().manual_seed(1))


def test_the_largest_subnet_computes_what_the_gpt2_does(tmp_path):
    torch.save(gpt2_state(), tmp_path / "gpt2.bin")
    family = FAMILIES["text_decoder"](length=LENGTH, pretrained=str(tmp_path / "gpt2.bin"), importance=None)
    net = family.supernet().eval()
    torch.testing.assert_close(
        net(texts(), family.space.largest), gpt2(gpt2_state(), texts()), rtol=0, atol=1e-4
    )  # logits of some hundreds
    with pytest.raises(ValueError, match="a text of 17 tokens is longer than the 16 of this GPT-2"):
        FAMILIES["text_decoder"](length=17, pretrained=str(tmp_path / "gpt2.bin")).supernet()


def test_transformers_gives_the_same_and_writes_the_same(tmp_path):
    transformers = pytest.importorskip("transformers", reason="the package transformers is not installed")
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY, n_positions=16, n_embd=DIM, n_layer=DEPTH, n_head=HEADS, bos_token_id=0,
        eos_token_id=None,
    )  # fmt: skip
    torch.manual_seed(0)
    theirs = transformers.GPT2LMHeadModel(config).eval()
    for parameter in theirs.parameters():  # biases and norms that do something
        nn.init.normal_(parameter, mean=float(parameter.mean() > 0.5), std=0.1)
    theirs.save_pretrained(tmp_path)
    family = FAMILIES["text_decoder"](length=16, pretrained=str(tmp_path), importance=None)
    model = family.supernet().eval().extract(family.space.largest)
    with torch.no_grad():
        torch.testing.assert_close(model(texts()), theirs(texts()).logits, rtol=0, atol=1e-5)
    written = theirs.generate(
        texts(), attention_mask=torch.ones_like(texts()), max_new_tokens=6, do_sample=False, pad_token_id=0
    )
    assert torch.equal(generate(model, texts(), 6), written)


def test_what_comes_later_changes_nothing():
    family = FAMILIES["text_decoder"](**SMALL)
    net = family.supernet().eval()
    tokens = texts()
    later = torch.cat([tokens[:, :6], tokens.flip(1)[:, :4]], 1)
    for arch in (family.space.smallest, family.space.largest):
        logits = net(tokens, arch)
        torch.testing.assert_close(net(later, arch)[:, :6], logits[:, :6])
        assert torch.equal(net.extract(arch)(tokens), logits)


def test_the_head_is_the_table_of_tokens_in_every_subnet(numpy_generator, tmp_path):
    family = FAMILIES["text_decoder"](**SMALL)
    net = family.supernet().eval()
    for arch in (family.space.smallest, family.space.largest, family.space.sample(numpy_generator)):
        model = net.extract(arch)
        assert model.head.weight is model.embeddings.tokens.weight
        assert sum(p.numel() for p in model.parameters()) == family.parameters(arch)
        assert family.macs(arch) == family._count_macs(arch)
    export_onnx(model, tmp_path / "model.onnx", family.example(arch), names=family.task, dynamic_batch=True)
    with torch.no_grad():
        torch.testing.assert_close(onnx_runner(tmp_path / "model.onnx")(texts()), model(texts()), atol=1e-5, rtol=0)


def test_the_task_counts_by_hand():
    tokens = torch.tensor([[1, 2, 0], [2, 1, 2]])
    logits = torch.randn(2, 3, 3, generator=torch.Generator().manual_seed(0))
    chances = logits.softmax(-1)
    pairs = [(0, 0, 2), (1, 0, 1), (1, 1, 2)]  # text, position, what follows; no padding
    loss = -sum(math.log(chances[index]) for index in pairs) / 3
    task = NextToken(padding=0)
    assert task.loss(logits, tokens).item() == pytest.approx(loss)
    right = sum(int(logits[text, position].argmax()) == token for text, position, token in pairs)
    found = task.metrics([logits[:1], logits[1:]], [tokens[:1], tokens[1:]])
    assert found == pytest.approx({"accuracy": right / 3, "negative_perplexity": -math.exp(loss)})
    assert task.distil(logits, logits, tokens).item() == pytest.approx(0, abs=1e-6)
    all_pairs = F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    assert NextToken().loss(logits, tokens).item() == pytest.approx(all_pairs.item())


def test_subnets_learn_to_count(tmp_path):
    start = torch.randint(5, (256, 1), generator=torch.Generator().manual_seed(0))
    tokens = (start + torch.arange(LENGTH)) % 5
    family = FAMILIES["text_decoder"](**SMALL | {"vocabulary": 5, "depth": [1, 2]})
    config = TrainConfig(epochs=5, batch_size=32, opt="adamw", lr=0.01, scale_lr=False, warmup_epochs=1)
    data = TensorData(tokens, tokens[:32], tokens[:32])
    net = train(family, family.supernet(), data, config, tmp_path, Execution(eval_epochs=0)).eval()
    for arch in (family.space.smallest, family.space.largest):
        written = generate(net.extract(arch), tokens[:4, :3], LENGTH)  # further than it sees
        assert torch.equal(written, (start[:4] + torch.arange(LENGTH + 3)) % 5)


def test_what_is_drawn_follows_from_the_generator_and_the_logits():
    model = FAMILIES["text_decoder"](**SMALL).supernet().eval()
    model = model.extract(model.space.smallest)
    start = texts(1).expand(2000, LENGTH)
    first, again = (generate(model, start, 1, 0.01, torch.Generator().manual_seed(3))[:, -1] for _ in range(2))
    assert torch.equal(first, again)
    expected = (model(texts(1))[0, -1] / 0.01).softmax(-1).detach().numpy()
    found = np.bincount(first.numpy(), minlength=VOCABULARY) / len(first)
    assert np.abs(found - expected).max() < 4 * np.sqrt(0.25 / len(first))
