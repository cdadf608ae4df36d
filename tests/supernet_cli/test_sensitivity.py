"""Which kinds of weights may be in few bits, by the command line."""

import json

from supernet.artifacts.runs import open_data
from supernet.artifacts.subnet import Subnet, save_subnet
from supernet.artifacts.subnet_config import SubnetConfig
from supernet.families import FAMILIES
from supernet.training.recipes import RECIPES


def test_kinds_of_weights_are_rounded_one_by_one(command, tmp_path):
    data = open_data(RECIPES["digits"]().data, 0)
    family = FAMILIES["mobilenet_v3_micro"](num_classes=10)
    config = SubnetConfig.of("mobilenet_v3_micro", "{}", family.space.smallest, data)
    save_subnet(tmp_path / "plain", Subnet(family.build(family.space.smallest).eval(), config), onnx=False)
    figures = tmp_path / "kinds.json"
    flags = ["--subnet", tmp_path / "plain", "--bits", "8", "2", "--examples", "30"]
    result = command("sensitivity", *flags, "--json", figures)
    assert result.returncode == 0, result.stderr
    assert "Points lost on 30 held-out examples" in result.stdout
    found = json.loads(figures.read_text())["sensitivities"]
    assert [(own["kind"], own["bits"]) for own in found] == [
        (kind, bits) for kind in ("norm", "convolution", "head") for bits in (8, 2)
    ]
    refused = command("sensitivity", *flags[:-1], "1")
    assert refused.stderr.strip() == "error: examples are at least 2, not 1"
    refused = command("sensitivity", *flags[:3], "1")
    assert "weights are rounded to 2 to 16 bits, not to 1" in refused.stderr
