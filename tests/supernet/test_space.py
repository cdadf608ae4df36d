import itertools
import json
import pickle
import re
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

from supernet.space import INACTIVE, Arch, Choice, SearchSpace


def dependent_space() -> SearchSpace:
    """Depth 1 to 3; a kernel for the second block and one for the third; an option that needs the larger kernel."""
    return SearchSpace(
        {
            "depth": (1, 2, 3),
            "kernel.1": Choice((3, 5), when={"depth": (2, 3)}),
            "kernel.2": Choice((3, 5, 7), when={"depth": (3,)}),
            "operation": Choice(("pool", "conv"), when={"kernel.1": (5,), "depth": (3,)}),
            "width": (0.5, 1.0),
        }
    )


def random_space(generator: np.random.Generator) -> SearchSpace:
    choices = {}
    for index in range(generator.integers(1, 7)):
        values = tuple(range(generator.integers(1, 4)))
        parents = generator.permutation(list(choices))[: generator.integers(0, 3)]
        when = {str(p): [v for v in choices[p].values if generator.random() < 0.6] for p in parents}
        choices[f"c{index}"] = Choice(values, when)
    return SearchSpace(choices)


def enumerate_archs(space: SearchSpace) -> set[Arch]:
    codes = list(itertools.product(*(range(len(choice.values)) for choice in space.choices.values())))
    return set(space.decode(np.array(codes)))


def test_size_is_counted_by_hand_on_a_dependent_space():
    # depth 1: 1; depth 2: 2 kernels; depth 3: 3 kernels x (kernel.1 of 3: 1, of 5: 2 operations); each with 2 widths
    assert dependent_space().size == 2 * (1 + 2 + 3 * (1 + 2))


@pytest.mark.parametrize("seed", range(30))
def test_size_is_the_number_of_distinct_architectures(seed):
    space = random_space(np.random.default_rng(seed))
    assert space.size == len(enumerate_archs(space))


def test_size_is_exact_beyond_floating_point():
    block = {f"block{b}": Choice((0, 1, 2), {} if b < 2 else {"depth": range(b + 1, 41)}) for b in range(40)}
    space = SearchSpace({"depth": range(2, 41), **block})
    assert space.size == sum(3**depth for depth in range(2, 41))


@pytest.mark.parametrize("seed", range(10))
def test_encode_and_decode_are_inverse_and_codes_differ(seed):
    space = random_space(np.random.default_rng(seed))
    archs = sorted(enumerate_archs(space), key=repr)
    codes = space.encode(archs)
    assert codes.shape == (len(archs), len(space.choices))
    assert space.decode(codes) == archs
    assert len(np.unique(codes, axis=0)) == len(archs)


def test_an_inactive_choice_has_one_code_and_makes_no_difference():
    space = dependent_space()
    a = space.validate({"depth": 1, "kernel.1": 3, "width": 0.5})
    b = space.validate({"depth": 1, "kernel.1": 5, "kernel.2": 7, "width": 0.5})
    assert a == b
    assert hash(a) == hash(b)
    assert space.encode([a]).tolist() == [[0, INACTIVE, INACTIVE, INACTIVE, 0]]


def test_codes_of_another_shape_or_range_are_refused():
    space = dependent_space()
    with pytest.raises(ValueError, match=r"\[n, 5\] in this space, not \[2, 4\]"):
        space.decode(np.zeros((2, 4), int))
    with pytest.raises(ValueError, match="code 2 of choice 'width' is not among 0 to 1"):
        space.decode(np.array([[0, 0, 0, 0, 2]]))


def test_sampling_is_uniform_over_the_values_of_every_active_choice():
    space = dependent_space()
    archs = [space.sample(generator) for generator in [np.random.default_rng(0)] for _ in range(6000)]
    for name, choice in space.choices.items():
        counts = Counter(arch[name] for arch in archs if name in arch)
        total, p = counts.total(), 1 / len(choice.values)
        assert set(counts) == set(choice.values)
        for count in counts.values():  # within four standard deviations of the binomial
            assert abs(count - total * p) < 4 * (total * p * (1 - p)) ** 0.5


def test_sampling_follows_from_the_generator():
    space = dependent_space()
    first, again, other = (
        [space.sample(generator) for _ in range(20)] for generator in map(np.random.default_rng, (3, 3, 4))
    )
    assert first == again
    assert first != other


def test_samples_mutations_and_crossovers_are_architectures_of_the_space():
    space, generator = dependent_space(), np.random.default_rng(0)
    valid = enumerate_archs(space)
    for _ in range(200):
        a, b = space.sample(generator), space.sample(generator)
        assert {a, space.mutate(a, generator, 0.3), space.crossover(a, b, generator)} <= valid


