import pytest

from search.counts import count, is_count
from search.run import make_problem
from search.settings import SearchJob
from supernet.families import FAMILIES

FAMILY = FAMILIES["mobilenet_v3_micro"](num_classes=10)
NAMES = ("activation_bytes", "activation_bytes.fp32", "activation_bytes.int8", "stored_bytes", "stored_bytes.int8")


def test_names():
    assert all(map(is_count, ("macs", "parameters", *NAMES)))
    assert not any(map(is_count, ("macs.int8", "activation_bytes.int3", "xeon-onnxruntime-int8-1t-b1")))


def test_precision_and_fusion_take_their_part():
    eager, fused, int8, stored, stored_int8 = (count(name, FAMILY)([FAMILY.space.largest])[0] for name in NAMES)
    assert eager > fused == 4 * int8
    assert stored / 4 < stored_int8 < stored / 2  # vectors stay in single precision


def test_a_limit_holds_at_its_precision():
    (least,) = count("activation_bytes.int8", FAMILY)([FAMILY.space.smallest])
    job = SearchJob(limits={"activation_bytes.int8": least, "stored_bytes": 1e9}, objectives=("stored_bytes.int8",))
    problem = make_problem(job, FAMILY, {})
    assert list(problem.costs) == ["macs", "parameters", "activation_bytes.int8", "stored_bytes", "stored_bytes.int8"]
    violation = problem.violation(problem.price([FAMILY.space.smallest, FAMILY.space.largest]))
    assert violation[0] == 1 < violation[1]


def test_an_unknown_precision_is_named():
    with pytest.raises(
        ValueError, match=r"a limit on 'stored_bytes.int3', .* activation_bytes.int8 \(fp32, tf32, fp16, int8"
    ):
        make_problem(SearchJob(limits={"stored_bytes.int3": 1}), FAMILY, {})
