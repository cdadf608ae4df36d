import pytest
import timm
import torch
from torch import nn

from compress.kinds import Part, kind_sensitivities, kinds_of, rounded
from compress.sensitivity import divergence
from compress.transforms import Bits
from supernet.families import FAMILIES
from supernet.skeleton import build_skeleton
from supernet.tasks import Classification
from supernet.tasks.text import TextClassification

SMALL = {
    "vocabulary": 20,
    "length": 6,
    "embed_dim": [16],
    "depth": [2],
    "num_heads": [2],
    "mlp_ratio": [1],
    "head_dim": 4,
}


def encoder(seed=0):
    family = FAMILIES["text_encoder"](num_classes=3, **SMALL)
    torch.manual_seed(seed)
    model = family.build(family.space.largest).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.5 * torch.randn(parameter.shape))
    return model


def test_weights_of_a_text_encoder_are_of_one_kind_each():
    model = encoder()
    kinds = kinds_of(model)
    qkv = [f"blocks.{b}.attn.qkv.weight" for b in range(2)]
    assert kinds["key"] == [Part(name, 1, 3) for name in qkv]
    assert kinds["output"] == [Part(f"blocks.{b}.attn.proj.weight") for b in range(2)]
    assert kinds["MLP"] == [Part(f"blocks.{b}.mlp.{layer}.weight") for b in range(2) for layer in ("fc1", "fc2")]
    assert kinds["embedding"] == [Part("embeddings.positions"), Part("embeddings.tokens.weight")]
    assert kinds["head"] == [Part("head.weight")]
    weights = [part.tensor for parts in kinds.values() for part in parts]
    left = {name for name, _ in model.named_parameters()} - set(weights)
    assert all(name.endswith("bias") for name in left)
    assert len(weights) == len(set(weights)) + 2 * 2  # of each fused weight three parts


def test_a_vision_transformer_has_patches_among_its_embeddings():
    model = build_skeleton(lambda _: timm.create_model("vit_tiny_patch16_224", depth=1, num_classes=5), None)
    kinds = kinds_of(model)
    assert {part.tensor for part in kinds["embedding"]} == {"cls_token", "pos_embed", "patch_embed.proj.weight"}
    assert kinds["head"] == [Part("head.weight")]
    assert set(kinds) == {"query", "key", "value", "output", "MLP", "norm", "embedding", "head"}


def test_attention_of_torch_is_known():
    model = nn.Sequential(nn.MultiheadAttention(8, 2), nn.Linear(8, 2))
    kinds = kinds_of(model)
    assert kinds["value"] == [Part("0.in_proj_weight", 2, 3)]
    assert kinds["output"] == [Part("0.out_proj.weight")]


def test_a_tied_table_is_rounded_under_both_names():
    family = FAMILIES["text_decoder"](**SMALL)
    model = family.build(family.space.largest)
    kinds = kinds_of(model)
    assert "head" not in kinds
    few = rounded(model, kinds["embedding"], 2)
    assert few.head.weight is few.embeddings.tokens.weight
    assert torch.equal(few.head.weight, Bits(2)(model.head.weight))
    assert not torch.equal(few.head.weight, model.head.weight)


def test_one_kind_is_rounded_and_all_else_stays():
    model, task = encoder(), TextClassification(3)
    draw = torch.Generator().manual_seed(1)
    batch = torch.randint(1, 20, (40, 6), generator=draw), torch.randint(3, (40,), generator=draw)
    found = {(own.kind, own.bits): own for own in kind_sensitivities(model, [batch], task, (8, 2))}
    by_hand = encoder()
    with torch.no_grad():
        for block in by_hand.blocks:
            block.attn.qkv.weight[16 // 2 : 16] = Bits(2)(block.attn.qkv.weight[16 // 2 : 16])  # keys of 2 heads of 4
        logits, few = (own(*task.inputs(batch, None)) for own in (model, by_hand))
    assert found["key", 2].divergence == pytest.approx(divergence(logits, few), rel=1e-6)
    lost = 100 * ((logits.argmax(1) == batch[1]).double() - (few.argmax(1) == batch[1]).double())
    assert found["key", 2].points == pytest.approx(lost.mean().item())
    assert found["key", 2].standard_error == pytest.approx((lost.std() / 40**0.5).item())
    assert found["key", 2].weights == 2 * 8 * 16
    assert all(found[kind, 8].divergence < found[kind, 2].divergence for kind, _ in found)


def test_images_are_judged_as_well():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(16, 2)).eval()
    batch = torch.randn(6, 1, 4, 4), torch.zeros(6, dtype=torch.int64)
    found = [own.kind for own in kind_sensitivities(model, [batch], Classification(2), (4,))]
    assert found == ["convolution", "head"]
