import pytest
import safetensors.torch
import timm
import torch
from torch.nn import functional as F

from supernet.families import FAMILIES
from supernet.families.vision_transformer import rewire, transformer_channels
from tests.vision_transformers import SMALL, small_vit


def plain(**options) -> torch.nn.Module:
    """timm's model of the sizes of `small_vit`, with weights in which every tensor matters."""
    torch.manual_seed(0)
    model = timm.create_model(
        "vit_tiny_patch16_224",
        **{"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 4, "mlp_ratio": 2.0} | options,
    )
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("vit") / "model.safetensors"
    safetensors.torch.save_file(plain(num_classes=5).state_dict(), path)
    return path


def pretrained(file, **options):
    sizes = {"embed_dim": (24, 32), "depth": (2, 3), "num_heads": (2, 4), "mlp_ratio": (1.0, 2.0)}
    images = {"patch_size": (16, 8), "resolution": (16, 32), "head_dim": 8, "num_classes": 5}
    return FAMILIES["vit"](**sizes | images | options, pretrained=str(file))


def test_the_largest_subnet_computes_what_the_pretrained_model_does(file):
    family = pretrained(file)
    net = family.supernet().eval()
    x = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    expected = plain(num_classes=5)(x)
    torch.testing.assert_close(net(x, family.space.largest), expected, rtol=1e-5, atol=1e-5)
    own = plain(num_classes=5).blocks[0].mlp.fc1.weight
    ordered = net.get_parameter("blocks.0.mlp.fc1.weight")
    assert not torch.equal(own, ordered)
    sums = ordered.abs().sum(1)
    assert (sums[:-1] >= sums[1:]).all()  # the most important neurons first


def test_a_class_tokens_position_is_added_to_the_token(file):
    family = pretrained(file)
    assert family.build(family.space.largest).pos_embed.shape == (1, 16, 32)  # the patches alone


def test_what_was_taken_out_is_a_start_as_well(file, tmp_path):
    family = pretrained(file)
    net = family.supernet().eval()
    safetensors.torch.save_file(net.extract(family.space.largest).state_dict(), tmp_path / "own.safetensors")
    again = pretrained(tmp_path / "own.safetensors").supernet().eval()
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in net.state_dict().items())


def test_a_file_of_other_sizes_is_refused_in_one_line(file):
    with pytest.raises(ValueError, match="size mismatch") as error:
        pretrained(file, embed_dim=(32, 40)).supernet()
    assert "\n" not in str(error.value)


def test_subnets_are_what_timm_makes_of_their_sizes():
    family = small_vit(num_classes=5, registers=(1, 2))
    net = family.supernet().eval()
    arch = family.space.validate(
        dict(family.space.largest)
        | {"embed_dim": 24, "patch_size": 16, "registers": 1, "resolution": 32}
        | {f"blocks.{b}.{name}": value for b in range(3) for name, value in (("num_heads", 3), ("mlp_ratio", 1.0))}
    )
    model = timm.create_model(
        "vit_tiny_patch16_224",
        **{"img_size": 32, "embed_dim": 24, "depth": 3, "num_heads": 3, "mlp_ratio": 1.0, "reg_tokens": 1},
        num_classes=5,
        no_embed_class=True,
    ).eval()
    extracted = net.extract(arch)
    model.load_state_dict(extracted.state_dict())
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    assert torch.equal(net(x, arch), model(x))
    assert torch.equal(net(x, arch), extracted(x))


def test_both_pools_have_one_set_of_weights():
    family = small_vit(num_classes=5, pool=("avg", "token"))
    net = family.supernet().eval()
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    for pool in ("avg", "token"):
        arch = family.space.complete({"pool": pool})
        model = net.extract(arch)
        assert model.has_class_token == (pool == "token")
        assert model.global_pool == pool
        assert torch.equal(net(x, arch), model(x))
        assert sum(p.numel() for p in model.parameters()) == family.parameters(arch)


def test_registers_count_as_tokens():
    family = small_vit(num_classes=5, registers=(1, 3))
    few, many = (family.space.complete({"registers": count}) for count in (1, 3))
    assert family.parameters(many) - family.parameters(few) == 2 * 32
    assert family.macs(many) > family.macs(few)


