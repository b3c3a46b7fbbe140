"""The pages tell what the database holds, by numbers that were put there."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from postgres import Server
from store_samples import H100, H200
from web_world import EVIDENCE, HOSTILE, LAYER, fill, parsed, record, text, two_devices

from autotune.daemon.endpoint import serve_http
from autotune.records.misses import Miss, append, miss_file
from autotune.search.demand import ASKED
from autotune.store.queue import Queue
from autotune.store.store import Store
from autotune.values.config import Config
from autotune.values.errors import DatabaseError
from autotune.values.job import Worker
from autotune.values.layer import COARSE, Layer, Problem
from autotune.values.paths import shipped
from autotune.values.record import Trial
from autotune.web import queue as queue_page
from autotune.web.query import Query, device_key
from autotune.web.site import VIEWS, Site

ONE = Problem(LAYER, 1)


@pytest.fixture(autouse=True)
def undisturbed() -> None:
    """Times are believed or not as they are by users."""


def shown(url: Path | str, page: str, *pairs: tuple[str, str], status: int = 200) -> str:
    found = Site(url).page(page, Query(pairs))
    assert found.status == status, text(found.html)
    return found.html


def of_problem(device=H200, m: int = 1) -> tuple[tuple[str, str], ...]:
    return ("device", device_key(device)), ("layer", str(LAYER)), ("m", str(m))


def cells(html: str) -> dict[int, str]:
    """What each cell of the first row of a map says, by its number of tokens."""
    said = [attrs["aria-label"] for tag, attrs in parsed(html).tags if tag == "a" and "aria-label" in attrs]
    return {int(re.match(r"m=(\d+): ", each)[1]): each.partition(": ")[2] for each in said}


def test_a_map_says_how_good_each_answer_is_and_why(url):
    noisy = {"median_us": 4.0, "low_us": 2.0, "high_us": 8.0}
    stale = record(Problem(LAYER, 4), source_hash="0" * 16 + "-" + "0" * 16)
    fill(url, [record(ONE), record(Problem(LAYER, 2), **noisy), stale])
    found = cells(shown(url, "coverage"))
    assert found[1].startswith("1.20×, a record of this database, 5.00 µs, ")
    assert found[2].startswith("1.50×, a record whose time cannot be believed, ")
    # The authors measured this layer on this device, so they answer where no record of its own can.
    assert {m for m, said in found.items() if "autotune carries" in said} >= {4, 8, 16}
    assert set(found) >= set(COARSE)


def test_a_stale_record_that_nobody_replaces_is_marked(url):
    own = Layer(264, 512)
    fill(url, [record(Problem(own, 1), source_hash="0" * 16 + "-" + "0" * 16)])
    assert "no longer makes" in cells(shown(url, "coverage"))[1]


def test_a_map_can_be_coloured_by_the_roofline_and_by_dense_fp16(url):
    fill(url, [record(ONE)])
    assert cells(shown(url, "coverage", ("metric", "roofline")))[1].startswith("50 %")  # 2.5 of 5 µs
    lines = (shipped("benchmarks/results") / "h200-peers.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    matmul_us = next(row["matmul_us"][0] for row in rows if (row["n"], row["k"], row["m"]) == (4096, 4096, 1))
    assert cells(shown(url, "coverage", ("metric", "dense")))[1].startswith(f"{matmul_us / 5:.2f}×")


def test_the_device_of_the_newest_sweep_comes_first(url):
    two_devices(url)
    for page in ("coverage", "kernels"):
        assert re.search(r'aria-current="true">([^<]+)<', shown(url, page))[1] == device_key(H100)
    assert "20 trials" in text(shown(url, "kernels"))
    fill(url, [record(ONE)])
    assert re.search(r'aria-current="true">([^<]+)<', shown(url, "coverage"))[1] == device_key(H200)


def test_devices_stand_side_by_side(url):
    two_devices(url)
    both = [("device", device_key(device)) for device in (H200, H100)]
    page = parsed(shown(url, "coverage", *both))
    assert [attrs["class"].split()[0] for tag, attrs in page.tags if tag == "table"] == ["map", "map"]


def test_more_devices_than_fit_are_not_left_out_without_a_word(tmp_path):
    url = tmp_path / "a.db"
    many = [replace(H200, name=f"GPU {number}") for number in range(5)]
    for device in many:
        fill(url, [record(ONE, device)], device)
    links = [attrs.get("href") or "" for tag, attrs in parsed(shown(url, "coverage")).tags if tag == "a"]
    assert "the first 4 side by side" in text(shown(url, "coverage"))
    assert max(link.count("device=") for link in links) == 4
    every = [("device", device_key(device)) for device in many]
    assert "device is named 5 times" in text(shown(url, "coverage", *every, status=404))


def test_a_problem_shows_every_trial_and_its_evidence(url):
    fill(url, [record(ONE)])
    html = shown(url, "problem", *of_problem())
    said = text(html)
    assert "5.00 µs 4.90 to 5.10" in said
    assert "1.20 × 1.190 to 1.210" in said
    assert "50 % its floor 2.50 µs" in said
    assert "1980 MHz 41 °C 350 W" in said
    assert "25 rounds" in said
    assert EVIDENCE.ties[0] in said
    assert "tiled:slower=1 5.75 µs" in said
    assert "driver CUDA 13.0, compiler NVRTC 13.0" in said
    rows = [row for row in parsed(html).rows if row and row[0] in ("winner", "screened", "wrong", "failed")]
    assert [(row[0], row[1]) for row in rows] == [
        ("winner", "5.00"), ("screened", "9.25"), ("wrong", ""), ("failed", ""),
    ]  # fmt: skip
    assert f"autotune sweep --recheck --shapes {LAYER} --m 1 --db " in said


def test_a_config_that_was_never_timed_says_why(url):
    won, reason = record(Problem(LAYER, 1)), "not timed: 9.00 us predicted, 5.00 us for the fastest"
    sweep = fill(url, [won])
    slow = Trial(won.problem, Config.of(won.config.family, slow=2), "pruned", error=reason, mode="model")
    with Store.open(url) as store:
        store.add_result(sweep, [slow], None, None)
    page = shown(url, "problem", *of_problem())
    assert reason in text(page)
    assert '<tr class="pruned">' in page


def test_what_others_wrote_is_shown_as_text(url):
    device = replace(H200, name=f"GPU {HOSTILE}")
    fill(url, [record(ONE, device)], device)
    for page, pairs in (
        ("coverage", ()),
        ("problem", of_problem(device)),
        ("kernels", ()),
        ("compare", ()),
        ("coverage", (("device", HOSTILE),)),
    ):
        found = Site(url).page(page, Query(pairs))
        tags = parsed(found.html).tags
        assert [attrs.get("src") for tag, attrs in tags if tag == "script"] == ["/static/page.js"]
        assert not [
            tag for tag, attrs in tags if tag == "img" or any(name.startswith("on") for name in attrs)
        ]
        assert HOSTILE.replace(" ", "") in text(found.html).replace(" ", "")


def test_history_marks_what_changed_between_sweeps(url):
    fill(url, [record(ONE)])
    fill(
        url, [record(ONE, median_us=4.0, low_us=3.9, high_us=4.1)], driver="CUDA 14.0", compiler="NVRTC 14.1"
    )
    said = text(shown(url, "problem", *of_problem()))
    assert "driver CUDA 14.0, compiler NVRTC 14.1" in said
    assert "8 trials of 2 sweeps" in said


def test_kernels_count_wins_and_tell_why_configs_failed(url):
    records = [record(Problem(LAYER, m)) for m in (1, 2, 4)]
    fill(url, records)
    said = text(shown(url, "kernels"))
    family = records[0].config.family
    assert f"{family} 12 3 3 3 3 3" in said  # tried; to the end, pruned, failed, wrong; records
    assert "wrong 3 off by 3 times the tolerance" in said


def test_the_queue_shows_jobs_workers_and_misses(url):
    fill(url, [record(ONE)])
    with Store.open(url) as store:
        queue = Queue(store)
        asked = [(Problem(LAYER, 2), 3e6), (Problem(LAYER, 4), ASKED)]
        queue.add(asked, H200.name, H200.arch, "sources")
        job = queue.claim(H200.name, H200.arch, "sources", "host:1:0", 60.0)
        queue.beat(Worker("host:1:0", "host", H200.name, H200.arch, "tuning", job.id))
    append(miss_file(url), Miss(Problem(LAYER, 8), H200.name, H200.arch, "sources", "default", 1000))
    html = shown(url, "queue")
    rows = {row[0]: row for row in parsed(html).rows}
    assert rows["NVIDIA H200"][1] == str(Problem(LAYER, 8))  # the miss, whose row comes last
    assert "host:1:0 tuning" in text(html)
    assert f"{job.id}: {Problem(LAYER, 4)}" in text(html)
    assert [row[3] for row in parsed(html).rows if len(row) == 7][1:] == ["3"]
    running = text(shown(url, "queue", ("state", "running")))
    assert "asked for" in running


def test_the_queue_asks_the_daemon_of_this_machine_how_it_is(url, monkeypatch):
    wrong = [f"the database has not answered for 73 s {HOSTILE}"]
    with serve_http(0, lambda: (wrong, {}), lambda *_: []) as address:
        monkeypatch.setattr(queue_page, "PORT", int(address.rpartition(":")[2]))
        assert f"daemon here trouble {wrong[0]}" in text(shown(url, "queue"))
        wrong.clear()
        assert "daemon here well" in text(shown(url, "queue"))
    assert "daemon here none" in text(shown(url, "queue"))


def test_figures_are_those_of_the_readme(url):
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    table = [line.strip("| ").split(" | ") for line in readme.splitlines() if re.match(r"\| \d+ \|", line)]
    shown_rows = [row for row in parsed(shown(url, "figures")).rows if len(row) == 6 and row[0].isdecimal()]
    rows = {row[0]: row for row in reversed(shown_rows)}  # the first table's, where several have a number
    assert table
    for tokens, stored, default, humming, matmul, *_ in table:
        assert rows[tokens][:5] == [tokens, stored, default, matmul, humming]


def test_a_reader_of_a_server_sees_every_page(postgres: Server, template: str):
    name = postgres.create(template)
    postgres.execute((shipped("migrations") / "roles.sql").read_text(encoding="utf-8"), name)
    postgres.execute("DROP ROLE IF EXISTS looker")
    postgres.execute("CREATE ROLE looker LOGIN IN ROLE autotune_reader")
    two_devices(postgres.url(name))
    site = Site(postgres.url(name, "looker"))
    for page in VIEWS:
        pairs = of_problem() if page == "problem" else ()
        assert site.page(page, Query(pairs)).status == 200, page
    site.viewer.close()
    postgres.drop(name)


def test_a_map_of_a_server_is_that_of_a_file_with_the_same_records(postgres: Server, template: str, tmp_path):
    name = postgres.create(template)
    of_server, of_file = postgres.url(name), tmp_path / "a.db"
    for url in (of_server, of_file):
        fill(url, [record(Problem(Layer(264, 512), m)) for m in (32, 64)])
    found = cells(shown(of_file, "coverage"))
    assert cells(shown(of_server, "coverage")) == found
    assert (48 in found, "predicted" in found[80]) == (False, True)  # 64 answers 48, and no record 80
    postgres.drop(name)


def test_nothing_can_be_written(url):
    two_devices(url)
    site = Site(url)
    with pytest.raises(DatabaseError), site.viewer.snapshot() as connection:
        connection.exec_driver_sql("DELETE FROM record")
    site.viewer.close()
    with Store.open(url) as store:
        assert len(store.records()) == 10