def test_mutation_at_rate_0_keeps_and_at_rate_1_changes_every_choice():
    space = SearchSpace({"a": (1, 2), "b": (1, 2, 3), "c": ("x", "y")})
    generator = np.random.default_rng(0)
    for _ in range(50):
        arch = space.sample(generator)
        assert space.mutate(arch, generator, 0.0) == arch
        assert all(space.mutate(arch, generator, 1.0)[name] != value for name, value in arch.items())
    with pytest.raises(ValueError, match=r"probability, not 1\.5"):
        space.mutate(arch, generator, 1.5)


def test_mutation_changes_at_the_rate_and_uniformly():
    space = SearchSpace({"a": (1, 2, 3, 4)})
    generator = np.random.default_rng(0)
    counts = Counter(space.mutate(Arch({"a": 2}), generator, 0.3)["a"] for _ in range(4000))
    assert abs(counts[2] - 2800) < 4 * (4000 * 0.3 * 0.7) ** 0.5
    assert all(abs(counts[value] - 400) < 4 * (4000 * 0.1 * 0.9) ** 0.5 for value in (1, 3, 4))


def test_a_child_takes_every_choice_from_a_parent():
    space = dependent_space()
    generator = np.random.default_rng(0)
    shallow = space.validate({"depth": 1, "width": 0.5})
    deep = space.validate({"depth": 3, "kernel.1": 5, "kernel.2": 7, "operation": "conv", "width": 1.0})
    children = {space.crossover(shallow, deep, generator) for _ in range(100)}
    assert children == {space.validate({**deep, "depth": depth, "width": w}) for depth in (1, 3) for w in (0.5, 1.0)}


def test_a_choice_that_no_parent_had_is_drawn_uniformly():
    space = SearchSpace({"a": (0, 1), "b": (0, 1), "both": Choice((1, 2, 3, 4), when={"a": (1,), "b": (1,)})})
    generator = np.random.default_rng(0)
    parents = Arch({"a": 0, "b": 1}), Arch({"a": 1, "b": 0})
    for children in (
        [space.mutate(parents[0], generator, 0.5) for _ in range(8000)],
        [space.crossover(*parents, generator) for _ in range(8000)],
    ):
        counts = Counter(child["both"] for child in children if "both" in child)
        assert abs(counts.total() - 2000) < 4 * (8000 * 3 / 16) ** 0.5
        share = counts.total() / 4
        assert all(abs(counts[value] - share) < 4 * (share * 3 / 4) ** 0.5 for value in (1, 2, 3, 4))


def test_largest_and_smallest_are_the_last_and_first_values():
    space = dependent_space()
    assert dict(space.largest) == {"depth": 3, "kernel.1": 5, "kernel.2": 7, "operation": "conv", "width": 1.0}
    assert dict(space.smallest) == {"depth": 1, "width": 0.5}


def test_validate_returns_the_canonical_architecture():
    arch = dependent_space().validate({"width": 1, "depth": 2.0, "kernel.1": 3})
    assert arch.to_json() == '{"depth": 2, "kernel.1": 3, "width": 1.0}'


@pytest.mark.parametrize(
    ("arch", "message"),
    [
        ({"depth": 4, "width": 1.0}, r"choice 'depth' is one of \(1, 2, 3\), not 4"),
        ({"depth": 2, "width": 1.0}, r"has no 'kernel\.1'; it needs one of \(3, 5\)"),
        ({"depth": 1, "width": 1.0, "kernel": 3}, "no choice 'kernel'; its choices are depth, kernel.1"),
        ({"depth": 1, "width": "1.0"}, "not '1.0'"),
    ],
)
def test_validate_and_encode_name_what_is_wrong(arch, message):
    with pytest.raises(ValueError, match=message):
        dependent_space().validate(arch)
    with pytest.raises(ValueError, match=message):
        dependent_space().encode([Arch(arch)])


def test_restricting_keeps_a_part_of_the_space():
    space = dependent_space()
    part = space.restrict({"depth": (1, 3), "kernel.2": (7,)})
    assert enumerate_archs(part) == {
        arch for arch in enumerate_archs(space) if arch["depth"] != 2 and arch.get("kernel.2", 7) == 7
    }
    with pytest.raises(ValueError, match=r"choice 'depth' is one of \(1, 2, 3\), not 5"):
        space.restrict({"depth": (5,)})


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({}, "at least one choice"),
        ({"a": ()}, "at least one value"),
        ({"a": (1, 1)}, "has a value twice"),
        ({"a": (2, 1)}, r"in increasing order: \(1, 2\), not \(2, 1\)"),
        ({"a": (1, "b")}, "all numbers or all strings"),
        ({"a": Choice((1, 2), {"b": (1,)}), "b": (1, 2)}, "'a' depends on 'b', which is not declared before it"),
        ({"b": (1, 2), "a": Choice((1, 2), {"b": (3,)})}, r"'b' being 3, which is none of its values \(1, 2\)"),
    ],
)
def test_contradictory_choices_are_refused(choices, message):
    with pytest.raises(ValueError, match=message):
        SearchSpace(choices)


