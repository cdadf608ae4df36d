import pytest
import torch
from torch.nn import functional as F

from supernet.channels.importance import order_channels
from supernet.families import FAMILIES
from supernet.families.text.rewiring import text_channels
from supernet.families.vision_transformer import rewire

SIZES = {
    "vocabulary": 20, "length": 5, "embed_dim": [4, 8], "depth": [2], "num_heads": [1, 3], "mlp_ratio": [1, 2],
    "head_dim": 3,
}  # fmt: skip
NETWORKS = {
    "mean": ("text_encoder", {"num_classes": 3}),
    "pooler": ("text_encoder", {"num_classes": 3, "pool": "first"}),
    "factorised": ("text_encoder", {"num_classes": 3, "embedding_size": 6}),
    "decoder": ("text_decoder", {}),
}


def made(name):
    space, options = NETWORKS[name]
    family = FAMILIES[space](**SIZES, **options)
    net = family.supernet().eval()
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.4 * torch.randn(parameter.shape, generator=draw))
    return family, net, torch.randint(20, (6, 5), generator=draw)


@pytest.mark.parametrize("name", NETWORKS)
def test_any_order_computes_the_same_and_puts_the_highest_first(name):
    family, net, tokens = made(name)
    largest = net.extract(family.space.largest)
    with torch.no_grad():
        expected = largest(tokens)
        channels = text_channels(largest)
        vectors = {group.name: next(m for m in group.members if m.tensor.endswith("bias")) for group in channels}
        before = {name: largest.get_parameter(member.tensor).clone() for name, member in vectors.items()}
        scores = {group.name: torch.arange(float(group.size)) for group in channels}  # the last one matters most
        order_channels(largest, channels, scores)
        torch.testing.assert_close(largest(tokens), expected, rtol=0, atol=1e-5)
    for group in channels:  # all are the other way round
        tensor, _, blocks = vectors[group.name]
        parts = before[group.name].unflatten(0, (blocks, group.size, -1))
        assert torch.equal(largest.get_parameter(tensor), parts.flip(1).flatten())
    touched = {member.tensor for group in channels for member in group.members}
    untouched = {n for n, p in largest.named_parameters()} - touched
    assert untouched <= {"head.bias", *(f"embeddings.{part}" for part in ("tokens.weight", "positions"))} | {
        "embeddings.norm.weight", "embeddings.norm.bias",
    }  # fmt: skip
    assert name == "factorised" or untouched <= {"head.bias"}


def test_a_supernet_is_ordered_by_what_its_loss_would_lose():
    family, net, tokens = made("mean")
    labels = torch.arange(6) % 3
    with torch.no_grad():
        expected = net(tokens, arch=family.space.largest)
        heads = net.state_dict()["blocks.0.attn.proj.weight"].clone()
    gates = torch.ones(3, requires_grad=True)  # on the heads of the first block
    model = net.extract(family.space.largest)
    model.blocks[0].attn.proj.register_forward_pre_hook(lambda _, inputs: (inputs[0] * gates.repeat_interleave(3),))
    F.cross_entropy(model(tokens), labels).backward()
    order = gates.grad.abs().argsort(descending=True)
    rewire(net, [labels], lambda model, batch: F.cross_entropy(model(tokens), batch), text_channels)
    found = net.state_dict()["blocks.0.attn.proj.weight"].unflatten(1, (3, 3))
    sums = heads.unflatten(1, (3, 3)).sum((0, 2))
    torch.testing.assert_close(found.sum((0, 2)), sums[order])
    torch.testing.assert_close(net(tokens, arch=family.space.largest), expected, rtol=0, atol=1e-5)


def test_channels_of_other_mixers_are_not_known():
    family = FAMILIES["text_encoder"](num_classes=3, mixers=["none", "own"], **SIZES)
    model = family.build(family.space.smallest)
    with pytest.raises(ValueError, match="blocks with attention of their own alone, not 'none'"):
        text_channels(model)
