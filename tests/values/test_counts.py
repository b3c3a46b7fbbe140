"""One grammar for counts: no message makes a plural of its own."""

from __future__ import annotations

import ast
import re

import pytest
from places import ROOT

from autotune.values.counts import counted

NOUNS = (
    "bench|config|database|day|device|GPU|job|kernel|layer|line|linear|model|problem|process|record|round"
    "|row|scale|shard|thread|trial|warning|worker"
)
PACKAGE = ROOT / "autotune"
PLURAL = re.compile(rf" (?:(?!of|with)[a-z0-9]+ )?(?:{NOUNS})(?:e?s)\b")
# Nothing that can be one: a warp's rows, a tile's limit, the rest of a fraction.
ALLOWED = {
    "executors/local.py": " configs of ",
    "console/progress.py": " configs of ",
    "schemes/int4.py": " scales are NaN or infinite",
}


@pytest.mark.parametrize(
    ("count", "noun", "text"),
    [
        (0, "job", "0 jobs"),
        (1, "job", "1 job"),
        (2, "int4 linear", "2 int4 linears"),
        (1, "process", "1 process"),
        (12, "process", "12 processes"),
    ],
)
def test_counted(count: int, noun: str, text: str) -> None:
    assert counted(count, noun) == text


def test_no_message_has_a_plural_of_its_own() -> None:
    found = []
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.JoinedStr):
                continue
            for value, text in zip(node.values, node.values[1:], strict=False):
                if isinstance(value, ast.FormattedValue) and isinstance(text, ast.Constant):
                    plural = PLURAL.match(str(text.value))
                    name = str(path.relative_to(PACKAGE))
                    if plural and not str(text.value).startswith(ALLOWED.get(name, "\0")):
                        found.append(f"{name}:{node.lineno}: {plural[0].strip()}")
    assert not found, "say counted(n, noun)"
