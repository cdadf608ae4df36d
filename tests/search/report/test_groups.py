from pathlib import Path

import pytest

from search.report.groups import distinct_names, groups
from search.report.sources import Search


def search(folder, strategy="evolution", run="run", trial=None, **settings):
    history = Path(folder) / "search.jsonl"
    settings = {"strategy": strategy, **settings}
    return Search(folder, Path(folder), history, settings, (), Path(run), trial or {})


@pytest.mark.parametrize(
    ("searches", "expected"),
    [
        ([], ([], [])),
        ([search("a")], (["a"], [0])),
        ([search("a"), search("b")], (["a", "b"], [0, 1])),
        ([search("a", seed=0), search("b", seed=1)], (["a", "b"], [0, 1])),
        ([search("a", seed=0), search("b", seed=1), search("c", "random")], (["evolution", "random"], [0, 0, 1])),
        ([search("a"), search("b", run="other"), search("c", run="other", seed=1)], (["a", "b"], [0, 1, 1])),
        (
            [search("a", images=1), search("b", images=2), search("c", "random")],
            (["a (evolution)", "b (evolution)", "random"], [0, 1, 2]),
        ),
        (
            [search("a", trial={"strategy": "x", "seed": seed, "device": "d"}) for seed in range(2)]
            + [search("a", trial={"strategy": "y", "seed": 0, "device": "d"})],
            (["x", "y"], [0, 0, 1]),
        ),
    ],
)
def test_searches_that_differ_in_their_seed_alone_belong_together(searches, expected):
    assert groups(searches) == expected


def test_folders_of_one_name_are_told_apart(tmp_path):
    folders = [tmp_path / name for name in ("a/search", "b/search", "c/d/search", "e/d/search", "other")]
    names = list(distinct_names(folders).values())
    assert names == ["a/search", "b/search", "c/d/search", "e/d/search", "other"]
    assert distinct_names([tmp_path, tmp_path]) == {tmp_path: tmp_path.name}
