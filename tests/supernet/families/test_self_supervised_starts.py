"""Checkpoints as the authors of DINO, MAE, CLIP and MoCo save them, as the start of the largest subnet."""

import re

import pytest
import timm
import torch
from torch.nn import functional as F

from supernet.families import FAMILIES, from_timm

DIM, DEPTH, HEADS = 32, 2, 2
SIZES = {"embed_dim": (16, DIM), "depth": (1, DEPTH), "num_heads": (1, HEADS), "mlp_ratio": (1, 2), "head_dim": 16}
PLAIN, CLIP, DINOV2 = "vit_tiny_patch16_224", "vit_base_patch32_clip_224", "vit_small_patch14_reg4_dinov2"


def network(name: str = PLAIN, size: int = 32, patch: int = 8, **options) -> torch.nn.Module:
    """timm's network of the sizes of the largest subnet, with weights in which every tensor matters."""
    torch.manual_seed(0)
    sizes = {"embed_dim": DIM, "depth": DEPTH, "num_heads": HEADS, "mlp_ratio": 2.0}
    model = timm.create_model(name, img_size=size, patch_size=patch, num_classes=0, **sizes | options)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def write(folder, content) -> str:
    path = str(folder / "weights.pth")
    torch.save(content, path)
    return path


def started(path: str, name: str = PLAIN, size: int = 32, patch: int = 8, num_classes: int = 5, **options):
    """The largest subnet of a family that starts from the file, without its classifier."""
    sizes = SIZES | {"resolution": (size,), "patch_size": (patch,), "num_classes": num_classes}
    family = FAMILIES["vit"](name, **sizes | options, pretrained=path)
    return largest(family)


def largest(family) -> torch.nn.Module:
    """The largest subnet with the weights that the supernet starts from, without its classifier."""
    model = family.build(family.space.largest).eval()
    model.load_state_dict(family.weights())
    model.reset_classifier(0)
    return model


def images(size: int = 32) -> torch.Tensor:
    return torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(1))


def same(found: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-5) -> None:
    """Features [N, D], of which the largest subnet has the channels in another order."""
    found, expected = (tensor.sort(dim=1).values for tensor in (found, expected))
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def prefixed(prefix: str, tensors) -> dict[str, torch.Tensor]:
    return {f"{prefix}{name}": tensor for name, tensor in tensors.items()}


def head(prefix: str) -> dict[str, torch.Tensor]:
    """A projection that a training without labels ends in."""
    shapes = {"mlp.0.weight": (16, DIM), "mlp.0.bias": (16,), "last_layer.weight_g": (9, 1)}
    return {f"{prefix}{name}": torch.ones(shape) for name, shape in shapes.items()}


def dino(own) -> dict:
    """A checkpoint of DINO's training, in which the teacher is what is used (arXiv 2104.14294, section 5.1)."""
    student = {name: tensor + 1 for name, tensor in own.items()}
    return {
        "student": prefixed("module.backbone.", student) | head("module.head."),
        "teacher": prefixed("backbone.", own) | head("head."),
        "optimizer": {"state": {}, "param_groups": []},
        "epoch": 100,
    }


def mae(own) -> dict:
    """A checkpoint of MAE's pretraining, with the decoder."""
    decoder = {name.replace("blocks", "decoder_blocks"): t for name, t in own.items() if name.startswith("blocks.0.")}
    decoder |= {f"decoder_{name}": torch.ones(1, 17, 8) for name in ("pos_embed",)}
    decoder |= {"decoder_embed.weight": torch.ones(8, DIM), "decoder_pred.bias": torch.ones(9)}
    return {"model": own | {"mask_token": torch.ones(1, 1, 8)} | decoder, "epoch": 800}


