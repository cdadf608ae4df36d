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


def test_what_fails_before_the_first_evaluation_leaves_nothing(tmp_path):
    path = tmp_path / "out" / "history.jsonl"
    with pytest.raises(KeyError), History(path, SETTINGS):
        raise KeyError
    assert not path.parent.exists()

    def interrupted():
        with History(path, SETTINGS) as history:
            history.append(evaluation(1))
            raise KeyError

    with pytest.raises(KeyError):
        interrupted()
    assert [entry.arch["width"] for entry in read_history(path)[1]] == [1]
    assert [file.name for file in path.parent.iterdir()] == ["history.jsonl"]
    with History(path, SETTINGS, resume=True):
        assert [file.name for file in sorted(path.parent.iterdir())] == [".history.jsonl.lock", "history.jsonl"]


def test_how_a_search_is_executed_may_be_said_anew(tmp_path):
    path = tmp_path / "history.jsonl"
    begun = {"batch_size": 500, "dna": {"workers": 0, "lr": 1.0}, "seed": 0}
    with History(path, begun) as history:
        history.append(evaluation(1))
    free = ("batch_size", "dna.workers", "dna.device")
    anew = {"batch_size": 50, "dna": {"workers": 2, "lr": 1.0, "device": "cpu"}, "seed": 0}
    with History(path, anew, resume=True, said_anew=free) as history:
        assert len(history.past) == 1
    with pytest.raises(ValueError, match=r"another search: its dna is \{'lr': 1.0\}, not \{'lr': 2.0\}$"):
        History(path, {**anew, "dna": {"lr": 2.0}}, resume=True, said_anew=free)
