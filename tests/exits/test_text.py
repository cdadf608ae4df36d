"""Exits on a text encoder, whose texts are of different lengths."""

from itertools import product

import numpy as np
import pytest
import torch

from exits import (
    Chain,
    Confidence,
    ExitTask,
    exits_family,
    exits_taken,
    export_chain,
    measure_parts,
    parts_of,
    with_exits,
)
from supernet.families import FAMILIES

SIZES = {"vocabulary": 20, "length": 6, "embed_dim": [8, 16], "depth": [1, 3], "num_heads": [1], "head_dim": 4}


def family():
    return FAMILIES["text_encoder"](num_classes=3, **SIZES)


def texts():
    tokens = torch.randint(1, 20, (4, 6), generator=torch.Generator().manual_seed(0))
    return tokens, (torch.arange(6)[None] < torch.tensor([6, 3, 1, 5])[:, None]).long()


@pytest.fixture
def network():
    own = family()
    torch.manual_seed(0)
    model = own.build(own.space.largest)
    found = with_exits(model, ["blocks.0", "blocks.1"], 3, own.example(own.space.largest)).eval()
    for head in found.heads:
        torch.nn.init.normal_(head.linear.weight)
    return found


@torch.no_grad()
def test_what_fills_up_a_text_changes_no_exit(network):
    tokens, mask = texts()
    logits = network(tokens, mask)
    assert logits.shape == (4, 3, 3)
    assert torch.equal(logits[:, -1], network.model(tokens, mask))
    other = torch.where(mask.bool(), tokens, (tokens + 3) % 20)
    torch.testing.assert_close(network(other, mask), logits)
    torch.testing.assert_close(network(tokens[1:2, :3]), logits[1:2])
    x = network.model.embeddings(tokens[1:2, :3])  # by hand: a text of its own length
    first = network.model.blocks[0](x).mean(1)
    torch.testing.assert_close(network.heads[0].linear(network.heads[0].norm(first)), logits[1:2, 0])


@torch.no_grad()
def test_parts_take_a_text_as_long_as_it_is(network):
    tokens = texts()[0][:1]
    logits = network(tokens)
    for length in (6, 4):
        carried = tokens[:, :length]
        expected = network(carried)[0]
        *parts, last = parts_of(network)
        for exit, part in enumerate(parts):
            own, carried = part(carried)
            torch.testing.assert_close(own[0], expected[exit])
        torch.testing.assert_close(last(carried)[0], expected[-1])
    assert logits.shape == (1, 3, 3)
    found = measure_parts(network, (tokens,), rounds=1, runs=1)
    assert len(found.bodies_ms) == 3


@torch.no_grad()
def test_a_chain_of_files_takes_texts_of_any_length(network, tmp_path):
    own_lengths = [text[None, :length] for text, length in product(texts()[0], (6, 4, 1))]
    first = torch.cat([network(own)[:, 0].softmax(-1) for own in own_lengths]).amax(1)
    policy = Confidence(first.sort().values[5:7].mean().item())  # between the two in the middle
    export_chain(network, tmp_path, own_lengths[:1], policy)
    chain, left = Chain(tmp_path), set()
    for own in own_lengths:
        logits = network(own).numpy()
        found = chain(own.numpy())
        (expected,) = exits_taken(policy, logits)
        assert found.exit == expected
        np.testing.assert_allclose(found.logits, logits[0, expected], rtol=1e-4, atol=1e-5)
        left.add(found.exit)
    assert len(left) > 1


def test_all_subnets_of_a_text_space_have_exits():
    with_them = exits_family(family(), ["blocks.0", "blocks.1"])
    assert isinstance(with_them.task, ExitTask)
    assert with_them.task.input_names == ("tokens", "mask")
    net = with_them.supernet().eval()
    tokens, mask = texts()
    for arch, exits in ((with_them.space.largest, 3), (with_them.space.smallest, 2)):
        model = net.extract(arch)
        assert torch.equal(net(tokens, mask, arch), model(tokens, mask))
        assert model(tokens, mask).shape == (4, exits, 3)
    loss = with_them.task.loss(net(tokens, mask, with_them.space.largest), (tokens, torch.tensor([0, 1, 2, 0])))
    assert np.isfinite(loss.item())
