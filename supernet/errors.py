"""What an error that comes from elsewhere says, in the one line that users see."""

from __future__ import annotations


def first_line(error: BaseException) -> str:
    """What an error says first, or its type if it says nothing."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
