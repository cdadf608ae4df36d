"""What a wheel holds, and that it runs without the checkout: with a package of a user's own that is installed, too."""

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
METADATA = ("setup.cfg", "pyproject.toml", "README.md", "LICENSE")
BUILD = "from setuptools import build_meta; build_meta.build_wheel('.')"
OWN = """
from functools import partial

from torch import nn

from supernet import Family, SearchSpace


def build(num_classes, arch, drop_rate=0.0, drop_path_rate=0.0):
    width = arch["width"]
    layers = nn.Conv2d(3, width, 3, stride=4), nn.BatchNorm2d(width), nn.ReLU()
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, num_classes))


def small(num_classes=10):
    return Family(SearchSpace({"width": (4, 8)}), partial(build, num_classes), num_classes=num_classes, input_size=32)
"""
# a process without site: nothing but the paths that it is given, in which the checkout is not
USER = """
import sys
from importlib.metadata import entry_points, version
from pathlib import Path

sys.path += {paths}
import torch

import supernet

assert Path(supernet.__file__).is_relative_to({paths}[0])
assert version("supernet") == supernet.__version__
(main,) = entry_points(group="console_scripts", name="supernet")
sys.argv = ["supernet", *"train --space small --holdout 0.95 --epochs 1 --warmup-epochs 0 --batch-size 32".split()]
sys.argv += "--eval-epochs 0 --workers 0 --output run".split()
try:
    main.load()()
except SystemExit as end:
    assert end.code == 0
run = supernet.load_run("run")
arch, images = run.family.space.smallest, torch.rand(2, 3, 32, 32)
assert torch.equal(run.net(images, arch), run.net.extract(arch)(images))
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder with the wheel's files, and beside them a package of a user's own with a family that has a name."""
    source, folder = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("installed")
    for package in packages():
        shutil.copytree(package, source / package.name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in METADATA:
        shutil.copy(ROOT / name, source)
    # in the build, what setuptools will no longer take is an error
    subprocess.run([sys.executable, "-I", "-W", "error", "-c", BUILD], cwd=source, check=True, capture_output=True)
    (wheel,) = source.glob("supernet-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    (folder / "smallnets.py").write_text(OWN)
    metadata = folder / "smallnets-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: smallnets\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[supernet.families]\nsmall = smallnets:small\n")
    return folder


def packages():
    return [path.parent for path in ROOT.glob("*/__init__.py")]


def test_a_wheel_has_every_file_of_the_packages(installed):
    here = {
        path.relative_to(ROOT)
        for package in packages()
        for path in package.rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    there = {path.relative_to(installed) for path in installed.rglob("*") if path.is_file()}
    assert {path for path in there if path.parts[0] in {package.name for package in packages()}} == here
    assert {Path(package.name, "py.typed") for package in packages()} <= there  # the types that each offers are used


def test_the_wheel_trains_a_family_of_a_users_own_package(installed, tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    paths = [str(installed), *dict.fromkeys(map(sysconfig.get_path, ("purelib", "platlib")))]
    subprocess.run([sys.executable, "-S", "-c", USER.format(paths=paths)], cwd=tmp_path, env=environment, check=True)
