"""The documentation: blocks run, commands have the flags that they take, tables are those of the results.

A page is followed as a reader would, with a shell and a Python session, in a new folder or, where its source says so,
in that of the page it goes on from. Blocks marked `python` and `bash` run as they stand; one that begins with the name
of a file, as `# mine.py`, is that file. Those marked `text` are formulas, and commands for what is not here, a cluster
say: these are parsed by the command that they call, like those in the README and in docstrings.
"""

import ast
import glob
import importlib.util
import itertools
import json
import re
import shlex
import sys
from pathlib import Path

import pytest
import tyro
from PIL import Image

from search.settings import ACCURACY, SCORES
from search.strategies import NAMES
from supernet.training.recipes import RECIPES
from supernet_cli.flags import without_effect
from supernet_cli.main import COMMANDS, module

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
README = ROOT / "README.md"
FIRST = DOCS / "tutorials" / "own_images.md"
PAGES = [page for page in sorted(DOCS.rglob("*.md")) if "_build" not in page.parts]
MODULES = [ROOT / "supernet_cli" / f"{module(name)}.py" for name in COMMANDS]
GOES_ON_FROM = re.compile(r"^<!-- goes on from (\S+) -->$", flags=re.MULTILINE)
BLOCK = re.compile(r"^ *```(\S+)\n(.*?)^ *```$", flags=re.DOTALL | re.MULTILINE)
COMMAND = re.compile(r"^ *(?:torchrun --nproc-per-node \d+ -m supernet_cli|supernet) ([\w-]+)( .*)?$")
FILE = re.compile(r"# (\w+\.py)\n")
SPAN = re.compile(r"`([^`]+)`")

pytestmark = pytest.mark.filterwarnings("ignore")  # timm leaves images to be closed, and Ray its processes


def blocks(page):
    """Kind and text of the blocks that run."""
    return [block for block in BLOCK.findall(page.read_text()) if block[0] in ("python", "bash")]


def commands(text):
    """Each command of ours in `text`: its name, and its arguments as bash makes them."""
    for line in lines(text):
        if found := COMMAND.match(line):
            name, rest = found.groups(default="")
            words = [sorted(glob.glob(word)) or [word] for word in shlex.split(rest, comments=True)]
            yield name, list(itertools.chain(*words))


def lines(text):
    joined = re.sub(r"\\\n\s*", "", text).splitlines()
    return [line for line in joined if line.strip() and not line.strip().startswith("#")]


@pytest.fixture(scope="module")
def follow(command, tmp_path_factory):
    """Run the blocks of a page, unless that was done before; gives the folder that they ran in."""
    folders = {}

    def follow(page):
        if page not in folders:
            before = GOES_ON_FROM.search(page.read_text())
            folder = follow((page.parent / before[1]).resolve()) if before else tmp_path_factory.mktemp(page.stem)
            folders[page] = folder
            with pytest.MonkeyPatch.context() as patch:
                patch.chdir(folder)
                patch.syspath_prepend(folder)  # as in a session that is begun there
                names = {"__name__": "__main__"}
                for kind, text in blocks(page):
                    if file := FILE.match(text):
                        Path(file[1]).write_text(text)
                    elif kind == "python":
                        exec(compile(text, page, "exec"), names)
                    else:
                        called = list(commands(text))
                        assert len(called) == len(lines(text)), f"something else than our commands is called: {text}"
                        for name, arguments in called:
                            result = command(name, *arguments)
                            assert result.returncode == 0, f"{name} {arguments}\n{result.stdout}\n{result.stderr}"
        return folders[page]

    return follow


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)], ids=lambda page: page.stem)
def test_the_blocks_of_a_page_run(follow, page):
    follow(page)


def test_every_block_runs_or_is_marked_as_one_that_does_not():
    for page in PAGES:
        kinds = {kind for kind, _ in BLOCK.findall(page.read_text())}
        assert kinds <= {"python", "bash", "text", "{toctree}"}, page
        if page.parent.name in ("tutorials", "tasks") or page.stem == "cluster":
            assert kinds & {"python", "bash"}, page


def test_the_python_of_the_readme_runs(follow, monkeypatch, capsys):
    monkeypatch.chdir(follow(FIRST))
    names = {"__name__": "__main__", "image": Image.new("RGB", (40, 30))}
    capsys.readouterr()
    for kind, text in BLOCK.findall(README.read_text()):
        assert kind == "python"
        exec(compile(text, README, "exec"), names)
    assert capsys.readouterr().out == "40209024 2142602\n21 architectures\n7538928 MACs\n"
    assert names["logits"].shape == (1, 10)
    (inference,) = (text for _, text in BLOCK.findall(README.read_text()) if "config.transform()" in text)
    for mode in ("1", "L", "LA", "P", "RGBA", "CMYK", "I;16"):
        names["image"] = Image.new(mode, (40, 30))
        exec(compile(inference, README, "exec"), names)


@pytest.fixture
def parse(follow, command, monkeypatch):
    """Run a command until its command line is parsed, and has no flag that nothing reads, which it says by its return
    code, where runs and subnets are."""
    monkeypatch.chdir(follow(FIRST))
    if not Path("runs/digits").exists():
        Path("runs/digits").symlink_to("mine")
    cli = tyro.cli

    def parsed(kind, *, args, config, **settings):
        found = cli(kind, args=args, config=config, **settings)
        unread = without_effect(found, args, omit_prefixes=tyro.conf.OmitArgPrefixes in config)
        sys.exit(next(unread, "parsed"))

    monkeypatch.setattr(tyro, "cli", parsed)
    return command


