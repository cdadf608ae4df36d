"""What an error that comes from elsewhere says, in the one line that users see."""

from __future__ import annotations


def first_line(error: BaseException) -> str:
    """What an error says first, up to the end of the line that it announces with a colon, or its type if it says
    nothing."""
    if isinstance(error, KeyError):  # which says the key alone
        return f"there is no {error}"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return " ".join(lines[: 2 if lines[0].endswith(":") else 1])


class Unattainable(ValueError):
    """Nothing keeps within the limits that were asked for."""
