"""Databases for the pages of `autotune serve`, the server as a process, and what a page says."""

from __future__ import annotations

import re
import signal
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from command_line import PROGRAM
from store_samples import ENVIRONMENT, H100, H200

from autotune.families import registry
from autotune.store.store import Store
from autotune.values.config import Config
from autotune.values.device import Device
from autotune.values.layer import Layer, Problem
from autotune.values.record import Evidence, Record, Trial

LAYER = Layer(4096, 4096)
EVIDENCE = Evidence(
    25, (1.2, 1.19, 1.21), ("tiled:tie=1",), (("tiled:slower=1", 5.75),), 1980, 0.125, 2.5, 41, 350
)
HOSTILE = "<script>document.title='taken'</script>\"'><img src=x onerror=alert(1)>"


def record(problem: Problem, device: Device = H200, **changed: Any) -> Record:
    """A record of the default config of today's kernels: 5 µs, and 6 µs of its default."""
    config = registry.default_config(problem, device)
    made = Record(
        problem,
        device.name,
        device.arch,
        config,
        median_us=5.0,
        low_us=4.9,
        high_us=5.1,
        default_config=config,
        default_us=6.0,
        source_hash=registry.kernel_hash(config, problem, device),
        created_at="2026-01-01T00:00:00+00:00",
        mode="model",
        evidence=EVIDENCE,
    )
    return replace(made, **changed)


def trials(of: Record) -> list[Trial]:
    """The record's own trial, one that left early, one that was wrong, one that failed with hostile words."""
    name = of.config.family
    return [
        Trial(of.problem, of.config, "ok", of.median_us, of.low_us, of.high_us, (5.0,) * 25, mode="model"),
        Trial(of.problem, Config.of(name, slow=1), "pruned", error="slower in screening: 9.25 us"),
        Trial(of.problem, Config.of(name, bad=1), "wrong", error="off by 3 times the tolerance"),
        Trial(of.problem, Config.of(name, worse=1), "failed", error=f"launch failed: {HOSTILE}"),
    ]


def fill(url: Path | str, records: list[Record], device: Device = H200, **environment: str) -> int:
    """Store the records and their trials as one sweep; its id."""
    with Store.open(url) as store:
        sweep = store.begin_sweep(device, replace(ENVIRONMENT, **environment), {})
        for each in records:
            store.add_result(sweep, trials(each), each, None)
        store.finish_sweep(sweep, "finished")
    return sweep


def two_devices(url: Path | str) -> None:
    """Five problems on an H200, and on an H100 that takes 4 µs where it is certain, or as long."""
    problems = [Problem(LAYER, m) for m in (1, 2, 4, 8, 16)]
    fill(url, [record(problem) for problem in problems])
    certain = {"median_us": 4.0, "low_us": 3.9, "high_us": 4.1}
    others = [record(each, H100, **(certain if each.m == 1 else {})) for each in problems]
    fill(url, others, H100)


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.rows: list[list[str]] = []
        self._in_cell = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th") and self.rows:
            self.rows[-1].append("")
            self._in_cell = True

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self._in_cell = False

    def handle_data(self, data: str) -> None:
        self.texts.append(data)
        if self._in_cell:
            self.rows[-1][-1] += data.strip()


def parsed(html: str) -> _Page:
    """The tags of a page with their attributes, its texts, and the rows of its tables."""
    page = _Page()
    page.feed(html)
    return page


def text(html: str) -> str:
    """What a page says, in one line."""
    return " ".join(" ".join(parsed(html).texts).split())


@contextmanager
def served(folder: Path, *arguments: str) -> Iterator[str]:
    """`autotune serve` on a free port, as a process; its address."""
    command = (*PROGRAM, "serve", "--port", "0", *arguments)
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout
    assert process.stderr
    try:
        address = process.stdout.readline().strip()
        assert re.fullmatch(r"http://.*:[0-9]+/", address), process.stderr.read()
        yield address
    finally:
        process.send_signal(signal.SIGINT)
        _, said = process.communicate()
    assert (process.returncode, said) == (130, "interrupted\n")


def get(address: str, method: str = "GET", **headers: str) -> tuple[int, str, dict[str, str]]:
    """Status, content and headers of an answer; no redirect is followed."""
    asked = urllib.request.Request(
        address, method=method, headers={k.replace("_", "-"): v for k, v in headers.items()}
    )
    try:
        with urllib.request.build_opener(_Stay).open(asked, timeout=60) as answer:
            return answer.status, answer.read().decode(), dict(answer.headers)
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode(), dict(error.headers)


class _Stay(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None
