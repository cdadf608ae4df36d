"""A report of searches and sweeps to look at: one HTML file that needs nothing else, and figures for papers."""

from search.report.figures import write_figures
from search.report.page import write_report

__all__ = ["write_figures", "write_report"]
