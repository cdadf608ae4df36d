"""The Python in the README runs as it stands there."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).parent.parent / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)


def test_the_own_model_is_trained(tmp_path):
    model, training = (block for block in BLOCKS if "def build(arch)" in block or "family = Family(" in block)
    block = model + training.replace('Path("runs/own")', f"Path({str(tmp_path)!r})")
    result = subprocess.run([sys.executable, "-W", "error", "-c", block], capture_output=True, text=True)
    assert result.stderr == ""
    assert result.stdout == "21 architectures\n7538928 MACs\n"
    assert (tmp_path / "metrics.jsonl").exists()


@pytest.mark.parametrize(
    ("heading", "expected"), [("family = FAMILIES", "40209024 2142602\n"), ("def build(arch)", "21 architectures\n")]
)
def test_a_block_runs_and_prints(heading, expected):
    (block,) = (block for block in BLOCKS if heading in block)
    result = subprocess.run([sys.executable, "-W", "error", "-c", block], capture_output=True, text=True)
    assert result.stderr == ""
    assert result.stdout == expected
