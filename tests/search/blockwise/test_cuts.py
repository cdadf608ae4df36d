"""Where the supernets of the framework and teachers of timm's are cut when nobody says where."""

import pytest
import timm
import torch

from distill.blockwise import Teacher
from search.blockwise.cuts import Feature, finer_features, matching_cuts
from supernet.families import FAMILIES


def few_choices(family, kept):
    """The family's space with two values of the choices whose names end so, and the last of all others."""
    choices = family.space.choices.items()
    ends = {name: list(dict.fromkeys([choice.values[0], choice.values[-1]])) for name, choice in choices}
    return family.space.restrict(
        {name: values if name.endswith(kept) else values[-1:] for name, values in ends.items()}
    )


def two_features_a_size(size):
    features = []
    while (size := (size + 1) // 2) > 1:
        features += [Feature(f"first {size}", 7, (size, size)), Feature(f"{size}", 7, (size, size))]
    return features


@pytest.mark.parametrize(
    ("name", "options", "kept", "expected"),
    [
        (
            "mobilenet_v3_micro",
            {},
            ("depth", "width"),
            [("blocks.0.0", "16", 1), ("blocks.1", "8", 4), ("blocks.2", "first 4", 8), ("blocks.4.0", "4", 16)],
        ),
        (
            "ofa_mobilenet_v3",
            {},
            ("depth",),
            [
                ("blocks.0.0", "112", 1),
                ("blocks.1", "56", 2),
                ("blocks.2", "28", 2),
                ("blocks.4", "14", 4),
                ("blocks.6.0", "7", 2),
            ],
        ),
        (
            "alphanet",
            {},
            ("depth",),
            [
                ("blocks.0", "144", 2),
                ("blocks.1", "72", 2),
                ("blocks.2", "36", 2),
                ("blocks.4", "18", 4),
                ("blocks.7.0", "9", 4),
            ],
        ),
        (
            "ofa_resnet50",
            {},
            ("depth",),
            [("act1", "112", 1), ("layer1", "56", 2), ("layer2", "28", 2), ("layer3", "14", 2), ("layer4", "7", 2)],
        ),
        (
            "from_timm",
            {"name": "resnet18", "input_size": 64},
            ("depth",),
            [("act1", "32", 1), ("layer1", "16", 2), ("layer2", "8", 2), ("layer3", "4", 2), ("layer4", "2", 2)],
        ),
        ("nasbench_macro", {}, ("",), [("blocks.1", "16", 4), ("blocks.4", "8", 8), ("head.0.act", "4", 8)]),
        (
            "nasbench201",
            {"channels": 4, "cells": 1},
            ("edge.0-1",),
            [("stages.2.0.edges.2-3.avg_pool_3x3", "16", 2), ("head.1", "8", 2)],
        ),
        (
            "timm",
            {"name": "resnet18", "input_size": 64},
            (),
            [
                ("act1", "32", 1),
                ("layer1.1", "16", 1),
                ("layer2.1", "8", 1),
                ("layer3.1", "4", 1),
                ("layer4.1", "2", 1),
            ],
        ),
    ],
)
def test_every_family_is_cut(name, options, kept, expected):
    """At every resolution of the network, and once more where a block would have more than 16 paths."""
    family = FAMILIES[name](num_classes=10, **options)
    space = few_choices(family, kept)
    features = two_features_a_size(family.resolution(space.largest))
    cuts = matching_cuts(family, space, features, max_paths=16)
    assert [(cut.name, cut.target.name, space.subspace(cut.scope).size) for cut in cuts] == expected


def test_networks_of_tokens_have_no_maps_to_match():
    family = FAMILIES["from_timm"]("vit_tiny_patch16_224", num_classes=10, input_size=32)
    with pytest.raises(ValueError, match=r"no features at the resolutions of the supernet: .*, and that has no maps$"):
        matching_cuts(family, family.space, two_features_a_size(32), max_paths=16)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "resnet18",
            "act1 16, maxpool 8, layer1.0 8, layer1 8, layer2.0.act2 4, layer2 4, layer3.0.act2 2, layer3 2, "
            "layer4.0.act2 1, layer4 1",
        ),
        (
            "mobilenetv3_small_050",
            "bn1 16, blocks.0 8, blocks.1.0 4, blocks.1 4, blocks.2.0 2, blocks.2.1 2, blocks.2.2 2, blocks.3.0 2, "
            "blocks.3 2, blocks.4.0 1, blocks.4.1 1, blocks.4.2 1, blocks.5 1",
        ),
        (
            "efficientnet_b0",
            "bn1 16, blocks.0 16, blocks.1.0 8, blocks.1 8, blocks.2.0 4, blocks.2 4, blocks.3.0 2, blocks.3.1 2, "
            "blocks.3.2 2, blocks.4.0 2, blocks.4.1 2, blocks.4 2, blocks.5.0 1, blocks.5.1 1, blocks.5.2 1, "
            "blocks.5.3 1, blocks.6 1",
        ),
    ],
)
def test_features_of_a_teacher_before_its_points(name, expected):
    """Behind every layer, up to the last of timm's points at a resolution."""
    with torch.device("meta"):
        model = timm.create_model(name, pretrained=False).eval()
        found = finer_features(Teacher(model), torch.zeros(2, 3, 32, 32))
    assert ", ".join(f"{feature.name} {feature.size[0]}" for feature in found) == expected
