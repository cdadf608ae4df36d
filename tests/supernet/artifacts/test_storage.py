import pytest

from supernet.artifacts.storage import LINES, StoredLines, beneath, shown
from tests.object_store import object_store


@pytest.fixture(scope="module")
def store():
    with object_store() as running:
        yield running


def lines(*numbers):
    return [f"line {number}".encode() for number in numbers]


@pytest.mark.parametrize(
    ("storage", "expected"),
    [
        ("runs/here", "runs/here/a/b"),
        ("/runs", "/runs/a/b"),
        ("s3://bucket", "s3://bucket/a/b"),
        ("s3://bucket/runs/", "s3://bucket/runs/a/b"),
        ("s3://id:key@bucket/runs?scheme=http&region=x", "s3://id:key@bucket/runs/a/b?scheme=http&region=x"),
        ("file:///runs", "file:///runs/a/b"),
    ],
)
def test_what_lies_beneath_a_storage(storage, expected):
    assert beneath(storage, "a", "b") == expected


def test_messages_show_no_keys():
    assert shown("s3://id:key@bucket/runs?scheme=http") == "s3://bucket/runs"
    assert shown("/runs/here") == "/runs/here"


def test_lines_are_stored_one_by_one_in_whole_objects(store):
    address = store.address("bucket/whole")
    stored = StoredLines(address)
    assert stored.read() == []
    for number in range(2 * LINES + 1):
        stored.append(lines(number))
        if number in (0, 1, LINES - 1, LINES):
            assert StoredLines(address).read() == lines(*range(number + 1))
    assert StoredLines(address).read() == lines(*range(2 * LINES + 1))
    objects = [text for key, text in store.objects.items() if key.startswith("bucket/whole/") and text]
    assert len(objects) == 2 * 2 + 1  # each in two versions, but the last, which has one line
    assert not any("DELETE" in request for request in store.requests)


def test_many_lines_are_stored_at_once(store):
    stored = StoredLines(store.address("bucket/many"))
    before = len(store.requests)
    stored.append(lines(*range(3 * LINES)))
    assert stored.read() == lines(*range(3 * LINES))
    assert sum("jsonl" in request for request in store.requests[before:]) == 3


def test_writers_overwrite_nothing_of_each_other(store):
    address = store.address("bucket/writers")
    first = StoredLines(address)
    first.append(lines(0, 1))
    second = StoredLines(address)
    first.append(lines(2))
    second.append(lines(1, 3))
    assert StoredLines(address).read() == lines(0, 1, 2, 3)


def test_a_write_that_was_torn_loses_nothing_that_was_there(tmp_path):
    """As in a folder, or in HDFS, where an object is not written as a whole."""
    stored = StoredLines(str(tmp_path / "torn"))
    for number in range(3):
        stored.append(lines(number))
    newest = max((tmp_path / "torn").iterdir(), key=lambda path: path.stat().st_size)
    newest.write_bytes(newest.read_bytes()[:3])
    assert StoredLines(str(tmp_path / "torn")).read() == lines(0, 1)


def test_an_unknown_address_is_an_error():
    with pytest.raises(ValueError, match="nowhere://"):
        StoredLines("nowhere://bucket/path")