@pytest.mark.parametrize("path", [README, *PAGES, *MODULES], ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_have_the_flags_of_the_text(parse, path):
    text = ast.get_docstring(ast.parse(path.read_text())) if path.suffix == ".py" else path.read_text()
    for name, arguments in commands(text):
        result = parse(name, *arguments)
        assert result.returncode == "parsed", f"{name} {arguments}\n{result.stderr or result.returncode}"


def test_flags_in_the_text_are_those_of_commands(command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "1000")
    flags = {name: set(re.findall(r"--[\w.-]+", command(name, "--help").stdout)) for name in COMMANDS}
    assert "--evaluations" in flags["search"]
    everywhere = set.union(*flags.values())
    for page in (README, *PAGES):
        for span in SPAN.findall(BLOCK.sub("", page.read_text())):
            named = re.match(r"supernet (\w[\w-]*)", span)
            known = flags[named[1]] if named else everywhere
            if named or span.startswith("--"):
                unknown = set(re.findall(r"(?<!\S)--[\w.-]+", span[named.end() if named else 0 :])) - known
                assert not unknown, f"{page.name}: {span}"


def test_every_strategy_and_every_recipe_is_described():
    strategies = (DOCS / "strategies.md").read_text()
    assert set(re.findall(r"^\| `(\w+)` \|", strategies, flags=re.MULTILINE)) == set(NAMES)
    assert [name for name in SCORES if name != ACCURACY and f"`{name}`" not in strategies] == []
    described = "".join(page.read_text() for page in (README, *PAGES))
    assert [name for name in RECIPES if not re.search(rf"(`|--recipe ){name}\b", described)] == []


def test_messages_of_the_troubleshooting_are_those_of_the_code():
    code = "".join(
        path.read_text()
        for folder in ("supernet", "search", "predictors", "compress", "supernet_cli")
        for path in sorted((ROOT / folder).rglob("*.py"))
    )
    said = re.sub(r'"\s*\n\s*f?"', "", code)  # of lines that are joined
    rows = re.findall(r"^\| (.*?) \|", (DOCS / "troubleshooting.md").read_text(), flags=re.MULTILINE)
    messages = [part.strip() for row in rows for span in SPAN.findall(row) for part in span.split("...")]
    assert len(messages) > 25
    assert [part for part in messages if part and part not in said and not part.endswith(".jsonl")] == []


@pytest.fixture
def build(monkeypatch, tmp_path):
    """docs/conf.py, with packages and results in `tmp_path`."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    spec = importlib.util.spec_from_file_location("conf", ROOT / "docs" / "conf.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "ROOT", tmp_path)
    return module


def filled(build, page):
    source = [page]
    build.fill(None, "page", source)
    return source[0]


def test_tables_are_those_of_the_results(build, tmp_path):
    page = "<!-- results: digits accuracy -->\n<!-- rows: digits -->"
    assert filled(build, page).count("Nothing is recorded here yet") == 2
    result = {
        "command": "python benchmarks/digits.py",
        "date": "2026-01-01",
        "hardware": {"cpu": "A"},
        "summary": {"accuracy": 0.51239, "other": 1},
        "rows": [{"method": "a|b", "n": 1}, {"method": "c", "best": 2.0}],
    }
    (tmp_path / "benchmarks" / "results").mkdir(parents=True)
    (tmp_path / "benchmarks" / "results" / "digits.json").write_text(json.dumps(result))
    lines = filled(build, page).splitlines()
    origin = "*From `python benchmarks/digits.py`, 2026-01-01, on A.*"
    assert lines == [
        *("| figure | value |", "| --- | --- |", "| `accuracy` | 0.5124 |", "", origin),
        *("| method | n | best |", "| --- | --- | --- |", "| a\\|b | 1 |  |", "| c |  | 2 |", "", origin),
    ]


def test_the_reference_has_every_command_and_option_of_a_space(build):
    text = filled(build, "<!-- commands: all -->")
    assert [name for name in COMMANDS if f"## supernet {name}\n" not in text] == []
    assert "--evaluations" in text
    text = filled(build, "<!-- spaces: all -->")
    assert "| `width_mult` | `float` | `1.0` |" in text
    assert "num_classes" not in text.partition("## from_timm")[0]


def test_the_reference_names_every_public_module(build, tmp_path):
    for name in ("__init__", "space", "_private", "empty", "families/resnet"):
        path = tmp_path / "supernet" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("" if name == "empty" else '"""Something."""\n')
    text = filled(build, "<!-- reference: supernet -->")
    names = [line.removeprefix(".. automodule:: ") for line in text.splitlines() if line.startswith("..")]
    assert names == ["supernet", "supernet.families.resnet", "supernet.space"]


def test_what_is_added_fits_in_a_file():
    text = (DOCS / "extending.md").read_text()
    assert max(len(block.splitlines()) for _, block in BLOCK.findall(text)) <= 100


def test_the_files_that_the_tour_names_are_there():
    tour = (DOCS / "architecture.md").read_text()
    named = re.findall(r"`([a-z_]+(?:/[a-z_]+)*/(?:[a-z_]+\.py)?)`", tour)
    assert len(named) > 20
    assert [
        name
        for name in named
        if not any((ROOT / base / name).exists() for base in ("", "supernet", "supernet/training", "search"))
    ] == []
