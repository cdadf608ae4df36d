import numpy as np
import pytest
import torch
from torch import nn

from supernet.families import FAMILIES
from supernet.skeleton import Assembler, build_skeleton
from supernet.space import SearchSpace
from supernet.views import View, tied_builder


class Model(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)
        self.frozen = nn.Parameter(torch.ones(width), requires_grad=False)
        self.register_buffer("statistics", torch.ones(width))
        self.register_buffer("table", torch.arange(width), persistent=False)


def test_what_is_in_the_state_dict_has_no_memory_and_constants_are_real():
    skeleton, model = build_skeleton(Model, 3), Model(3)
    assert all(tensor.is_meta for tensor in skeleton.state_dict().values())
    assert skeleton.table.tolist() == [0, 1, 2]
    assert {n: (t.shape, t.dtype) for n, t in skeleton.state_dict().items()} == {
        n: (t.shape, t.dtype) for n, t in model.state_dict().items()
    }
    assert isinstance(skeleton.linear.weight, nn.Parameter)
    assert skeleton.linear.weight.requires_grad
    assert not skeleton.frozen.requires_grad


def test_tied_parameters_stay_tied():
    def build(width):
        layers = nn.Sequential(nn.Linear(width, width), nn.Linear(width, width))
        layers[1].weight = layers[0].weight
        return layers

    skeleton = build_skeleton(build, 3)
    assert skeleton[0].weight is skeleton[1].weight
    assert skeleton[0].bias is not skeleton[1].bias


def test_skeletons_are_built_whole_where_pieces_have_a_tensor_in_common():
    def build(arch):
        layers = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, arch["width"]))
        if arch["tied"] == "layers":
            layers[1].weight = layers[0].weight
        return layers

    def views(arch):
        return {"1.weight": View("0.weight")} if arch["tied"] == "source" else {}

    def pieces(arch):
        return {"0": arch["tied"] == "layers", "1": arch["tied"] == "layers", "2": arch["width"]}

    space = SearchSpace({"tied": ("layers", "source", "no"), "width": (1, 3)})
    assemble = Assembler(tied_builder(build, views), pieces, space.largest, views)
    for tied in 2 * ("layers", "source", "no"):
        for width in (1, 3):
            module = assemble(space.validate({"tied": tied, "width": width}))
            assert (module[0].weight is module[1].weight) == (tied != "no")
            assert module[2].weight.shape == (width, 2)


@pytest.mark.parametrize("name", FAMILIES)
def test_building_a_skeleton_draws_no_random_numbers(name):
    # otherwise what is cached would decide what is drawn next, and a resumed run would differ
    family = FAMILIES[name]()
    state = torch.get_rng_state()
    build_skeleton(family.build, family.space.sample(np.random.default_rng(0)))
    assert torch.equal(torch.get_rng_state(), state)


def test_an_assembled_skeleton_is_like_one_that_was_built():
    family = FAMILIES["mobilenet_v3_micro"]()
    assemble = Assembler(family.build, family.pieces, family.space.largest)
    generator = np.random.default_rng(0)
    stems = set()
    for arch in [family.space.sample(generator) for _ in range(100)]:
        module, built = assemble(arch), build_skeleton(family.build, arch)
        stems.add(id(module.conv_stem))
        assert [(n, t.shape) for n, t in module.state_dict().items()] == [
            (n, t.shape) for n, t in built.state_dict().items()
        ]
        assert repr(module) == repr(built)
    assert len(stems) < 80  # the assembled ones have theirs in common


def test_pieces_are_determined_by_their_keys():
    for make in FAMILIES.values():
        family = make()
        if family.pieces is None:
            continue
        generator, known = np.random.default_rng(0), {}
        for arch in [family.space.sample(generator) for _ in range(20)]:
            module = build_skeleton(family.build, arch)
            for piece in family.pieces(arch).items():
                found = repr(module.get_submodule(piece[0]))
                assert known.setdefault(piece, found) == found
