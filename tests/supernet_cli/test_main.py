"""The command `supernet`: what it lists, what it refuses, and the scripts that are shells over it."""

import ast
import errno
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from supernet import __version__
from supernet.artifacts import provenance
from supernet_cli import report
from supernet_cli.main import COMMANDS, module, summary

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "timm", "ray", "tyro", "rich")


def test_help_lists_every_command_and_imports_none():
    code = (
        "import sys; from supernet_cli.main import main; sys.argv = ['supernet', '--help']\n"
        "try: main()\n"
        f"finally: assert not set(sys.modules) & set({HEAVY}), sorted(sys.modules)"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False, cwd="/"
    )
    assert (result.returncode, result.stderr) == (0, "")
    listed = re.findall(r"^  ([\w-]+) +(\S.*)$", result.stdout, flags=re.MULTILINE)
    assert listed == [(name, summary(name)) for name in COMMANDS]
    assert all(line.endswith(".") for _, line in listed)


def test_every_module_with_a_main_is_a_command():
    found = {path.stem for path in (ROOT / "supernet_cli").glob("*.py") if "\ndef main()" in path.read_text()}
    assert found - {"main"} == set(map(module, COMMANDS))


def test_version_and_usage(command):
    assert command("--version").stdout == f"supernet {__version__}\n"
    assert command("-h").stdout.startswith("usage: supernet COMMAND")


@pytest.mark.parametrize("words", [["serch"], ["--verbose", "search"]])
def test_an_unknown_command_is_one_line(command, words):
    result = command(*words)
    assert result.returncode == 2
    assert f"there is no command {words[0]!r}; the commands are doctor, " in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_result_records_the_command_as_it_is_typed(command, monkeypatch):
    monkeypatch.setattr(report, "main", lambda: print(provenance.command()))
    assert command("report", "runs/mine", "--title", "a").stdout == "supernet report runs/mine --title a\n"


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS])
def test_a_place_that_may_not_be_used_is_one_line(command, monkeypatch, number):
    def main():
        raise OSError(number, os.strerror(number), "there/report.html")

    monkeypatch.setattr(report, "main", main)
    result = command("report", "runs/mine")
    said = f"error: there/report.html may not be used ({os.strerror(number)}): name another place, or change its rights"
    assert (result.returncode, result.stderr) == (1, f"{said}\n")


def test_every_script_is_a_shell_over_one_command():
    called = []
    for path in sorted((ROOT / "scripts").iterdir()):
        docstring, imports, condition = ast.parse(path.read_text()).body
        assert ast.unparse(imports) == "from supernet_cli.main import run_script"
        (call,) = re.findall(r"run_script\('([\w-]+)', __file__\)", ast.unparse(condition))
        assert module(call) in (path.stem, path.stem.removesuffix("_supernet"))
        assert docstring.value.value.startswith(f"`supernet {call}` ")
        called.append(call)
    assert sorted(called) == sorted(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_can_be_asked_for_help(command, name):
    result = command(name, "--help")
    assert (result.returncode, result.stderr) == (0, "")
    assert summary(name)[:30] in result.stdout
