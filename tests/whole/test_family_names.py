"""A family is one Python file and one folder of device code: nothing that is shared names it."""

from __future__ import annotations

import re

import pytest
from places import ROOT

from autotune.families import registry

FAMILIES = sorted(registry.families())
FILES = sorted(
    path.relative_to(ROOT) for folder in ("autotune", "tests") for path in (ROOT / folder).rglob("*.py")
)


def names(family: str) -> re.Pattern[str]:
    """Where a source means the family: its name is an ordinary word too, or that of an instruction."""
    quoted = rf"""['"]{family}['"]"""
    text, place = rf"""\b{family}:(?=[\w'"?])""", rf"(?:famil(?:y|ies)|cuda)[./]{family}\b"
    return re.compile(rf"{text}|{place}|\bfamil\w+(?:=| [=!]= |\(?\)?\[){quoted}|Config\.of\({quoted}")


def own(family: str) -> tuple[str, ...]:
    return f"autotune/families/{family}.py", f"tests/families/test_{family}"


@pytest.mark.parametrize("family", FAMILIES)
def test_no_shared_file_names_a_family(family: str) -> None:
    shared = (file for file in FILES if not str(file).startswith(own(family)))
    lines = (
        f"{file}:{number}: {line.strip()}"
        for file in shared
        for number, line in enumerate((ROOT / file).read_text(encoding="utf-8").splitlines(), 1)
        if names(family).search(line)
    )
    assert list(lines) == []


@pytest.mark.parametrize(
    "line",
    [
        'config = "toy:tile_m=16"',
        "from autotune.families.toy import FAMILY",
        'Config.of("toy", tile_m=16)',
        'registry.families()["toy"]',
        'if config.family == "toy":',
        '#include "cuda/toy/toy.cu"',
    ],
)
def test_a_name_is_found(line: str) -> None:
    assert names("toy").search(line)
