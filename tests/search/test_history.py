import json

import pytest

from search.history import Evaluation, History, read_history
from supernet.space import Arch

SETTINGS = {"space": "abc", "limits": {"macs": 1.0}, "objectives": ("accuracy",)}


def evaluation(width, error=None):
    return Evaluation(Arch({"width": width}), {} if error else {"accuracy": 0.1 * width}, {"macs": width}, 0, error)


def test_what_was_appended_is_read_again(tmp_path):
    path = tmp_path / "a" / "history.jsonl"
    with History(path, SETTINGS) as history:
        for width in (1, 2):
            history.append(evaluation(width))
        history.append(evaluation(3, "ValueError: no"))
    settings, evaluations = read_history(path)
    assert settings == json.loads(json.dumps(SETTINGS))
    assert evaluations == [evaluation(1), evaluation(2), evaluation(3, "ValueError: no")]
    with History(path, SETTINGS, resume=True) as history:
        assert list(history.past.values()) == evaluations


@pytest.mark.parametrize("kept", [0, 5, -1, -20])
def test_an_unfinished_line_is_dropped(tmp_path, kept):
    path = tmp_path / "history.jsonl"
    with History(path, SETTINGS) as history:
        history.append(evaluation(1))
        history.append(evaluation(2))
    path.write_bytes(path.read_bytes()[:kept])
    with History(path, SETTINGS, resume=True) as history:
        assert list(history.past) == ([Arch({"width": 1})] if kept < 0 else [])
        history.append(evaluation(3))
    widths = [e.arch["width"] for e in read_history(path)[1]]
    assert widths == ([1, 3] if kept < 0 else [3])


def test_a_line_is_in_the_file_as_soon_as_it_is_appended(tmp_path):
    path = tmp_path / "history.jsonl"
    with History(path, SETTINGS) as history:
        for width in (1, 2):
            history.append(evaluation(width))
            assert read_history(path)[1][-1] == evaluation(width)


def test_another_search_is_named(tmp_path):
    path = tmp_path / "history.jsonl"
    History(path, SETTINGS).close()
    with pytest.raises(ValueError, match=r"another search: its space is 'abc', not 'xyz'$"):
        History(path, SETTINGS | {"space": "xyz"}, resume=True)
    with pytest.raises(ValueError, match="exists already"):
        History(path, SETTINGS)


def test_damage_is_named(tmp_path):
    path = tmp_path / "history.jsonl"
    with History(path, SETTINGS) as history:
        history.append(evaluation(1))
    path.write_text(path.read_text() + '{"arch": {}}\n')
    with pytest.raises(ValueError, match="line 3, is damaged"):
        read_history(path)
    path.write_text('{"something": "else"}\n')
    with pytest.raises(ValueError, match="is no search history"):
        read_history(path)