@pytest.mark.parametrize(
    "checkpoint",
    [
        lambda own: own,  # DINO's backbone alone, as it is published
        dino,
        mae,
        lambda own: {"state_dict": prefixed("module.model.", own)},
        lambda own: prefixed("visual.trunk.", own) | {"text.proj": torch.ones(3), "logit_scale": torch.ones(())},
        lambda own: prefixed("module.visual.trunk.", own) | {"module.logit_scale": torch.ones(())},
    ],
    ids=["backbone", "dino", "mae", "wrapped", "open_clip", "open_clip_parallel"],
)
def test_a_checkpoint_of_a_vision_transformer_is_read(tmp_path, checkpoint):
    model = network()
    loaded = started(write(tmp_path, checkpoint(model.state_dict())))
    same(loaded(images()), model(images()))


def test_registers_of_dinov2_are_read(tmp_path):
    model = network(DINOV2, init_values=1e-5)
    own = model.state_dict()
    first, rest = torch.randn(1, 1, DIM), own.pop("pos_embed")
    saved = own | {"pos_embed": torch.cat([first, rest], dim=1), "mask_token": torch.ones(1, DIM)}
    saved["register_tokens"], saved["cls_token"] = saved.pop("reg_token"), own["cls_token"] - first
    loaded = started(write(tmp_path, saved), DINOV2)
    same(loaded(images()), model(images()))


