"""Search of a trained supernet for the best architectures: what is searched and how, the history, and its front."""

from typing import TYPE_CHECKING

from supernet.imports import lazily

if TYPE_CHECKING:
    from search.evaluator import evaluate_here
    from search.history import Evaluation, History, read_history
    from search.loop import Result, Strategy, ask_and_tell
    from search.problem import Problem
    from search.run import run_search
    from search.settings import SearchJob
    from search.strategies import STRATEGIES, make_strategy

__all__ = [
    "STRATEGIES",
    "Evaluation",
    "History",
    "Problem",
    "Result",
    "SearchJob",
    "Strategy",
    "ask_and_tell",
    "evaluate_here",
    "make_strategy",
    "read_history",
    "run_search",
]

__getattr__ = lazily(
    __name__,
    {
        "search.evaluator": ["evaluate_here"],
        "search.history": ["Evaluation", "History", "read_history"],
        "search.loop": ["Result", "Strategy", "ask_and_tell"],
        "search.problem": ["Problem"],
        "search.run": ["run_search"],
        "search.settings": ["SearchJob"],
        "search.strategies": ["STRATEGIES", "make_strategy"],
    },
)
