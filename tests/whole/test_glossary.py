"""The glossary and the code use the same words, and one name means one thing."""

from __future__ import annotations

import ast
import re
from collections import defaultdict

from places import ROOT

import autotune
from autotune.families import registry

GLOSSARY = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")
WORDS = {
    word.strip()
    for line in GLOSSARY.splitlines()
    if line.startswith("| ")
    for word in line.split("|")[1].split(",")
}


def classes(folder: str) -> dict[str, list[str]]:
    """The public classes of a folder's files, by name with their files."""
    found = defaultdict(list)
    for path in sorted((ROOT / folder).rglob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                found[node.name].append(str(path.relative_to(ROOT)))
    return found


def test_no_two_classes_have_one_name() -> None:
    assert {name: files for name, files in classes("autotune").items() if len(files) > 1} == {}


def test_what_is_stored_and_said_everywhere_is_a_word() -> None:
    """The values that every room knows, errors aside, and the classes that users meet."""
    names = {name for name in classes("autotune/values") if not name.endswith(("Error", "Lost"))}
    names |= {name for name in autotune.__all__ if name[0].isupper()} - {"AutotuneError"}
    assert sorted(name for name in names if name.lower() not in WORDS and f"`{name}`" not in GLOSSARY) == []


def test_the_families_are_those_that_there_are() -> None:
    (line,) = (line for line in GLOSSARY.splitlines() if line.startswith("| family |"))
    assert set(re.findall(r"`(\w+)`", line)) == set(registry.families())
