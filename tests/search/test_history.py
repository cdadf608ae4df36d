import json

import pytest

from search.history import Evaluation, History, best_archs, read_history, write_history
from supernet.space import Arch
from tests.object_store import object_store

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


@pytest.fixture(scope="module")
def store():
    with object_store() as running:
        yield running


def widths(history):
    return sorted(arch["width"] for arch in history.past)


def test_a_search_whose_machine_is_lost_goes_on_from_the_object_store(store, tmp_path):
    storage = store.address("bucket/lost")
    history = History(tmp_path / "here.jsonl", SETTINGS, storage=storage)
    for width in (1, 2):
        history.append(evaluation(width))
    with pytest.raises(ValueError, match=r"^s3://bucket/lost exists already"):
        History(tmp_path / "there.jsonl", SETTINGS, storage=storage)
    with History(tmp_path / "there.jsonl", SETTINGS, resume=True, storage=storage) as resumed:
        assert widths(resumed) == [1, 2]
        history.append(evaluation(3))  # it was not lost
        resumed.append(evaluation(4))
    history.close()
    with History(tmp_path / "again.jsonl", SETTINGS, resume=True, storage=storage) as again:
        assert widths(again) == [1, 2, 3, 4]
    assert len(read_history(tmp_path / "again.jsonl")[1]) == 4


def test_what_could_not_be_stored_is_in_the_file_and_is_stored_later(store, tmp_path):
    storage = store.address("bucket/refused")
    path = tmp_path / "history.jsonl"
    with History(path, SETTINGS, storage=storage) as history:
        history.append(evaluation(1))
        store.refuses = lambda key: "refused" in key
        with pytest.raises(OSError, match="AccessDenied"):
            history.append(evaluation(2))
    store.refuses = lambda key: False
    with History(path, SETTINGS, resume=True, storage=storage) as history:
        assert widths(history) == [1, 2]
    with History(tmp_path / "elsewhere.jsonl", SETTINGS, resume=True, storage=storage) as history:
        assert widths(history) == [1, 2]
    assert (tmp_path / "elsewhere.jsonl").read_bytes() == path.read_bytes()


def test_another_search_in_the_object_store_is_named(store, tmp_path):
    storage = store.address("bucket/another")
    with History(tmp_path / "one.jsonl", SETTINGS, storage=storage) as history:
        history.append(evaluation(1))
    with pytest.raises(ValueError, match=r"s3://bucket/another is .* another search: its space is 'abc'"):
        History(tmp_path / "other.jsonl", SETTINGS | {"space": "xyz"}, resume=True, storage=storage)


def test_a_storage_with_no_more_than_the_header_is_resumed(store, tmp_path):
    storage = store.address("bucket/header")
    History(tmp_path / "one.jsonl", SETTINGS | {"batch_size": 1}, storage=storage).close()
    anew = SETTINGS | {"batch_size": 2}
    with History(tmp_path / "two.jsonl", anew, True, ("batch_size",), storage) as history:
        history.append(evaluation(1))
    with History(tmp_path / "two.jsonl", anew, True, ("batch_size",), storage) as history:
        assert widths(history) == [1]


def test_without_a_storage_the_file_is_all_that_there_is(tmp_path):
    for name in ("one", "two"):
        storage = str(tmp_path / "stored") if name == "two" else None
        with History(tmp_path / f"{name}.jsonl", SETTINGS, storage=storage) as history:
            for width in range(70):
                history.append(evaluation(width))
    assert (tmp_path / "one.jsonl").read_bytes() == (tmp_path / "two.jsonl").read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"one.jsonl", "two.jsonl", "stored"}


def test_a_score_that_is_no_number_is_no_best(tmp_path):
    path, nan = tmp_path / "history.jsonl", float("nan")
    scores = [nan, 0.2, 0.9, nan, 0.5]
    evaluations = [Evaluation(Arch({"width": w}), {"accuracy": s}, {}, 0) for w, s in enumerate(scores)]
    write_history(path, SETTINGS, evaluations)
    assert [arch["width"] for arch in best_archs(path, 5)] == [2, 4, 1]
    write_history(path, SETTINGS, evaluations[:1])
    with pytest.raises(ValueError, match="holds no architecture with a score"):
        best_archs(path, 1)
