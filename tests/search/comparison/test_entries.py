import pytest

from search.comparison import entry_settings
from search.settings import SearchJob


@pytest.mark.parametrize(
    ("entry", "searches_by", "score", "names"),
    [
        ("random", "random", "accuracy", None),
        ("accuracy", "evolution", "accuracy", None),
        ("rdm", "evolution", "rdm", None),
        ("dna", None, "dna", None),
        ("evolution:dna", "evolution", "dna", None),
        ("macs", "evolution", "zero_cost", ("macs",)),
        ("local:ntk", "local", "zero_cost", ("ntk",)),
        ("vote", "evolution", "zero_cost", ("vote",)),
    ],
)
def test_an_entry_is_a_strategy_a_score_or_both(entry, searches_by, score, names):
    job = SearchJob(**entry_settings(entry))
    assert (job.searches_by, job.score) == (searches_by, score)
    assert job.zero_cost == (names or SearchJob.zero_cost)


@pytest.mark.parametrize("entry", ["flops", "", "random:", "random:evolution"])
def test_an_unknown_score_is_named(entry):
    score = entry.rpartition(":")[2]
    with pytest.raises(ValueError, match=f"there is no strategy and no score '{score}'; the strategies are evolution,"):
        entry_settings(entry)


def test_an_unknown_strategy_is_named():
    with pytest.raises(ValueError, match="there is no strategy 'annealing'"):
        entry_settings("annealing:dna")
