"""What holds for every named space, written once."""

import time
from functools import partial

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from supernet.families import FAMILIES, from_timm
from supernet.nesting import check_structure
from supernet.slicing import resized_dims, take
from tests.vision_transformers import small_vit

MODELS = ("resnet18", "convnext_atto", "vit_tiny_patch16_224")
SPACES = FAMILIES | {f"from_timm({name})": partial(from_timm, name, input_size=32) for name in MODELS}
SPACES["ofa_mobilenet_v3(1.2, kernel_transform)"] = partial(
    FAMILIES["ofa_mobilenet_v3"], width_mult=1.2, kernel_transform=True
)
SPACES["shufflenet_v1"] = partial(FAMILIES["shufflenet_v1"], groups=2, input_size=32)
SPACES["vit"] = partial(small_vit, registers=(1, 2), pool=("avg", "token"))
del SPACES["text_decoder"]  # whose networks give more than logits of classes: text/test_decoder.py
SPACES["shufflenet_spos"] = partial(FAMILIES["shufflenet_spos"], input_size=32, channel_search=True, affine=True)


LARGE = (
    "alphanet",
    "mixed_precision",
    "autoformer_base",
    "autoformer_small",
    "autoformer_tiny",
    "ofa_resnet50",
    "ofa_mobilenet_v3",
)  # the transformed ofa_mobilenet_v3 is built as they are


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=pytest.mark.exhaustive if name in LARGE else ()) for name in SPACES],
)
def family(request):
    return SPACES[request.param](num_classes=7)


@pytest.fixture(scope="module")
def built(family):
    """A supernet, and the seconds that it took."""
    start = time.thread_time()
    return family.supernet().eval(), time.thread_time() - start


@pytest.fixture(scope="module")
def net(built):
    return built[0]


@pytest.fixture(scope="module")
def archs(family):
    generator = np.random.default_rng(0)
    archs = [family.space.smallest, family.space.largest, *(family.space.sample(generator) for _ in range(18))]
    unordered = {name: choice.values for name, choice in family.space.choices.items() if not choice.ordered}
    while any({arch[name] for arch in archs if name in arch} < set(values) for name, values in unordered.items()):
        archs.append(family.space.sample(generator))
    return archs


@pytest.fixture(scope="module")
def models(family, archs):
    """The plain modules, without memory."""
    with torch.device("meta"):
        return {arch: family.build(arch).eval() for arch in archs}


def inputs(family, arch) -> tuple[torch.Tensor, ...]:
    """Of one example: a text with a third of it masked, or an image, a small one where the space has a choice of
    resolution and its networks take any."""
    draw = torch.Generator().manual_seed(0)
    if family.inputs is not None:
        length = family.example(arch)[0].shape[1]
        tokens = torch.randint(family.task.vocabulary, (1, length), generator=draw)
        return tokens, (torch.arange(length)[None] < length * 2 // 3).long()
    size = family.resolution(arch)
    size = 32 if "resolution" in arch and "patch_size" not in arch else size
    return (torch.randn(1, family.in_chans, size, size, generator=draw),)


def test_subnets_and_their_gradients_equal_the_plain_models_bit_for_bit(family, net, archs):
    for arch in archs[:4]:
        x = inputs(family, arch)
        plain = net.extract(arch)
        net.zero_grad()
        output, expected = net(*x, arch=arch), plain(*x)
        assert output.shape == (1, 7)
        assert torch.equal(output, expected)
        output.square().sum().backward()
        expected.square().sum().backward()
        rules = {name: part.rule for name, part in net._subnet(arch).parts.items()}
        shared = dict(net.named_parameters())
        for name, parameter in plain.named_parameters():
            whole = shared.pop(name)
            part = take(whole, parameter.shape, rules[name])
            (expected,) = torch.autograd.grad(part, whole, parameter.grad)
            assert torch.equal(whole.grad, expected)
        assert all(parameter.grad is None for name, parameter in shared.items() if "slicing_rules" not in name)


def test_encode_and_decode_are_inverse(family, archs):
    assert family.space.decode(family.space.encode(archs)) == archs


def test_every_subnets_tensors_nest_in_the_shared_ones_and_use_them_all(net, models):
    shared, used = net.state_dict(), set()
    for model in models.values():
        for name, tensor in model.state_dict().items():
            assert tensor.dim() == shared[name].dim()
            resized = resized_dims(net._wholes[name].rule)
            sizes = enumerate(zip(tensor.shape, shared[name].shape))
            assert all(part <= whole for dim, (part, whole) in sizes if dim not in resized)
            used.add(name)
    assert used == {name for name in shared if "slicing_rules" not in name}


def test_what_a_module_does_does_not_follow_the_sizes(family, net):
    check_structure(family.space, lambda arch: net._subnet(arch).module, partial(inputs, family))


def test_macs_and_parameters_are_what_a_forward_pass_counts(family, models):
    for arch, model in models.items():
        # the plain form of attention, which the counter sees as matrix products
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            model(*family.example(arch))
        assert counter.get_total_flops() == 2 * family.macs(arch)
        assert sum(p.numel() for p in model.parameters()) == family.parameters(arch)


@pytest.mark.timed
def test_a_thousand_architectures_are_counted_in_a_second(family):
    generator = np.random.default_rng(0)
    archs = [family.space.sample(generator) for _ in range(1000)]
    for _ in range(2):  # the second time warm
        start = time.thread_time()
        for arch in archs:
            family.macs(arch), family.parameters(arch)
    assert time.thread_time() - start < 1


@pytest.mark.timed
def test_the_supernet_is_built_within_five_seconds(built):
    assert built[1] < 5


def test_dropout_and_stochastic_depth_add_no_tensors(family):
    arch = family.space.largest
    with torch.device("meta"):
        plain, regularised = family.build(arch), family.build(arch, drop_rate=0.2, drop_path_rate=0.2)
    assert list(plain.state_dict()) == list(regularised.state_dict())
    rates = [m.p for m in regularised.modules() if isinstance(m, torch.nn.Dropout)]
    assert 0.2 in [*rates, *(getattr(m, "drop_rate", None) for m in regularised.modules())]
    assert any(getattr(m, "drop_prob", 0) for m in regularised.modules())
