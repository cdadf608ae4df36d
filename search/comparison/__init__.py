"""Every strategy by one yardstick: searches by scores of their own hand in what they found, and all of it is judged
alike."""

from search.comparison.entries import entry_settings
from search.comparison.handed_in import HandedIn, handed_in
from search.comparison.judging import judged, on_workers
from search.comparison.results import MEASURED, with_values, write_comparison
from search.comparison.standings import standings
from search.comparison.yardsticks import Yardstick, by_supernet, by_table, trained_alone

__all__ = [
    "MEASURED",
    "HandedIn",
    "Yardstick",
    "by_supernet",
    "by_table",
    "entry_settings",
    "handed_in",
    "judged",
    "on_workers",
    "standings",
    "trained_alone",
    "with_values",
    "write_comparison",
]