def test_a_falling_choice_has_its_smallest_number_last():
    space = SearchSpace({"patch_size": Choice((16, 8), falling=True)})
    assert space.largest["patch_size"] == 8
    with pytest.raises(ValueError, match=r"in decreasing order: \(16, 8\), not \(8, 16\)"):
        space.restrict({"patch_size": (8, 16)})


def test_an_architecture_is_an_immutable_value():
    arch = Arch({"depth": 2, "operation": "conv"})
    assert arch == Arch({"operation": "conv", "depth": 2})
    assert len({arch, Arch({"operation": "conv", "depth": 2})}) == 1
    assert Arch.from_json(arch.to_json()) == arch
    with pytest.raises(TypeError):
        arch["depth"] = 3


@pytest.mark.parametrize("text", ["[1]", "{", '{"a": [1]}', '{"a": null}'])
def test_text_that_is_no_architecture_is_refused(text):
    with pytest.raises(ValueError, match="an architecture is a JSON object"):
        Arch.from_json(text)


def test_spaces_are_values_too():
    space = dependent_space()
    again = SearchSpace.from_json(space.to_json())
    assert space == again
    assert hash(space) == hash(again)
    assert space.fingerprint == again.fingerprint
    assert space.fingerprint != space.restrict({"depth": (1, 2)}).fingerprint
    assert list(json.loads(space.to_json())) == list(space.choices)
    assert pickle.loads(pickle.dumps(space)) == space
    when = {"depth": (3,), "kernel.1": (5,)}  # the conditions are the same in any order
    assert SearchSpace({**space.choices, "operation": Choice(("pool", "conv"), when)}) == space


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "a search space is a JSON object, but '{' is not JSON"),
        ("[1]", "a search space is a JSON object, not"),
        ('{"width": [8, 16]}', "choice 'width' is an object with a list of values and an object of lists when"),
        ('{"width": {"values": "ab", "when": {}}}', "choice 'width' is an object with a list of values"),
        ('{"width": {"values": [8], "when": {"depth": 1}}}', "choice 'width' is an object with a list of values"),
        ('{"width": {"values": [[8]], "when": {}}}', "all numbers or all strings"),
        ('{"width": {"values": [1, NaN], "when": {}}}', "the values of a choice are finite"),
        ("{}", "at least one choice"),
    ],
)
def test_text_that_is_no_space_is_refused(text, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        SearchSpace.from_json(text)


def test_a_pickled_architecture_is_equal_in_another_process():
    # the hash of a string differs from process to process
    code = (
        "import pickle, sys; from supernet.space import Arch;"
        "arch = pickle.loads(sys.stdin.buffer.read()); assert arch in {Arch({'operation': 'conv'})}"
    )
    pickled = pickle.dumps(Arch({"operation": "conv"}))
    assert subprocess.run([sys.executable, "-c", code], input=pickled, check=False).returncode == 0


def test_children_made_at_once_are_canonical_and_vary_as_those_made_one_by_one():
    space = SearchSpace({"depth": (1, 2), **{f"k{i}": Choice((3, 5, 7), when={"depth": (2,)}) for i in range(3)}})
    archs = [space.sample(np.random.default_rng(seed)) for seed in range(100)]
    generator = np.random.default_rng(0)
    for children in (
        space.mutants(archs * 60, generator, 0.2),
        space.crossovers(archs * 60, archs[::-1] * 60, generator),
    ):
        assert all(space.validate(child) == child for child in children)
        assert len(set(children)) == space.size
    one = space.mutate(archs[0], np.random.default_rng(3), 0.5)
    assert space.mutants(archs[:1], np.random.default_rng(3), 0.5) == [one]
    changed = [a["depth"] != b["depth"] for a, b in zip(archs * 60, space.mutants(archs * 60, generator, 0.2))]
    assert np.mean(changed) == pytest.approx(0.2, abs=0.03)
    assert space.crossovers(archs, archs, generator) == archs
    assert space.mutants(archs, generator, 0.0) == archs
