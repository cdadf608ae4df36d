import pytest
import torch

from supernet.families import FAMILIES
from supernet.families.nas_bench_201 import EDGES, Cell, from_string, to_string

MIXED = "|avg_pool_3x3~0|+|nor_conv_1x1~0|skip_connect~1|+|nor_conv_1x1~0|none~1|nor_conv_3x3~2|"


def test_holds_the_15625_cells_of_the_benchmark():
    assert FAMILIES["nasbench201"]().space.size == 15_625


def test_the_cell_of_six_3x3_convolutions_has_the_published_parameters():
    family = FAMILIES["nasbench201"]()
    arch = family.space.validate({f"edge.{edge}": "nor_conv_3x3" for edge in EDGES})
    assert family.parameters(arch) == 1_531_546
    assert sum(p.numel() for p in family.build(arch).parameters()) == 1_531_546


def test_strings_and_architectures_are_inverse():
    space = FAMILIES["nasbench201"]().space
    arch = from_string(MIXED)
    assert arch == space.validate(arch)
    assert arch["edge.0-1"] == "avg_pool_3x3"
    assert arch["edge.1-2"] == "skip_connect"
    assert arch["edge.2-3"] == "nor_conv_3x3"
    assert to_string(arch) == MIXED


@pytest.mark.parametrize(
    "text", ["", "|none~0|", MIXED + "|none~0|", MIXED.replace("none~1", "none~0"), MIXED.replace("none", "conv")]
)
def test_a_string_of_another_form_is_refused(text):
    with pytest.raises(ValueError, match=r"a cell is written .*, not "):
        from_string(text)


def test_a_node_sums_the_operations_on_all_earlier_nodes():
    # node 1 = x; node 2 = 0 + x; node 3 = x + x + x
    arch = {f"edge.{edge}": "none" if edge == "0-2" else "skip_connect" for edge in EDGES}
    x = torch.randn(2, 3, 4, 4)
    assert torch.equal(Cell(arch, 3, 0.0)(x), x + x + x)


def test_average_pooling_does_not_count_the_padding():
    arch = {f"edge.{edge}": "none" for edge in EDGES} | {"edge.0-3": "avg_pool_3x3"}
    assert torch.equal(Cell(arch, 1, 0.0)(torch.ones(1, 1, 4, 4)), torch.ones(1, 1, 4, 4))


def test_the_stem_and_the_number_of_cells_are_options():
    small = FAMILIES["nasbench201"](num_classes=100, channels=4, cells=1)
    model = small.build(small.space.largest)
    assert model.stem[0].out_channels == 4
    assert model.classifier.weight.shape == (100, 16)
    assert sum(p.numel() for p in model.parameters()) == small.parameters(small.space.largest)
    with pytest.raises(ValueError, match="not 0 and 5"):
        FAMILIES["nasbench201"](channels=0)
