"""The architecture as a test: a file imports only from lower floors, and big packages only where allowed."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from places import ROOT

# Bottom up; a room imports from lower ones only, and any may import what stands beside them.
FLOORS = {
    **dict.fromkeys(("_C", "__version__"), 0),
    "values": 1,
    "checkpoints": 2,
    "schemes": 2,
    "jit": 2,
    "layouts": 3,
    "formats": 4,
    "families": 4,
    "store": 4,
    "migrations": 4,
    "prediction": 5,
    "records": 6,
    "bench": 6,
    "bundles": 7,
    "runtime": 7,
    "models": 8,
    "search": 8,
    "testing": 8,
    "serving": 9,
    "console": 9,
    "executors": 10,
    "daemon": 11,
    "notebook": 11,
    "web": 12,
    "cli": 13,
    "__init__": 14,
    "__main__": 14,
}
USES_TORCH = (
    *("schemes", "layouts", "formats", "families", "bench", "runtime", "models", "serving"),
    "notebook",  # to type a model only
)
# Who may import what is big or a matter of one part; a name ends a path or is a folder of it.
ALLOWED = {
    "torch": USES_TORCH,
    "sqlalchemy": ("store", "migrations"),
    "alembic": ("store/schema.py", "migrations"),
    "click": ("cli",),
    "jinja2": ("web",),
    "markupsafe": ("web",),
    "starlette": ("web",),
    "uvicorn": ("web/app.py",),
    "cryptography": ("bundles/keys.py",),
    "prometheus_client": ("daemon/metrics.py", "serving/vllm/metrics.py"),
    "rich": ("cli", "console"),
    "ray": ("executors/ray.py",),
    "sglang": ("serving/sglang.py",),
    "vllm": ("serving/vllm",),
}
FILES = sorted(
    path.relative_to(ROOT) for folder in ("autotune", "migrations") for path in (ROOT / folder).rglob("*.py")
)


def part(file: Path) -> str:
    """The room: `autotune/store/rows.py` is of `store`."""
    inner = file.with_suffix("").parts
    return inner[1] if inner[0] == "autotune" else inner[0]


def imports(tree: ast.AST) -> Iterator[str]:
    """Every module that is imported anywhere; `from autotune import b` and `autotune.b` are both b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name != "autotune")
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif (
            isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id == "autotune"
        ):
            yield f"autotune.{node.attr}"


def may_import(mine: str, other: str) -> bool:
    return mine == other or FLOORS[other] < FLOORS[mine]


def breaches(file: Path, source: str) -> list[str]:
    """`file: a must not import b` for each wrong import of the source."""
    mine, found = part(file), []
    for name in imports(ast.parse(source)):
        package, _, inner = name.partition(".")
        if package == "autotune":
            other = inner.partition(".")[0]
            other = other if other in FLOORS else "__init__"
            if not may_import(mine, other):
                found.append(f"{file}: {mine} must not import {other}")
        elif package in ALLOWED:
            inside = "/" + file.as_posix()
            if not any(f"/{place}/" in inside or inside.endswith(f"/{place}") for place in ALLOWED[package]):
                found.append(f"{file}: {mine} must not import {package}")
    return found


@pytest.mark.parametrize("file", FILES, ids=str)
def test_imports_only_lower_floors(file: Path) -> None:
    assert breaches(file, (ROOT / file).read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("file", "source", "breach"),
    [
        ("autotune/values/layer.py", "from autotune.layouts import pack", "values must not import layouts"),
        ("autotune/bench/race.py", "from autotune.runtime import plans", "bench must not import runtime"),
        ("autotune/store/rows.py", "def f():\n    import torch.nn", "store must not import torch"),
        ("autotune/store/rows.py", "import alembic", "store must not import alembic"),
        ("autotune/records/lookup.py", "from sqlalchemy import select", "records must not import sqlalchemy"),
        ("autotune/search/sweep.py", "from autotune import lookup", "search must not import __init__"),
        ("autotune/search/sweep.py", "import autotune\nautotune.apply", "search must not import __init__"),
    ],
)
def test_a_wrong_import_is_found(file: str, source: str, breach: str) -> None:
    assert breaches(Path(file), source) == [f"{file}: {breach}"]


def test_files_are_short() -> None:
    lengths = {str(file): len((ROOT / file).read_text(encoding="utf-8").splitlines()) for file in FILES}
    assert {file: lines for file, lines in lengths.items() if lines > 400} == {}


def modules_of(room: str) -> dict[str, set[str]]:
    """The modules of a room, and which of the room each imports."""
    files = {file.stem: file for file in FILES if file.parts[:2] == ("autotune", room)}
    prefix = f"autotune.{room}."
    return {
        name: {
            other.removeprefix(prefix).partition(".")[0]
            for other in imports(ast.parse((ROOT / file).read_text(encoding="utf-8")))
            if other.startswith(prefix)
        }
        & files.keys()
        for name, file in files.items()
    }


def test_values_do_not_import_in_circles() -> None:
    assert tuple(TopologicalSorter(modules_of("values")).static_order())


def test_no_family_knows_another() -> None:
    known = modules_of("families")
    families = {
        name for name in known if "\nFAMILY = " in (ROOT / f"autotune/families/{name}.py").read_text()
    }
    assert len(families) > 4
    assert {name: others & families for name, others in known.items() if others & families - {name}} == {}
