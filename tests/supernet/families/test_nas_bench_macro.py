import pytest

from supernet.families import FAMILIES
from supernet.families.nas_bench_macro import from_string, to_string

# digits, parameters and MACs as the benchmark publishes them
PUBLISHED = [
    ("00011110", 1_118_378, 31_390_208),
    ("11121111", 1_704_458, 60_545_536),
    ("22110022", 2_267_946, 70_107_648),
    ("02100210", 1_167_594, 42_680_832),
    ("00002122", 2_389_674, 52_169_216),
    ("02212202", 1_963_562, 75_022_848),
    ("12201010", 1_040_650, 49_611_264),
    ("22102200", 1_004_970, 60_232_192),
]


def test_holds_three_operations_in_eight_layers():
    assert FAMILIES["nasbench_macro"]().space.size == 3**8


@pytest.mark.parametrize(("digits", "parameters", "macs"), PUBLISHED)
def test_parameters_and_macs_are_the_published_ones(digits, parameters, macs):
    family = FAMILIES["nasbench_macro"]()
    arch = family.space.validate(from_string(digits))
    assert (family.parameters(arch), family.macs(arch)) == (parameters, macs)
    assert sum(p.numel() for p in family.build(arch).parameters()) == parameters


def test_digits_and_architectures_are_inverse():
    arch = from_string("01201201")
    assert arch["block.0"] == "identity"
    assert arch["block.1"] == "mbconv_k3_e3"
    assert arch["block.2"] == "mbconv_k5_e6"
    assert to_string(arch) == "01201201"


@pytest.mark.parametrize("text", ["", "0120120", "012012012", "01201203", "0120120x"])
def test_other_digits_are_refused(text):
    with pytest.raises(ValueError, match="is 8 digits from 0 to 2, not"):
        from_string(text)
