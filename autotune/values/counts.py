"""Counts in messages: `1 problem`, `2 problems`."""


def counted(count: int, noun: str) -> str:
    """The count and its noun, which is given for one: `counted(2, "process")` is `2 processes`."""
    plural = f"{noun}es" if noun.endswith("s") else f"{noun}s"
    return f"{count} {noun if count == 1 else plural}"
