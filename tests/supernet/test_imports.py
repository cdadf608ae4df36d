"""What `import supernet` needs, and what it offers."""

import configparser
import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

import supernet

ROOT = Path(__file__).parents[2]
SUBNET = """
import torch
from torch import nn
from supernet import Arch, Choice, Family, SearchSpace, Supernet, load_run, load_subnet

space = SearchSpace({"width": Choice((2, 4))})
build = lambda arch: nn.Sequential(nn.Conv2d(3, arch["width"], 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
images, arch = torch.rand(2, 3, 8, 8), Arch({"width": 2})
net = Family(space, build, num_classes=4, input_size=8).supernet()
assert torch.equal(net(images, arch), net.extract(arch)(images))
try:
    load_run("nowhere")
except ValueError as error:
    print(error)
"""


def python(code, without):
    """Run code in a process in which importing any of the modules `without` fails."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    code = f"import sys; sys.modules.update(dict.fromkeys({without}))\n" + code
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)


def test_a_subnet_runs_by_torch_timm_and_numpy_alone():
    others = ("ray", "pymoo", "matplotlib", "tyro", "rich", "scipy", "sklearn", "onnx", "onnxruntime", "plotly")
    result = python(SUBNET, others)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith("nowhere is no directory of a training run")


def test_the_packages_need_no_cluster_no_plots_and_no_command_line():
    code = "import search.run, search.sweep, search.parallel, search.report, search.report.plot, predictors, netaug"
    result = python(code, ("ray", "pymoo", "matplotlib", "tyro", "rich"))
    assert (result.returncode, result.stderr) == (0, "")


def test_search_spaces_need_neither_torch_nor_timm():
    code = "from supernet import SearchSpace; print(SearchSpace({'width': (2, 4)}).size)"
    result = python(code, ("torch", "timm"))
    assert (result.stdout, result.stderr) == ("2\n", "")


def test_workers_of_scores_that_look_values_up_need_neither_torch_nor_timm():
    code = """
from search.evaluator import RayWorker
from supernet import Arch

worker = RayWorker({"width": lambda archs: [arch["width"] for arch in archs]}, 1, "cpu")
print(worker.evaluate([Arch({"width": 2})])[0].scores)
"""
    result = python(code, ("torch", "timm", "pymoo"))
    assert (result.stdout, result.stderr) == ("{'width': 2.0}\n", "")


@pytest.mark.parametrize("package", ["supernet", "supernet.artifacts", "supernet.families", "search", "predictors"])
def test_what_a_package_offers_is_there(package):
    module = importlib.import_module(package)
    assert len({id(getattr(module, name)) for name in module.__all__}) == len(module.__all__)


def test_a_name_that_is_not_offered_is_an_error():
    with pytest.raises(AttributeError, match="module 'supernet' has no attribute 'supernett'"):
        _ = supernet.supernett


def test_every_package_of_the_checkout_is_installed():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    included = setup["options.packages.find"]["include"].split()
    packages = {path.parent.relative_to(ROOT) for path in ROOT.glob("*/__init__.py")}
    assert {f"{package}*" for package in map(str, packages)} == set(included)
    unfit = [
        path for top in packages for path in (ROOT / top).rglob("*.py") if not (path.parent / "__init__.py").exists()
    ]
    assert unfit == []
