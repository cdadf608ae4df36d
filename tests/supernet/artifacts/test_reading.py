import gzip
import re
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, NotRequired, TypedDict

import pytest

from supernet.artifacts.reading import (
    numbered_rows,
    parse_json,
    parse_lines,
    read_columns,
    read_json,
    read_rows,
    typed,
    typed_arguments,
)


class Point(NamedTuple):
    x: float
    y: float = 0.0


class Entry(TypedDict):
    name: str
    note: NotRequired[str | None]


@dataclass(frozen=True)
class Settings:
    steps: int
    rate: float = 0.1
    mode: Literal["fast", "slow"] = "fast"
    sizes: tuple[int, ...] = ()
    pair: tuple[float, str] | None = None
    points: tuple[Point, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)
    flag: bool = False

    def __post_init__(self):
        if self.steps < 1:
            raise ValueError(f"steps is at least 1, not {self.steps}")


def test_json_becomes_what_annotations_say():
    text = '{"steps": 2, "rate": 1, "sizes": [1, 2], "pair": [0.5, "a"], "points": [{"x": 1.5}], "options": {"a": []}}'
    expected = Settings(2, 1, "fast", (1, 2), (0.5, "a"), (Point(1.5),), {"a": []})
    assert parse_json(text, Settings) == expected
    assert parse_json('{"name": "a", "more": 1}', Entry) == {"name": "a", "more": 1}
    assert parse_json('{"name": "a", "note": null}', Entry) == {"name": "a", "note": None}
    assert typed(dict[str, list[float]], {"a": [1, 2.5]}) == {"a": [1, 2.5]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "it is no JSON"),
        ("[]", "it is an object, not []"),
        ("[" * 100_000, "it is nested too deeply"),
        (b"\xff", "it is no text in UTF-8 (byte 0)"),
        ("{}", "missing 1 required positional argument: 'steps'"),
        ('{"steps": true}', "steps is an integer, not True"),
        ('{"steps": 1.5}', "steps is an integer, not 1.5"),
        ('{"steps": 0}', "steps is at least 1, not 0"),
        ('{"steps": 1, "rate": "a"}', "rate is a number, not 'a'"),
        ('{"steps": 1, "mode": "quick"}', "mode is one of 'fast', 'slow', not 'quick'"),
        ('{"steps": 1, "mode": []}', "mode is one of"),
        ('{"steps": 1, "sizes": [1, "2"]}', "sizes[1] is an integer, not '2'"),
        ('{"steps": 1, "pair": [1]}', "pair is a list of 2, not [1]"),
        ('{"steps": 1, "pair": 1}', "pair is a list or null, not 1"),
        ('{"steps": 1, "points": [{"x": 1, "z": 2}]}', "points[0] has 'z', which no Point of this version has"),
        ('{"steps": 1, "points": [{"x": null}]}', "points[0].x is a number, not None"),
        ('{"steps": 1, "options": []}', "options is an object, not []"),
        ('{"steps": 1, "rate": 1%s}' % ("0" * 400), "a number beyond all that occur"),
        ('{"steps": 1, "flag": 1}', "flag is true or false, not 1"),
    ],
)
def test_other_json_is_refused_in_a_line_that_names_what_is_wrong(text, message):
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        parse_json(text, Settings)
    assert "\n" not in str(error.value)


def test_entries_that_are_missing_or_of_another_type_are_named():
    for value, message in (({}, "it has no 'name'"), ({"name": 1}, "name is a string, not 1")):
        with pytest.raises(ValueError, match=message):
            typed(Entry, value)


def test_files_are_named(tmp_path):
    path = tmp_path / "file.json"
    with pytest.raises(ValueError, match=r"file\.json is no settings: No such file"):
        read_json(path, Settings, "settings")
    path.write_text('{"steps": 1}\n{"steps": "x"}\n')
    with pytest.raises(ValueError, match=r"file\.json is no settings: it is no JSON"):
        read_json(path, Settings, "settings")
    with pytest.raises(ValueError, match=r"file\.json, line 2, is damaged \(steps is an integer, not 'x'\)"):
        parse_lines(path.read_bytes().splitlines(), Settings, path)


def test_rows_are_read_and_bad_ones_named(tmp_path):
    path, packed = tmp_path / "rows.csv", tmp_path / "rows.csv.gz"
    path.write_bytes(b'a,b\n1,"x, y"\n2\n3,unfini')
    packed.write_bytes(gzip.compress(path.read_bytes()))
    rows = [{"a": "1", "b": "x, y"}, {"a": "2", "b": ""}]
    assert read_rows(path, ("a", "b"), whole_lines=True) == rows
    assert read_rows(packed) == [*rows, {"a": "3", "b": "unfini"}]
    with pytest.raises(ValueError, match="has no column 'c', it needs a and c and has 'a, b'"):
        read_rows(path, ("a", "c"))
    packed.write_bytes(packed.read_bytes()[:-9])
    for content, message in ((b"a\n1,2\n", "line 2, has more cells"), (b"a\n\xff\n", "no text in UTF-8")):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=message):
            read_rows(path)
    with pytest.raises(ValueError, match=r"rows\.csv\.gz cannot be read"):
        read_rows(packed)


def test_rows_have_the_lines_that_they_end_in(tmp_path):
    path = tmp_path / "rows.tsv"
    path.write_bytes('\ufeffa\tb\r\n"x\ny"\t1\r\n\r\nz\t'.encode())  # as a spreadsheet writes it
    rows = [(3, {"a": "x\ny", "b": "1"}), (5, {"a": "z", "b": ""})]
    assert list(numbered_rows(path, ("a",), delimiter="\t", complete=True)) == rows
    assert list(numbered_rows(path, delimiter="\t", whole_lines=True)) == rows[:1]
    path.write_text("a,b")
    assert (read_columns(path), read_columns(path, whole_lines=True)) == (["a", "b"], [])
    path.write_text(f"a\n{'x' * 200_000}\n")
    assert len(read_rows(path)[0]["a"]) == 200_000


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a,b\n1,2\n3\n", "line 3, has fewer cells than there are columns"),
        (b"a,b\n1,2,3\n", "line 2, has more cells"),
        (b'a,b\n"1,2\n3,4\n', "line 3: unexpected end of data"),
        (b"a,a\n1,2\n", "has the column 'a' twice"),
        (b"a,b\n1,2\n\xff,2\n", r"is no text in UTF-8 \(line 1 or beyond\)"),
        (b"", "has no column 'a', it needs a and has ''"),
        (None, "cannot be read: No such file"),
    ],
)
def test_a_malformed_table_is_one_line_that_names_the_file(tmp_path, content, message):
    path = tmp_path / "rows.csv"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        list(numbered_rows(path, ("a",), complete=True))
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)


def test_arguments_are_as_their_function_says():
    def function(width: float, kinds: tuple[str, ...] = (), other=None):
        return width, kinds, other

    assert typed_arguments(function, {"width": 2, "kinds": ["a"], "other": [1], "unknown": 3}) == {
        "width": 2, "kinds": ("a",), "other": [1], "unknown": 3,
    }  # fmt: skip
    with pytest.raises(ValueError, match="width is a number, not 'wide'"):
        typed_arguments(function, {"width": "wide"})
