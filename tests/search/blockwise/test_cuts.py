"""Where the supernets of the framework and teachers of timm's are cut when nobody says where."""

import itertools
import math
import random

import pytest
import timm
import torch

from distill.blockwise import Teacher
from search.blockwise.cuts import match, matching_cuts
from search.blockwise.features import CutPlace, Feature, finer_features
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
    with pytest.raises(ValueError, match=r"no features at the resolutions of .* that has .*norm \(5 tokens\)$"):
        matching_cuts(family, family.space, two_features_a_size(32), max_paths=16, grids=False)


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        (
            "resnet18",
            {},
            "act1 16, maxpool 8, layer1.0 8, layer1 8, layer2.0.act2 4, layer2 4, layer3.0.act2 2, layer3 2, "
            "layer4.0.act2 1, layer4 1",
        ),
        (
            "mobilenetv3_small_050",
            {},
            "bn1 16, blocks.0 8, blocks.1.0 4, blocks.1 4, blocks.2.0 2, blocks.2.1 2, blocks.2.2 2, blocks.3.0 2, "
            "blocks.3 2, blocks.4.0 1, blocks.4.1 1, blocks.4.2 1, blocks.5 1",
        ),
        (
            "efficientnet_b0",
            {},
            "bn1 16, blocks.0 16, blocks.1.0 8, blocks.1 8, blocks.2.0 4, blocks.2 4, blocks.3.0 2, blocks.3.1 2, "
            "blocks.3.2 2, blocks.4.0 2, blocks.4.1 2, blocks.4 2, blocks.5.0 1, blocks.5.1 1, blocks.5.2 1, "
            "blocks.5.3 1, blocks.6 1",
        ),
        (
            "swin_tiny_patch4_window7_224",  # whose layers put out [B, H, W, C]
            {"img_size": 32},
            "layers.0.downsample 8, layers.0.blocks.0 8, layers.0 8, layers.1.downsample 4, layers.1.blocks.0 4, "
            "layers.1 4, layers.2.downsample 2, layers.2.blocks.0 2, layers.2.blocks.1 2, layers.2.blocks.2 2, "
            "layers.2.blocks.3 2, layers.2.blocks.4 2, layers.2 2, layers.3.downsample 1, layers.3.blocks.0 1, "
            "layers.3 1",
        ),
    ],
)
def test_features_of_a_teacher_before_its_points(name, options, expected):
    """Behind every layer, up to the last of timm's points at a resolution."""
    with torch.device("meta"):
        model = timm.create_model(name, pretrained=False, **options).eval()
        found = finer_features(Teacher(model), (torch.zeros(2, 3, 32, 32),))
    assert ", ".join(f"{feature.name} {feature.size[0]}" for feature in found) == expected


def place(name, size, *ends):
    return CutPlace(name, (size, size), ends)


def feature(name, size):
    return Feature(name, 3, (size, size))


def test_two_lists_are_matched_by_size():
    places = [place("a", 8, 1, 1), place("b", 8, 2, 3), place("c", 4, 3, 4), place("d", 2, 4, 5), place("e", 1, 5, 6)]
    features = [feature("t", 16), feature("u", 8), feature("v", 8), feature("w", 2), feature("x", 1)]
    matched = match(places, features, lambda before, last: 1, max_paths=1)
    assert [(here.name, target.name) for here, target in matched] == [("b", "v"), ("d", "w")]
    assert match(places, features[:1], lambda before, last: 1, max_paths=1) == []


@pytest.mark.parametrize("seed", range(10))
def test_a_block_is_cut_as_rarely_as_may_be_and_into_the_fewest_paths(seed):
    """Against all ways to cut it."""
    generator = random.Random(seed)
    places = [place(f"p{i}", 8, i) for i in range(1, 7)]
    features = [feature(f"t{i}", 8) for i in range(6)]
    between = {pair: generator.randint(1, 30) for pair in itertools.combinations([None, *places], 2)}

    def blocks(ends):
        return [between[pair] for pair in itertools.pairwise([None, *ends])]

    ways = [[*some, places[-1]] for count in range(6) for some in itertools.combinations(places[:-1], count)]
    for max_paths in (5, 12, 20):
        allowed = [(len(ends), sum(blocks(ends)), ends) for ends in ways if max(blocks(ends)) <= max_paths]
        if not allowed:
            with pytest.raises(ValueError, match=r"behind p1, p2, p3, p4, p5, and the teacher has t0 .* there$"):
                match(places, features, lambda *pair: between[pair], max_paths)
            continue
        count, _, best = min(allowed)
        matched = match(places, features, lambda *pair: between[pair], max_paths)
        assert [here for here, _ in matched] == best
        at = [math.ceil(6 * i / count) - 1 for i in range(1, count + 1)]  # at even distances, the last one last
        assert [target.name for _, target in matched] == [f"t{index}" for index in at]