def test_every_tensor_gets_a_gradient_from_subnets_of_other_patches():
    family = small_vit(num_classes=5)
    net = family.supernet()
    arch = family.space.complete({"patch_size": 16})
    net(torch.randn(2, 3, 32, 32), arch, accumulate=True).square().sum().backward()
    for name in ("patch_embed.proj.weight", "pos_embed"):
        assert net.get_parameter(name).grad.abs().amin() > 0


def test_rewiring_keeps_the_largest_and_puts_what_the_loss_needs_first():
    family = small_vit(num_classes=5)
    net = family.supernet().eval()
    torch.manual_seed(0)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    x, labels = torch.randn(8, 3, 32, 32), torch.arange(8) % 5
    before = net(x, family.space.largest)
    head = net.get_parameter("blocks.1.attn.proj.weight").detach().clone()
    with torch.no_grad():  # heads 0 and 2 of the second block reach nothing
        for dead in (0, 2):
            net.get_parameter("blocks.1.attn.proj.weight")[:, 8 * dead : 8 * dead + 8] = 0
    before = net(x, family.space.largest)
    rewire(net, [(x, labels)], lambda model, batch: F.cross_entropy(model(batch[0]), batch[1]))
    torch.testing.assert_close(net(x, family.space.largest), before, rtol=1e-5, atol=1e-5)
    norms = net.get_parameter("blocks.1.attn.proj.weight").unflatten(1, (4, 8)).abs().sum((0, 2))
    assert (norms > 0).tolist() == [True, True, False, False]
    assert head.shape == net.get_parameter("blocks.1.attn.proj.weight").shape


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "deit_tiny_distilled_patch16_224"}, "it is a VisionTransformerDistilled.*use from_timm"),
        ({"name": "vit_base_patch16_siglip_224"}, "pools by attention"),
        ({"name": "vit_base_patch16_xp_224"}, "blocks of ParallelScalingBlock"),
        ({"patch_size": (8, 16)}, r"decreasing order: \(16, 8\), not \(8, 16\)"),
        ({"patch_size": (24, 16)}, "16 pixels is no multiple of the patch_size 24"),
        ({"registers": (0, 4)}, "from 1, or"),
        ({"pool": ("max",)}, "pool is of avg, token, not 'max'"),
    ],
)
def test_what_does_not_fit_is_refused(options, message):
    with pytest.raises(ValueError, match=message) as error:
        FAMILIES["vit"](**SMALL | options)
    assert "\n" not in str(error.value)


def test_the_choices_of_a_named_model_are_parts_of_it():
    family = FAMILIES["vit"]()
    values = {name: choice.values for name, choice in family.space.choices.items()}
    assert values["embed_dim"] == (96, 144, 192)
    assert values["depth"] == (6, 9, 12)
    assert values["patch_size"] == (32, 16)
    assert values["resolution"] == (160, 192, 224)
    assert values["blocks.0.num_heads"] == (2, 3)
    assert values["blocks.11.mlp_ratio"] == (2, 3, 4)
    assert family.parameters(family.space.largest) == 5_717_416 - 192  # timm's; less the position of the class token


def test_a_falling_choice_is_kept_in_json_and_in_parts_of_the_space():
    space = small_vit().space
    assert type(space).from_json(space.to_json()) == space
    assert space.restrict({"patch_size": (16, 8)}).largest["patch_size"] == 8
    assert space.subspace(["patch_size"]).choices["patch_size"].falling
    assert space.decode(space.encode([space.largest])) == [space.largest]


def test_channels_cover_every_tensor_that_varies():
    family = small_vit(registers=(1, 2))
    net = family.supernet()
    largest, smaller = net.extract(family.space.largest), net.extract(family.space.smallest)
    known = {(m.tensor, m.dim) for group in transformer_channels(largest) for m in group.members}
    other = {("patch_embed.proj.weight", 2), ("patch_embed.proj.weight", 3), ("pos_embed", 1), ("reg_token", 1)}
    for name, tensor in smaller.state_dict().items():
        for dim, (part, whole) in enumerate(zip(tensor.shape, largest.state_dict()[name].shape)):
            if part != whole:
                assert (name, dim) in known | other
