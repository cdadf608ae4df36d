import logging

import pytest
import torch

from supernet.families import FAMILIES, load_ofa_checkpoint

NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def authors_names(transforms: bool) -> list[str]:
    """The names in the authors' state dicts, in the order of the forward pass."""
    names = ["first_conv.conv.weight", *(f"first_conv.bn.{t}" for t in NORM)]
    first = "blocks.0.mobile_inverted_conv"
    names += [f"{first}.depth_conv.conv.weight", *(f"{first}.depth_conv.bn.{t}" for t in NORM)]
    names += [f"{first}.point_linear.conv.weight", *(f"{first}.point_linear.bn.{t}" for t in NORM)]
    for index in range(1, 21):
        block = f"blocks.{index}.mobile_inverted_conv"
        names += [f"{block}.inverted_bottleneck.conv.conv.weight"]
        names += [f"{block}.inverted_bottleneck.bn.bn.{t}" for t in NORM]
        names += [f"{block}.depth_conv.conv.conv.weight", *(f"{block}.depth_conv.bn.bn.{t}" for t in NORM)]
        if (index - 1) // 4 in (1, 3, 4):
            names += [f"{block}.depth_conv.se.fc.{f}.{t}" for f in ("reduce", "expand") for t in ("weight", "bias")]
        names += [f"{block}.point_linear.conv.conv.weight", *(f"{block}.point_linear.bn.bn.{t}" for t in NORM)]
        if transforms:
            names += [f"{block}.depth_conv.conv.{matrix}_matrix" for matrix in ("7to5", "5to3")]
    names += ["final_expand_layer.conv.weight", *(f"final_expand_layer.bn.{t}" for t in NORM)]
    return [*names, "feature_mix_layer.conv.weight", "classifier.linear.weight", "classifier.linear.bias"]


def checkpoint(family, path, transforms: bool) -> dict[str, torch.Tensor]:
    """A file under the authors' names, and the same tensors under timm's, which correspond in order."""
    generator = torch.Generator().manual_seed(0)
    tensors = {
        n: torch.rand(t.shape, generator=generator) for n, t in family.build(family.space.largest).state_dict().items()
    }
    ours = iter(tensors.values())
    sizes = {"7to5_matrix": 25, "5to3_matrix": 9}
    theirs = {
        name: torch.full((size, size), 0.5) if (size := sizes.get(name.rpartition(".")[2])) else next(ours)
        for name in authors_names(transforms)
    }
    assert next(ours, None) is None
    torch.save({"state_dict": theirs}, path)
    return tensors


@pytest.fixture(scope="module")
def family():
    return FAMILIES["ofa_mobilenet_v3"](num_classes=10)


@pytest.mark.parametrize("transforms", [False, True])
def test_every_tensor_finds_its_place(tmp_path, family, caplog, transforms):
    expected = checkpoint(family, tmp_path / "ofa.pth", transforms)
    net = family.supernet()
    with caplog.at_level(logging.WARNING):
        load_ofa_checkpoint(net, tmp_path / "ofa.pth")
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, expected[name].to(tensor.dtype)), name
    assert bool(caplog.records) == transforms
    assert not transforms or "40 kernel transforms left out" in caplog.text


def test_kernel_transforms_find_theirs(tmp_path, family):
    checkpoint(family, tmp_path / "ofa.pth", transforms=True)
    net = FAMILIES["ofa_mobilenet_v3"](num_classes=10, kernel_transform=True).supernet()
    load_ofa_checkpoint(net, tmp_path / "ofa.pth")
    matrices = [p for name, p in net.named_parameters() if name.startswith("slicing_rules.")]
    assert len(matrices) == 40
    assert all((matrix == 0.5).all() for matrix in matrices)


def test_what_is_no_such_checkpoint_is_refused(tmp_path, family):
    net, path = family.supernet(), tmp_path / "ofa.pth"
    with pytest.raises(ValueError, match=r"there is no file of weights '.*ofa\.pth'"):
        load_ofa_checkpoint(net, path)
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(ValueError, match=r"cannot read the weights in '.*ofa\.pth'"):
        load_ofa_checkpoint(net, path)
    torch.save({"layer1.weight": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match=r"'layer1\.weight' is no tensor of Once-for-All's MobileNetV3"):
        load_ofa_checkpoint(net, path)
    torch.save({}, path)
    with pytest.raises(ValueError, match=r"ofa\.pth' holds no tensors by name"):
        load_ofa_checkpoint(net, path)
    torch.save({"first_conv.bn.weight": torch.zeros(16)}, path)
    with pytest.raises(ValueError, match=r"has nothing for 'conv_stem\.weight'"):
        load_ofa_checkpoint(net, path)
    checkpoint(FAMILIES["ofa_mobilenet_v3"](num_classes=7), path, transforms=False)
    with pytest.raises(ValueError, match=r"has \[7, 1280\] for 'classifier\.weight', but this supernet \[10, 1280\]"):
        load_ofa_checkpoint(net, path)
