import pytest
import torch

from compress.tickets import channel_masks
from compress.tickets.masks import masked
from compress.transforms import fold
from supernet.channels.importance import order_channels
from supernet.families import FAMILIES
from supernet.families.text.rewiring import text_channels

SIZES = {
    "vocabulary": 20,
    "length": 5,
    "embed_dim": [8],
    "depth": [2],
    "num_heads": [4],
    "mlp_ratio": [2],
    "head_dim": 3,
}


@pytest.fixture
def model():
    family = FAMILIES["text_encoder"](num_classes=3, **SIZES)
    torch.manual_seed(0)
    made = family.build(family.space.largest).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape))
    return made


def test_masked_heads_are_those_of_a_network_without_them(model):
    heads = [group for group in text_channels(model) if group.name.endswith("num_heads")]
    scores = {"blocks.0.num_heads": torch.tensor([3.0, 9, 1, 8]), "blocks.1.num_heads": torch.tensor([7.0, 2, 6, 0])}
    masks = channel_masks(model, heads, scores, 0.5)
    assert masks.keys() == {f"blocks.{b}.attn.{layer}.weight" for b in range(2) for layer in ("qkv", "proj")}
    gone = fold(masked(fold(model), masks))
    tokens = torch.randint(20, (2, 5), generator=torch.Generator().manual_seed(1))
    smaller = FAMILIES["text_encoder"](num_classes=3, **SIZES | {"num_heads": [2, 4]})
    order_channels(model, heads, scores)  # the two of each block that are kept come first
    net = smaller.supernet().eval()
    net.load_state_dict(model.state_dict())
    few = {"blocks.0.num_heads": 2, "blocks.1.num_heads": 2}
    with torch.no_grad():
        torch.testing.assert_close(
            net(tokens, arch=smaller.space.validate({**smaller.space.largest, **few})), gone(tokens)
        )


def test_neurons_by_layer_and_channels_without_scores(model):
    neurons = [group for group in text_channels(model) if group.name.endswith("mlp_ratio")]
    scores = {group.name: torch.arange(16.0) * (1 + index) for index, group in enumerate(neurons)}
    masks = channel_masks(model, neurons, scores, 0.25, "layer")
    for block in range(2):
        assert masks[f"blocks.{block}.mlp.fc1.weight"].all(1).tolist() == [False] * 12 + [True] * 4
        assert masks[f"blocks.{block}.mlp.fc2.weight"].all(0).tolist() == [False] * 12 + [True] * 4
    with pytest.raises(ValueError, match=r"the channels 'blocks\.0\.mlp_ratio' have no scores"):
        channel_masks(model, neurons, {}, 0.5)
