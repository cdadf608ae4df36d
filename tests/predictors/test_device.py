import dataclasses

import pytest

from predictors import Device, is_this_machine, this_device

HERE = this_device("onnxruntime", name="a-name-of-ones-own")


@pytest.mark.parametrize(
    ("changes", "here"),
    [
        ({}, True),
        ({"threads": 2, "precision": "int8"}, True),
        ({"hardware": {**HERE.hardware, "load_average": -1.0}}, True),
        ({"hardware": {**HERE.hardware, "cpus": -1}}, False),
        ({"hardware": {}}, False),
    ],
)
def test_this_machine_is_known_by_its_hardware(changes, here):
    assert is_this_machine(dataclasses.replace(HERE, **changes)) is here


def test_a_device_elsewhere_is_another():
    assert not is_this_machine(Device("phone", "unknown"))
