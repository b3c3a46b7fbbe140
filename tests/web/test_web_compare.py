"""What can be compared: devices, shipped records, sweeps, drivers, imports, and what a fleet hands out."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from databases import change
from store_samples import ENVIRONMENT, H100, H200
from web_world import LAYER, fill, parsed, record, text, trials, two_devices

from autotune.bundles.format import BundleContents, digest_of, encode
from autotune.bundles.taking import import_file
from autotune.store import channels, pulled
from autotune.store.entries import Entry, TrialEntry
from autotune.store.store import Store
from autotune.store.tables import SWEEP
from autotune.values.layer import Layer, Problem
from autotune.values.record import Record
from autotune.web.query import Query, device_key
from autotune.web.site import Site

ONE = Problem(LAYER, 1)
FASTER = {"median_us": 4.0, "low_us": 3.9, "high_us": 4.1}


@pytest.fixture(autouse=True)
def undisturbed() -> None:
    """Times are believed or not as they are by users."""


def shown(url: Path | str, *pairs: tuple[str, str]) -> str:
    site = Site(url)
    found = site.page("compare", Query(pairs))
    site.viewer.close()
    assert found.status == 200, text(found.html)
    return found.html


def sets(url: Path | str) -> dict[str, str]:
    """What can be chosen: the title of each key."""
    found = re.findall(r'<option value="([^"]+)"[^>]*>([^<]+)</option>', shown(url).split("</select>")[0])
    return dict(found)


def changes(url: Path | str, first: str, second: str) -> list[tuple[str, str, str]]:
    """n × k, tokens, and by how much the second is slower."""
    rows = parsed(shown(url, ("a", first), ("b", second))).rows
    return [(row[0], row[1], row[4]) for row in rows if row[0][0].isdigit()]


def of_kind(url: Path | str, kind: str) -> list[str]:
    return [key for key in sets(url) if key.startswith(f"{kind}:")]


def bundle(*records: Record, environments: int = 1) -> bytes:
    """A bundle of the records with all of their trials, in turns of so many environments."""
    entries, attempts = [], []
    for place, each in enumerate(records):
        environment = replace(ENVIRONMENT, driver=f"CUDA {place % environments}")
        entries.append(Entry(each, H200, environment))
        attempts += [TrialEntry(trial, H200, environment) for trial in trials(each)]
    return encode("llama", BundleContents(entries, attempts))


def test_compare_colours_what_is_beyond_noise(url):
    two_devices(url)
    pairs = ("a", f"device:{device_key(H200)}"), ("b", f"device:{device_key(H100)}")
    html = shown(url, *pairs)
    changes = [row for row in parsed(html).rows if row[0].startswith("4096")]
    assert (changes[0][1], changes[0][4]) == ("1", "-20.0 %")
    assert {row[4] for row in changes[1:]} == {"+0.0 %"}
    assert html.count('class="n faster"') == 1
    assert f"{0.8 ** (1 / 5):.3f}" in text(html)  # of five ratios one is 0.8


def test_compare_two_sweeps_two_drivers_and_what_is_shipped(url):
    before = fill(url, [record(ONE)])
    faster = record(ONE, median_us=4.0, low_us=3.9, high_us=4.1)
    after = fill(url, [faster], driver="CUDA 14.0")
    for kind in ("sweep", "driver"):
        html = shown(url, ("a", f"{kind}:{before}"), ("b", f"{kind}:{after}"))
        assert "-20.0 %" in text(html)
    html = shown(url, ("a", "shipped:nvidia-h200"), ("b", f"sweep:{after}"))
    assert [row[1] for row in parsed(html).rows if row[0].startswith("4096")] == ["1"]


def test_an_import_is_a_set_and_no_sweep(url, tmp_path):
    """Its records count, of two environments, and none that it did not bring."""
    other = Problem(Layer(8192, 8192), 1)
    fill(url, [record(ONE), record(Problem(LAYER, 2)), record(other)])
    path = tmp_path / "llama.bundle"
    better = {"evidence": replace(record(ONE).evidence, rounds=99), **FASTER}
    records = [record(ONE, **better), record(Problem(LAYER, 4)), record(Problem(LAYER, 2), median_us=5.05)]
    path.write_bytes(bundle(*records, environments=2))
    with Store.open(url) as store:
        import_file(store, path)
    assert of_kind(url, "sweep") == ["sweep:1"]
    assert len(of_kind(url, "driver")) == 1
    (key,) = of_kind(url, "import")
    assert re.search(rf"{path.name}, imported 20\d\d-.*, NVIDIA H200$", sets(url)[key])
    assert changes(url, "sweep:1", key) == [("4096 × 4096", "1", "-20.0 %")]
    assert {m for _, m, _ in changes(url, key, f"device:{device_key(H200)}")} == {"1", "4"}


def test_the_map_of_the_newest_sweep_comes_first_whatever_is_imported(tmp_path):
    path, url = tmp_path / "llama.bundle", tmp_path / "a.db"
    fill(url, [record(ONE, H100)], H100)
    path.write_bytes(bundle(record(ONE)))
    with Store.open(url) as store:
        import_file(store, path)
    html = Site(url).page("coverage", Query()).html
    assert re.search(r'aria-current="true">([^<]+)<', html)[1] == device_key(H100)


def test_each_pulled_set_is_one_and_one_that_is_undone_is_none(url):
    fill(url, [record(ONE)])
    before, after = record(ONE), record(ONE, **FASTER)
    with Store.open(url) as store:
        for each in (before, after, record(ONE, **FASTER, created_at="2026-01-02T00:00:00+00:00")):
            entry = Entry(each, H200, ENVIRONMENT)
            pulled.apply(store, "https://fleet", {pulled.version_of(entry)}, [entry], "llama@1f2e")
        pulled.roll_back(store)
    one, two = (f"pulled:{number}:{device_key(H200)}" for number in (1, 2))
    assert of_kind(url, "pulled") == [two, one]
    for key, state in ((one, "before"), (two, "in force")):
        assert re.match(rf"llama@1f2e, pulled 20.*, set [0-9a-f]+, {state}, NVIDIA H200$", sets(url)[key])
    assert changes(url, one, two) == [("4096 × 4096", "1", "-20.0 %")]


def test_a_channels_bundles_can_be_compared(url):
    fill(url, [record(ONE)])
    stable, candidate = bundle(record(ONE)), bundle(record(ONE, **FASTER), record(Problem(LAYER, 2)))
    with Store.open(url) as store:
        for channel, content in (("stable", stable), ("candidate", candidate)):
            digest = digest_of(content)
            channels.promote(store, channel, digest, f"llama@{digest[:12]}", content, "forced")
    keys = [f"bundle:{digest_of(content)[:12]}:{device_key(H200)}" for content in (stable, candidate)]
    assert sorted(of_kind(url, "bundle")) == sorted(keys)
    assert sets(url)[keys[0]].endswith(", stable, NVIDIA H200")
    assert changes(url, *keys) == [("4096 × 4096", "1", "-20.0 %")]


def test_a_bundle_larger_than_other_values_is_read_and_a_damaged_one_says_so(tmp_path):
    url = tmp_path / "a.db"
    fill(url, [record(ONE)])
    long = [record(Problem(Layer(64 * n, 4096), 1)) for n in range(1, 1200)]
    content = bundle(*long)
    assert len(content) > 1 << 20
    with Store.open(url) as store:
        channels.promote(store, "stable", digest_of(content), "llama@1", content, "forced")
    key = f"bundle:{digest_of(content)[:12]}:{device_key(H200)}"
    assert changes(url, key, f"device:{device_key(H200)}") == [("4096 × 4096", "1", "+0.0 %")]
    digest = "0" * 64
    change(url, f"UPDATE bundle SET digest = '{digest}'")
    found = Site(url).page("compare", Query([("a", f"bundle:{digest[:12]}:{device_key(H200)}")]))
    assert (found.status, "is not the one that was stored" in text(found.html)) == (503, True)


def test_a_sweep_shows_its_own_layers_only(url):
    """However many others come before them."""
    fill(url, [record(Problem(Layer(64 * n, 4096), 1)) for n in range(1, 60)])
    last = Problem(Layer(8192, 4096), 1)
    sweep = fill(url, [record(last)])
    assert changes(url, f"sweep:{sweep}", f"device:{device_key(H200)}") == [("8192 × 4096", "1", "+0.0 %")]


def test_layers_of_one_size_are_told_apart(url):
    sweep = fill(url, [record(Problem(Layer(4096, 4096, group_size=size), 1)) for size in (64, 128)])
    found = changes(url, f"sweep:{sweep}", f"device:{device_key(H200)}")
    assert {size for size, _, _ in found} == {
        "4096 × 4096group_size=64,dtype=fp16",
        "4096 × 4096group_size=128,dtype=fp16",
    }
    other = fill(url, [record(ONE)])
    assert changes(url, f"sweep:{sweep}", f"sweep:{other}") == [("4096 × 4096", "1", "+0.0 %")]


def test_sweeps_with_long_or_damaged_rows_hide_no_import(tmp_path):
    path, url = tmp_path / "llama.bundle", tmp_path / "a.db"
    sweep = fill(url, [record(ONE)])
    path.write_bytes(bundle(record(Problem(LAYER, 2))))
    with Store.open(url) as store:
        import_file(store, path)
        long = json.dumps({"problems": ["n" * 50] * 30_000})
        with store.database.transaction(write=True) as connection:
            raw = SWEEP.update().where(SWEEP.c.id == sweep).values(arguments=json.loads(long))
            connection.execute(raw)
    assert (of_kind(url, "sweep"), of_kind(url, "import")) == (["sweep:1"], ["import:2"])
    change(url, "UPDATE sweep SET started_at = 'soon' WHERE id = 1")
    assert (of_kind(url, "sweep"), of_kind(url, "import")) == ([], ["import:2"])
