"""Hooks of the site: the repository's other pages join it, and every verb's help joins the command line.

The site has the paths of the repository, with docs/ as its root. So links in Markdown work in both places.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from mkdocs.structure.files import File, Files

from autotune.cli import cli

ROOT = Path(__file__).resolve().parent.parent
OUTSIDE = (
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "LICENSE",
    "benchmarks/README.md",
    "benchmarks/own_kernel.py",
    "benchmarks/results/h200-llama3-8b-peers.svg",
    "benchmarks/results/h200-peers.svg",
    "csrc/cuda/README.md",
    "db/README.md",
    "migrations/roles.sql",
    "tests/support/toy/toy.py",
    *(f"examples/{path.name}" for path in sorted((ROOT / "examples").glob("*.py"))),
)
_LINK = re.compile(r"\]\((?!\w+:|#)([^)#]+)")


def on_files(files: Files, config: Any) -> Files:
    """Add what stands outside docs/."""
    for name in OUTSIDE:
        files.append(File.generated(config, name, abs_src_path=str(ROOT / name)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Have links lead to where the site has the file, and add the help of every verb to the command line."""
    here = page.file.src_uri
    source = here if here in OUTSIDE else f"docs/{here}"

    def moved(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), link[1]))
        return "](" + posixpath.relpath(target.removeprefix("docs/"), posixpath.dirname(here) or ".")

    markdown = _LINK.sub(moved, markdown)
    if here == "command-line.md":
        markdown += "\n".join(_help(cli, click.Context(cli, info_name="autotune")))
    return markdown


def _help(command: click.Command, context: click.Context) -> Iterator[str]:
    yield f"\n### `{context.command_path}`\n\n```text\n{command.get_help(context)}\n```"
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            verb = command.get_command(context, name)
            assert verb is not None
            yield from _help(verb, click.Context(verb, info_name=name, parent=context))
