"""`autotune.sweep`: a loaded model runs what is tuned while it is loaded."""

from __future__ import annotations

import copy
import os
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from places import SUPPORT
from runtime_tools import AwqLinear, assert_is_linear, store_records, tokens_of, weight_of
from undisturbed import believe_all_workers

import autotune
from autotune.families import registry
from autotune.notebook import sweep as notebook
from autotune.records.lookup import Lookup
from autotune.runtime.linear import Int4Linear
from autotune.store.store import Store
from autotune.values.config import Config
from autotune.values.device import cpu_device, cuda_devices
from autotune.values.errors import BudgetError, DatabaseError, DeviceError, FormatError, ShapesError
from autotune.values.layer import BUCKETS, Layer, Problem

LAYER = Layer(128, 128, group_size=64)
WEIGHT = weight_of(LAYER)
X = tokens_of((3, LAYER.k), torch.float16)
TOKENS = (1, 4)


@pytest.fixture(autouse=True)
def _workers(monkeypatch: pytest.MonkeyPatch) -> None:
    believe_all_workers(monkeypatch.setattr)


@pytest.fixture
def database(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The database in force."""
    monkeypatch.setenv("AUTOTUNE_DB", str(tmp_path / "mine.db"))
    return tmp_path / "mine.db"


@pytest.fixture
def loser(database: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    """A config that the database has for TOKENS and that no race takes, so that it cannot win."""
    problems, device = [Problem(LAYER, m) for m in TOKENS], cpu_device()
    defaults = {registry.default_config(problem, device) for problem in problems}
    spaces = [set(registry.space(problem, device)) for problem in problems]
    chosen = min(set.intersection(*spaces) - defaults)
    store_records(database, device, dict.fromkeys(problems, chosen))
    whole = registry.candidates
    monkeypatch.setattr(
        registry, "candidates", lambda *given: [config for config in whole(*given) if config != chosen]
    )
    return chosen


def awq_model() -> torch.nn.Sequential:
    return torch.nn.Sequential(AwqLinear(WEIGHT), AwqLinear(WEIGHT)).eval()


def stored(path: Path) -> dict[int, Config]:
    """The newest config of each number of tokens."""
    with Store.open(str(path)) as store:
        return {record.problem.m: record.config for record in store.records()}


def runs(model: torch.nn.Module, m: int) -> set[Config]:
    plans = [module.plans for module in model.modules() if isinstance(module, Int4Linear)]
    assert plans
    for each in plans:
        each.plan(m)  # what a call takes, and its answer says which config that is
    return {each.answer(m).config for each in plans}


def test_a_loaded_model_runs_the_winners_in_every_graph(database: Path, loser: Config) -> None:
    model, other = awq_model(), awq_model()
    model.autotune_report = autotune.apply(model)
    autotune.apply(other)
    one, same = copy.deepcopy(model[0]), other[1]
    assert runs(model, 1) == runs(other, 4) == {loser}
    compiled = torch.compile(one, backend="eager", fullgraph=True)
    exported = torch.export.export(one, (X,)).module()
    before = [each(X) for each in (one, compiled, exported, same)]
    compiles = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert compiles > 0
    kept = one.plans.plan(4)

    report = autotune.sweep(model, m=TOKENS, budget="20s", progress=False)

    winners = stored(database)
    assert loser not in winners.values()
    for m in TOKENS:
        assert runs(model, m) == runs(other, m) == {winners[m]}
    plan = one.plans.plan(4)
    assert plan is not kept
    for each, old in zip((one, compiled, exported, same), before, strict=True):
        assert_is_linear(old, WEIGHT, X)
        assert_is_linear(each(X), WEIGHT, X)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == compiles
    told = {answer.problem.m: answer.config for answer in model.autotune_report.layers[0].answers}
    assert {m: told[m] for m in TOKENS} == winners
    assert [(each.problem.m, each.before, each.after, each.config) for each in report.problems] == [
        (m, "exact", "exact", winners[m]) for m in TOKENS
    ]
    assert (report.tuned, report.skipped, report.failed, report.database) == (2, 0, 0, str(database))

    again = autotune.sweep(model, m=TOKENS, budget="20s", progress=False)
    assert (again.tuned, again.skipped) == (0, 2)
    assert stored(database) == winners
    assert one.plans.plan(4) is plan, "nothing has changed"
    linear = Int4Linear.from_quantized(WEIGHT)
    assert linear.plans.answer(4).config == winners[4], "what is made later runs the winners too"


def test_calls_meanwhile_are_right_and_kernels_stay(tmp_path: Path) -> None:
    """Two threads call while the plans change a hundred times."""
    device, problem = cpu_device(), Problem(LAYER, 4)
    default = registry.default_config(problem, device)
    other = next(config for config in registry.space(problem, device) if config != default)
    store_records(tmp_path / "other.db", device, {problem: other})
    states = [Lookup(device, str(tmp_path / name)) for name in ("none.db", "other.db")]
    linear = Int4Linear.from_quantized(WEIGHT, lookup=states[0])
    handle, plans = linear.plans.handle, {linear.plans.plan(4)}
    over, results = threading.Event(), []

    def call() -> None:
        with torch.inference_mode():
            while not over.is_set():
                results.append(linear(X))

    threads = [threading.Thread(target=call) for _ in range(2)]
    for thread in threads:
        thread.start()
    for turn in range(1, 101):
        linear.plans.renew(states[turn % 2])
        assert linear.plans.answer(4).config == (other if turn % 2 else default)
        plans.add(linear.plans.plan(4))
    over.set()
    for thread in threads:
        thread.join()
    assert len(plans) == 2, "a plan that was made is used again"
    assert linear.plans.handle == handle
    assert results
    for result in {tuple(result.flatten().tolist()): result for result in results}.values():
        assert_is_linear(result, WEIGHT, X)


def children() -> set[str]:
    """The ids of this process's children."""
    told = (thread / "children" for thread in Path("/proc/self/task").iterdir())
    return {pid for each in told for pid in each.read_text().split()}


def test_ctrl_c_leaves_what_is_stored_and_the_model_runs_it(
    database: Path, loser: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, before = awq_model(), children()
    autotune.apply(model)
    tuning = notebook.sweep_problems

    def interrupted(*arguments: Any) -> Iterator[Any]:
        for outcome in tuning(*arguments):
            yield outcome
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(notebook, "sweep_problems", interrupted)
    with pytest.raises(KeyboardInterrupt):
        autotune.sweep(model, m=TOKENS, budget=20, progress=False)
    winners = stored(database)
    done, left = (m for m in sorted(TOKENS, key=lambda m: winners[m] == loser))
    assert winners[done] != loser == winners[left]
    assert runs(model, done) == {winners[done]}
    assert runs(model, left) == {loser}
    assert children() <= before


def test_shapes_are_tuned_and_told(
    database: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = tmp_path / "another.db"
    shapes = ["n=64,k=64,group_size=64", Layer(72, 64, group_size=64)]
    report = autotune.sweep(shapes, m=1, budget="10s", db=mine, device="cpu")
    problems = [Problem(Layer(n, 64, group_size=64), 1) for n in (64, 72)]
    assert [each.problem for each in report.problems] == problems
    assert {(each.status, each.before, each.after) for each in report.problems} == {
        ("tuned", "default", "exact")
    }
    assert report.problems[0].gain >= 1
    with Store.open(str(mine)) as store:
        records = {record.problem: record for record in store.records()}
    assert [each.config for each in report.problems] == [records[problem].config for problem in problems]
    assert not database.exists()
    summary, head, *rows = repr(report).splitlines()
    assert summary.startswith("2 problems: 2 tuned; ")
    assert head.split() == ["layer", "m", "before", "after", "us", "default", "us", "gain", "config"]
    assert [row.split()[:5] for row in rows] == [
        [f"{n}x64", "g64", "1", "default", "exact"] for n in (64, 72)
    ]
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.splitlines()[0] == f"2 problems to tune, into {mine}"


def test_by_default_the_buckets_that_suit_the_device_and_what_does_not_begin_is_told(database: Path) -> None:
    linear = torch.nn.Sequential(Int4Linear.from_quantized(WEIGHT))
    report = autotune.sweep(linear, budget=1e-6, progress=False)
    assert [each.problem.m for each in report.problems] == [bucket for bucket in BUCKETS if bucket <= 32]
    assert report.not_begun == len(report.problems)
    assert {each.after for each in report.problems} == {"default"}
    assert repr(report).count("not begun: the time budget ended before its turn") == len(report.problems)
    assert stored(database) == {}


SCRIPT = """
import autotune
from undisturbed import believe_all_workers

believe_all_workers()
print("run")
print(autotune.sweep("n=64,k=64,group_size=64", m=1, budget=5, device="cpu", db="here.db").tuned)
"""


def test_a_script_tunes_at_its_top_level(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    run = subprocess.run(
        [sys.executable, "script.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(SUPPORT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert run.stdout.splitlines() == ["run", "1"], run.stderr


@pytest.mark.parametrize("budget", [0, -1, float("nan"), float("inf"), True, "60", "fast", "0s"])
def test_a_budget_that_is_no_time_is_refused(budget: Any) -> None:
    with pytest.raises(BudgetError, match=r"(?s)^(?!.*\n).*60s, 5m or 1h"):
        autotune.sweep(Layer(64, 64, group_size=64), budget=budget)


@pytest.mark.parametrize(
    ("target", "error", "words"),
    [
        (torch.nn.Linear(8, 8), FormatError, "Linear has no Int4Linear; load it by autotune.load"),
        (7, FormatError, "int is neither a model nor shapes"),
        ([7], ShapesError, "7 names no layer"),
        ([], ShapesError, "an empty list names no layer"),
        ("llama8", ShapesError, "llama8"),
    ],
)
def test_what_cannot_be_tuned_is_named(target: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=rf"(?s)^(?!.*\n).*{words}"):
        autotune.sweep(target, device="cpu")


@pytest.mark.usefixtures("database")
def test_a_device_or_database_that_is_not_the_models_is_named(tmp_path: Path) -> None:
    model = torch.nn.Sequential(Int4Linear.from_quantized(WEIGHT))
    with pytest.raises(DatabaseError, match=r"the model reads .*mine\.db, not .*other\.db; leave db out"):
        autotune.sweep(model, db=tmp_path / "other.db")
    if not cuda_devices():
        with pytest.raises(DeviceError, match="no NVIDIA GPU here"):
            autotune.sweep(model, device="cuda:0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that model load reads SQLite only is said once in a process
        fleet = Lookup(cpu_device(), "postgresql://me@host/x")
        far = torch.nn.Sequential(Int4Linear.from_quantized(WEIGHT, lookup=fleet))
    with pytest.raises(DatabaseError, match="cannot read postgresql://me@host/x"):
        autotune.sweep(far)