def clip(classes: int) -> dict[str, torch.Tensor]:
    """The tensors of a CLIP by the names of its authors, of the text tower a few."""
    generator = torch.Generator().manual_seed(2)
    shapes = {
        "class_embedding": (DIM,),
        "positional_embedding": (17, DIM),
        "proj": (DIM, classes),
        "conv1.weight": (DIM, 3, 8, 8),
    }
    for norm in ("ln_pre", "ln_post"):
        shapes |= {f"{norm}.weight": (DIM,), f"{norm}.bias": (DIM,)}
    for block in (f"transformer.resblocks.{b}." for b in range(DEPTH)):
        for layer, (rows, columns) in {
            "attn.out_proj": (DIM, DIM),
            "mlp.c_fc": (64, DIM),
            "mlp.c_proj": (DIM, 64),
        }.items():
            shapes |= {f"{block}{layer}.weight": (rows, columns), f"{block}{layer}.bias": (rows,)}
        shapes |= {f"{block}attn.in_proj_weight": (3 * DIM, DIM), f"{block}attn.in_proj_bias": (3 * DIM,)}
        for norm in ("ln_1", "ln_2"):
            shapes |= {f"{block}{norm}.weight": (DIM,), f"{block}{norm}.bias": (DIM,)}
    visual = {f"visual.{name}": 0.3 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    return visual | {"positional_embedding": torch.ones(7, 8), "text_projection": torch.ones(8, 4)}


def clip_features(tensors, x: torch.Tensor) -> torch.Tensor:
    """What CLIP's image tower computes before its projection, with GELU (arXiv 2103.00020, section 2.4)."""
    w = {name.removeprefix("visual."): t for name, t in tensors.items() if name.startswith("visual.")}

    def norm(name, x):
        return F.layer_norm(x, (DIM,), w[f"{name}.weight"], w[f"{name}.bias"])

    x = F.conv2d(x, w["conv1.weight"], stride=8).flatten(2).mT
    x = torch.cat([w["class_embedding"].expand(len(x), 1, DIM), x], dim=1) + w["positional_embedding"]
    x = norm("ln_pre", x)
    for block in (f"transformer.resblocks.{b}." for b in range(DEPTH)):
        qkv = F.linear(norm(f"{block}ln_1", x), w[f"{block}attn.in_proj_weight"], w[f"{block}attn.in_proj_bias"])
        q, k, v = qkv.unflatten(2, (3, HEADS, 16)).permute(2, 0, 3, 1, 4)
        mixed = ((q @ k.mT / 4).softmax(-1) @ v).transpose(1, 2).flatten(2)
        x = x + F.linear(mixed, w[f"{block}attn.out_proj.weight"], w[f"{block}attn.out_proj.bias"])
        hidden = F.linear(norm(f"{block}ln_2", x), w[f"{block}mlp.c_fc.weight"], w[f"{block}mlp.c_fc.bias"])
        x = x + F.linear(F.gelu(hidden), w[f"{block}mlp.c_proj.weight"], w[f"{block}mlp.c_proj.bias"])
    return norm("ln_post", x[:, 0])


@pytest.mark.parametrize("prefix", ["", "module."])
def test_clips_image_tower_is_read(tmp_path, prefix):
    """With a projection to another number of classes, which starts anew."""
    tensors = clip(classes=9)
    loaded = started(write(tmp_path, prefixed(prefix, tensors)), CLIP)
    same(loaded(images()), clip_features(tensors, images()), 1e-4)


@pytest.mark.parametrize(("size", "patch"), [(48, 8), (32, 16)], ids=["larger images", "larger patches"])
def test_positions_of_another_grid_are_resized_as_timm_does(tmp_path, size, patch):
    model, path = network(), write(tmp_path, network().state_dict())
    expected = network(size=size, patch=patch)
    expected.load_state_dict(timm.models.vision_transformer.checkpoint_filter_fn(model.state_dict(), expected))
    loaded = started(path, size=size, patch=patch)
    same(loaded(images(size)), expected(images(size)))


def test_patches_alone_may_have_positions(tmp_path):
    model = network(no_embed_class=True)
    loaded = started(write(tmp_path, model.state_dict()))
    same(loaded(images()), model(images()))


def without(tensors, part: str):
    return {name: tensor for name, tensor in tensors.items() if part not in name}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda own: without(own, "blocks.1."),
            r"12 of its \d+ tensors are missing, the first 'blocks\.1\.norm1\.weight'",
        ),
        (lambda own: without(own, "pos_embed"), r"1 of its \d+ tensors are missing, the first 'pos_embed'"),
        (lambda own: own | {"blocks.2.norm1.weight": torch.ones(DIM)}, r"the first 'blocks\.2\.norm1\.weight'"),
        (
            lambda own: own | {"pos_embed": torch.ones(1, 1 + 3 * 4, DIM)},
            r"'pos_embed' are \[1, 13, 32\], to be resized to \[1, 17, 32\]: ",
        ),
        (lambda own: own | {"norm.weight": torch.ones(DIM + 1)}, r"size mismatch for norm\.weight"),
        (
            lambda own: {re.sub(r"^blocks\.", "vit.encoder.layer.", name): tensor for name, tensor in own.items()},
            r"the first 'vit\.encoder\.layer\.0\.norm1\.weight'",
        ),
    ],
    ids=["a block less", "no positions", "a block more", "no square", "another width", "transformers"],
)
def test_what_does_not_fit_is_refused_in_one_line(tmp_path, change, message):
    with pytest.raises(ValueError, match=message) as error:
        started(write(tmp_path, change(network().state_dict())))
    assert "\n" not in str(error.value)


def convolutions() -> torch.nn.Module:
    torch.manual_seed(0)
    return timm.create_model("test_resnet", num_classes=0).eval()


def moco(own) -> dict:
    """A checkpoint of MoCo's training: the network that learns, before the one that follows it, and the queue."""
    follows = {name: tensor + 1 for name, tensor in own.items()}
    fc = {"fc.0.weight": torch.ones(4, 96), "fc.2.weight": torch.ones(3, 4)}
    both = prefixed("module.encoder_q.", own | fc) | prefixed("module.encoder_k.", follows | fc)
    return {"epoch": 200, "state_dict": both | {"module.queue": torch.ones(3, 8)}, "arch": "resnet50"}


def swav(own) -> dict:
    return prefixed(
        "module.", own | {"projection_head.0.weight": torch.ones(4, 96), "prototypes.weight": torch.ones(9, 4)}
    )


@pytest.mark.parametrize("checkpoint", [dino, moco, swav])
def test_a_checkpoint_of_a_convolutional_network_is_read(tmp_path, checkpoint):
    model = convolutions()
    path = write(tmp_path, checkpoint(model.state_dict()))
    family = from_timm("test_resnet", pretrained=path, num_classes=5, input_size=32)
    same(largest(family)(images()), model(images()))
