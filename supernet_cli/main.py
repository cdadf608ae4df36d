"""The command `supernet`: finds the subcommand, and imports no other."""

from __future__ import annotations

import ast
import importlib
import sys
from pathlib import Path
from typing import NoReturn

from supernet import __version__

# a module of this package each, its name with _ for -; in the order of the work
COMMANDS = (
    "doctor",
    "quickstart",
    "check-images",
    "train",
    "measure-latency",
    "fit-latency",
    "predict-latency",
    "compare-devices",
    "diagnose",
    "search",
    "sweep",
    "sweep-trainings",
    "report",
    "dashboard",
    "extract",
    "export",
    "prune",
    "quantise",
    "sensitivity",
    "exits",
    "finetune",
    "compress",
    "pipeline",
    "train-standalone",
    "train-netaug",
    "train-ensemble",
    "synthesise",
    "find-ticket",
    "evaluate",
    "predict",
    "zero-cost",
    "serve",
)


def main() -> NoReturn:
    """The command line `supernet COMMAND ...`; one line and exit code 2 where there is no such command."""
    words = sys.argv[1:]
    if words and words[0] in COMMANDS:
        sys.argv[:2] = [f"supernet {words[0]}"]  # what the command's help and the records of its results call it
        run_command(words[0])
    if words in ([], ["-h"], ["--help"]):
        print(usage())
        sys.exit(0 if words else 2)
    if words == ["--version"]:
        print(f"supernet {__version__}")
        sys.exit(0)
    print(f"error: there is no command {words[0]!r}; the commands are {', '.join(COMMANDS)}", file=sys.stderr)
    sys.exit(2)


def run_script(name: str, path: str) -> NoReturn:
    """Run a command for the script at `path`, as its command line is.

    Python looks for modules beside a script first, where search.py would hide the package of that name.
    """
    folder = Path(path).resolve().parent
    sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != folder]
    run_command(name)


def run_command(name: str) -> NoReturn:
    """Run a command with the arguments in sys.argv, and exit."""
    from supernet_cli.command_line import run_and_exit

    run_and_exit(importlib.import_module(f"supernet_cli.{module(name)}").main)


def usage() -> str:
    width = max(map(len, COMMANDS))
    lines = (f"  {name:{width}}  {summary(name)}" for name in COMMANDS)
    return "\n".join(
        [
            "usage: supernet COMMAND [flags]",
            "",
            "One-shot neural architecture search: one supernet, the best subnet for each device.",
            "",
            *lines,
            "",
            "supernet COMMAND --help shows what it does, and each flag with its unit and default.",
            "supernet --version says which version this is.",
        ]
    )


def summary(name: str) -> str:
    """The first line of a command's docstring, read without importing what the command needs."""
    source = Path(__file__).with_name(f"{module(name)}.py").read_text(encoding="utf-8")
    return (ast.get_docstring(ast.parse(source)) or "").partition("\n")[0]


def module(name: str) -> str:
    return name.replace("-", "_")
