"""What `benchmarks/peers.py` plans, keeps and concludes, and the figure of README."""

from __future__ import annotations

import importlib.util
import itertools
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from places import BENCHMARKS

from autotune.bench.timer import HostTimer
from autotune.checkpoints.shapes import Decoder
from autotune.values.device import cpu_device
from autotune.values.layer import Layer

RESULTS = BENCHMARKS / "results" / "h200-peers.jsonl"
SMALL = {"tiny": Decoder(256, 256, 2, 2, 128), "other": Decoder(256, 512, 2, 2, 128)}


@pytest.fixture(autouse=True)
def _benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    # Tests have a module of this name too.
    spec = importlib.util.spec_from_file_location("peers", BENCHMARKS / "peers.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "peers", module)
    spec.loader.exec_module(module)


def line(n: int, k: int, m: int, mode: str = "short", **columns: float) -> dict[str, Any]:
    """A line whose intervals end 1 µs from the median."""
    times = {f"{name}_us": [value, value - 1, value + 1] for name, value in columns.items()}
    return {"mode": mode, "n": n, "k": k, "m": m, "device": "NVIDIA H200", **times}


LLAMA = ((12288, 4096), (4096, 4096), (22016, 4096), (4096, 11008))


def options(path: Path, *more: str) -> Any:
    from peers import parsed

    return parsed([str(path), *more])


def test_everything_is_to_do_at_first(tmp_path: Path) -> None:
    from peers import todo

    work = dict(todo(options(tmp_path / "no.jsonl", "--models", "llama7b,llama3-8b"), []))
    assert sorted((layer.n, layer.k) for layer in work) == sorted(
        {*LLAMA, (6144, 4096), (28672, 4096), (4096, 14336)}
    )
    for ms in work.values():
        assert (ms[0], ms[-1], ms == sorted(ms)) == (1, 8192, True)
        assert {33, 100, 333, 1500} < set(ms)


def test_what_has_a_line_is_not_done_again(tmp_path: Path) -> None:
    from peers import todo

    asked = ("--models", "llama7b", "--m", "1,64")
    done = [line(*size, m=1) for size in LLAMA] + [line(*LLAMA[0], m=64)]
    assert todo(options(tmp_path, *asked), done) == [(Layer(*size), [64]) for size in LLAMA[1:]]
    assert len(todo(options(tmp_path, *asked, "--long"), done)) == 4
    del done[0]["mode"]  # as before there were two
    assert len(todo(options(tmp_path, *asked), done)) == 3


@pytest.mark.parametrize("wrong", [("--models", "gpt5"), ("--peers", "marlin"), ("--m", "0"), ("--m", "x")])
def test_what_there_is_not_is_refused(tmp_path: Path, wrong: tuple[str, str], capsys: Any) -> None:
    with pytest.raises(SystemExit) as stopped:
        options(tmp_path, *wrong)
    assert stopped.value.code == 2
    assert wrong[1] in capsys.readouterr().err


def test_a_plan_needs_no_gpu_and_counts_what_is_left(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import peers

    results = tmp_path / "results.jsonl"
    results.write_text(json.dumps(line(*LLAMA[1], m=8)) + "\n")
    monkeypatch.setattr(
        "sys.argv", ["peers.py", str(results), "--plan", "--models", "llama7b", "--m", "8,16"]
    )
    peers.main()
    *_, last = capsys.readouterr().out.splitlines()
    assert last.startswith("7 lines of 5 columns, about ")


@pytest.fixture
def cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small models on the CPU, whose calls are timed by the host's clock for want of graphs."""
    import peers
    import peers_report

    device = replace(cpu_device(), l2_bytes=1 << 18)
    monkeypatch.setattr(peers, "find_device", lambda _: device)
    monkeypatch.setattr(
        peers, "GraphTimer", lambda plan, its, own: HostTimer(plan, itertools.cycle(its), own)
    )
    monkeypatch.setattr(peers_report, "MODELS", SMALL)
    monkeypatch.setattr(peers, "MODELS", SMALL)
    monkeypatch.setattr(peers, "LONG_S", 0.02)
    monkeypatch.setattr(peers, "_WARM_S", 0.005)
    monkeypatch.setattr("autotune.bench.timer._HOST_SAMPLE_US", 200.0)


def measure(monkeypatch: pytest.MonkeyPatch, results: Path, *more: str) -> list[dict[str, Any]]:
    import peers
    from peers_report import read

    asked = ("--models", "tiny", "--peers", "", "--db", str(results.with_name("no.db")), *more)
    monkeypatch.setattr("sys.argv", ["peers.py", str(results), *asked])
    peers.main()
    return read([results])


@pytest.mark.usefixtures("cpu")
def test_lines_are_written_and_a_torn_one_is_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    results = tmp_path / "results.jsonl"
    first = measure(monkeypatch, results, "--m", "1,3")
    assert [(row["n"], row["k"], row["m"]) for row in first] == [
        (*size, m) for size in ((768, 256), (256, 256), (512, 256)) for m in (1, 3)
    ]
    for row in first:
        assert (row["mode"], row["source"]) == ("short", "default")
        for name in ("stored_us", "default_us", "matmul_us"):
            median, low, high = row[name]
            assert 0 < low <= median <= high
    results.write_text(results.read_text()[:-40])
    again = measure(monkeypatch, results, "--m", "1,3")
    assert (again[:-1], again[-1]["m"]) == (first[:-1], 3)
    assert "1 lines written" in capsys.readouterr().out


@pytest.mark.usefixtures("cpu")
def test_a_time_limit_leaves_the_rest_for_the_next_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    assert measure(monkeypatch, tmp_path / "results.jsonl", "--m", "1", "--time-limit", "1") == []
    assert "0 lines written" in capsys.readouterr().out


@pytest.mark.usefixtures("cpu")
def test_long_runs_stand_beside_short_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import peers
    from peers_report import markdown

    monkeypatch.setattr(peers, "_long_timer", lambda *its: (peers.GraphTimer(*its), 1))
    results = tmp_path / "results.jsonl"
    measure(monkeypatch, results, "--m", "2")
    *_, long = rows = measure(monkeypatch, results, "--m", "2", "--long")
    assert [row["mode"] for row in rows] == ["short"] * 3 + ["long"] * 3
    assert "default_us" not in long
    assert long["stored_run"] == {"clock_mhz": None, "power_w": None, "joules": None}
    tables = markdown(rows)
    assert "tiny, the four fused linears, short runs" in tables
    assert "tiny, the four fused linears, long runs" in tables


@pytest.mark.usefixtures("cpu")
def test_lines_of_two_devices_do_not_mix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = tmp_path / "results.jsonl"
    results.write_text(json.dumps(line(*LLAMA[0], m=1)) + "\n")
    with pytest.raises(SystemExit, match="is of NVIDIA H200, and this is"):
        measure(monkeypatch, results)


def test_who_is_wrong_is_not_timed(capsys: Any) -> None:
    from peers_columns import entered, ready

    from autotune.bench.operands import Operands
    from autotune.records.lookup import Lookup

    device = replace(cpu_device(), l2_bytes=1 << 18)
    operands = Operands.random(Layer(256, 256), device)
    ours, *others = entered(operands, Lookup(device, "no.db"), ["humming"])
    damaged = replace(operands.copies[0], scales=operands.copies[0].scales * 1.1)
    wrong = replace(ours, name="wrong", copies=(ours.copies[0], damaged))
    found = ready(5, operands, [ours, *others, wrong], lambda _, copies, __: len(copies))
    assert set(found) == {"stored", "default", "matmul"}
    said = capsys.readouterr().err
    assert "wrong of m=5" in said
    assert "humming takes no part" in said


def test_a_models_time_is_that_of_its_four_linears() -> None:
    from peers_report import speeds, sums

    rows = [line(*size, m=1, stored=10.0 * i, matmul=30.0 * i) for i, size in enumerate(LLAMA, 1)]
    rows += [line(*size, m=2, stored=1.0) for size in LLAMA[:3]]
    rows[0]["humming_us"] = [1.0, 1.0, 1.0]  # has not done the others
    assert sums(rows, "llama7b") == {1: {"stored": (100.0, 96.0, 104.0), "matmul": (300.0, 296.0, 304.0)}}
    assert speeds(sums(rows, "llama7b")[1]) == {"stored": 3.0}
    assert sums(rows, "llama3-8b") == {}


def test_tables_say_how_often_ours_is_slower() -> None:
    from peers_report import markdown

    rows = [line(*size, m=m, stored=20.0, matmul=40.0, humming=10.0 + m) for size in LLAMA for m in (33, 64)]
    rows.append(line(64, 64, 9, stored=100.0, matmul=97.9))
    tables = markdown(rows)
    assert "| 33 | 80.00 (76.00 to 84.00) | 160.0 (156.0 to 164.0) |" in tables
    assert "| 33 to 64 | 2.00 (2.00, 33) | 2.92 (2.15, 33) |" in tables
    assert "below 0.98 of the best of the others: 1\n- 64×64, m=9, short: 0.979" in tables


def test_a_long_run_shows_what_it_uses() -> None:
    from peers_report import markdown

    row = line(4096, 4096, 1024, "long", stored=50.0, matmul=60.0)
    row["stored_run"] = {"clock_mhz": 1500.0, "power_w": 698.7, "joules": 0.035}
    tables = markdown([row])
    assert "| 4096×4096 | 1024 | autotune | 50.00 (49.00 to 51.00) | 687 | 1500 | 699 | 35 |" in tables
    assert "| fp16 matmul | 60.00 (59.00 to 61.00) | 573 | - | - | - |" in tables


def test_the_figure_is_drawn_from_the_results() -> None:
    from chart import draw
    from peers_report import read

    rows = read([RESULTS])
    picture = draw(rows)
    assert RESULTS.with_suffix(".svg").read_text(encoding="utf-8") == picture
    lines = {each.get("id"): each for each in ElementTree.fromstring(picture).findall("{*}polyline")}
    ours = [tuple(map(float, each.split(","))) for each in lines["llama7b-stored"].get("points").split()]
    humming = [tuple(map(float, each.split(","))) for each in lines["llama7b-humming"].get("points").split()]
    ms = sorted({row["m"] for row in rows})
    assert len(ours) == len(ms)
    assert [x for x, _ in ours] == sorted(x for x, _ in ours)
    by_size = {(row["n"], row["k"], row["m"]): row for row in rows}

    def total(name: str, m: int) -> float:
        return sum(by_size[(*size, m)][name][0] for size in LLAMA)

    # Higher is faster, and an octave is as high everywhere.
    for m, (_, mine), (_, theirs) in zip(ms, ours, humming, strict=True):
        ratio = total("humming_us", m) / total("stored_us", m)
        assert 2 ** ((theirs - mine) / 80) == pytest.approx(ratio, rel=0.005)


def test_a_figure_of_half_of_a_model_is_refused() -> None:
    from chart import draw

    with pytest.raises(SystemExit, match="to the end"):
        draw([line(*LLAMA[0], m=1, stored=1.0, matmul=2.0)])
