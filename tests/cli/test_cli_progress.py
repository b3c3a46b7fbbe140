"""What a sweep shows while it runs: on a terminal a bar above which rows come, in a pipe lines."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import PROGRAM
from real_families import CPU_FAMILY
from terminal import Screen, run

from autotune.checkpoints.shapes import Shape
from autotune.console.progress import ProblemProgress
from autotune.executors.local import LocalExecutor
from autotune.families import registry
from autotune.search.executor import At
from autotune.values.device import cpu_device
from autotune.values.layer import Layer, Problem

SHAPES = "n=256,k=256;n=512,k=256,group_size=64,dtype=bf16,zero_point=false"
NAMES = ("256x256", "512x256 g64 bf16 symmetric")
ON_CPU = ("--device", "cpu", "--allow-busy")
SWEEP = ("sweep", "--shapes", SHAPES, "--m", "1,2", *ON_CPU, "--budget", "60s", "--db", "here.db")
BAR = "━"


def seen(written: str, columns: int) -> list[str]:
    """The lines that are on a terminal in the end."""
    screen = Screen(columns)
    screen.write(written)
    return screen.lines()


@pytest.mark.parametrize("columns", [80, 120])
def test_the_bar_leaves_every_row_whole_and_no_trace(columns: int, tmp_path: Path) -> None:
    code, written = run((*PROGRAM, *SWEEP), columns, tmp_path)
    assert code == 0, written
    first, head, *rows, last, see = seen(written, columns)
    assert see == f"to see it: autotune serve --db {tmp_path / 'here.db'}"
    assert first == f"4 problems on {cpu_device().name}, into {tmp_path / 'here.db'}"
    assert head.split() == ["layer", "m", "us", "default", "us", "gain", "config"]
    pattern = rf"(\S.*\S) +([12])( +\d+(\.\d)?){{2}} +\d\.\d\dx  {CPU_FAMILY.name}:\w+=\S+,threads=\d+"
    found = [re.fullmatch(pattern, row) for row in rows]
    assert {(row and row[1], row and row[2]) for row in found} == {(name, m) for name in NAMES for m in "12"}
    assert last.startswith("4 of 4 problems stored, 0 of them from before; ")
    plain = re.sub(r"\x1b\[[^A-Za-z]*[A-Za-z]", "", written)
    for name in NAMES:
        assert re.search(rf"[0-3]/4 {BAR}.* m=2: \d+/\d+ configs of {name} *[\r\n]", plain), plain


def test_rows_go_where_stdout_goes_while_the_bar_is_on_a_terminal(tmp_path: Path) -> None:
    command = " ".join(f"'{argument}'" for argument in (*PROGRAM, *SWEEP, "--json"))
    code, written = run(("/bin/sh", "-c", f"{command} >rows.jsonl"), 80, tmp_path)
    assert code == 0, written
    assert len([json.loads(row) for row in (tmp_path / "rows.jsonl").read_text().splitlines()]) == 4
    assert len(seen(written, 80)) == 3, "what is swept, what came of it, and how to see it"


def test_a_warning_comes_above_the_bar() -> None:
    program = """
import logging
from autotune.console.progress import ProblemProgress

with ProblemProgress(2, (), ()) as progress:
    progress.stage("compile", 3, 7)
    results = progress.follow((each for each in ("one", "two")), bool, str)
    logging.getLogger("autotune").warning("others compute")
    progress.show("to stderr", err=True)
assert results == ["one", "two"]
"""
    code, written = run((sys.executable, "-c", program), 80, Path.cwd())
    assert code == 0, written
    assert seen(written, 80) == ["one", "two", "others compute", "to stderr"]
    assert "compile 3/7" in written


class _Still:
    """An executor that stays at one problem."""

    def __init__(self, at: At | None) -> None:
        self.at = at


def test_in_a_pipe_a_line_comes_from_time_to_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the executors that are at something the first, and how many there are."""
    ends = os.pipe()
    layer = Layer(256, 512)
    executors = [_Still(None), _Still(At(Problem(layer, 16), 3, 40)), _Still(At(Problem(layer, 8), None, 9))]
    with os.fdopen(ends[0]) as reader, os.fdopen(ends[1], "w", buffering=1) as writer:
        monkeypatch.setattr(sys, "stderr", writer)
        shapes = [Shape(("q", "k"), layer)]
        with ProblemProgress(5, executors, shapes, every_s=0.01) as progress:
            line = reader.readline()
            assert re.fullmatch(
                r"0/5 problems, \d+ s; 2 devices, m=16: 3/40 configs of 256x512 q,k\n", line
            ), line
            progress.follow((each for each in (1, 2)), bool, str)
            while not line.startswith("2/5 problems, "):
                line = reader.readline()


def test_a_problem_is_shown_when_it_is_done(tmp_path: Path) -> None:
    """The table's first rows are there while the sweep goes on."""
    with subprocess.Popen(
        (*PROGRAM, *SWEEP[:-4], "--budget", "10m", "--db", "here.db"),
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as running:  # fmt: skip
        assert running.stdout is not None
        head, row = running.stdout.readline(), running.stdout.readline()
        running.send_signal(signal.SIGINT)
        _, errors = running.communicate()
    assert running.returncode == 130, errors
    assert head.startswith("layer")
    assert row.startswith(NAMES)


def test_an_executor_says_how_many_configs_are_done() -> None:
    """From none to all of them, one by one, then nothing."""
    problem, device = Problem(Layer(256, 256), 2), cpu_device()
    candidates = registry.candidates(problem, device)
    noted: list[At | None] = []

    class Noting(LocalExecutor):
        def __setattr__(self, name: str, value: object) -> None:
            super().__setattr__(name, value)
            if name == "_at":
                noted.append(self.at)

    with Noting(device, allow_busy=True) as executor:
        executor.tune(problem, candidates, {})
    total = len(candidates)
    assert [each and (each.problem, each.configs) for each in noted[1:-1]] == [(problem, total)] * (
        len(noted) - 2
    )
    counts = [each.done for each in noted[1:-1] if each]
    assert list(dict.fromkeys(counts)) == list(range(total + 1))
    assert executor.at is None
