"""Records as text: a round trip, the same bytes every time, and clear errors."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
from lookup_world import SmallFamily
from store_samples import (
    A100,
    ENVIRONMENT,
    EVIDENCE,
    FAMILY,
    H200,
    RIVAL,
    SOURCES,
    config,
    evident_trials,
    record,
    trials,
    with_evidence,
)

from autotune.families import registry
from autotune.records.exchange import export, file_names, write_text
from autotune.store import reading as stored
from autotune.store.store import Store
from autotune.store.text import read_text
from autotune.store.trouble import known_revisions
from autotune.values.errors import DatabaseError
from autotune.values.layer import BUCKETS, Layer

RECORDS = [
    record(m=m, layer=layer, best=config(tile_m=8 * m))
    for layer in (
        Layer(4096, 4096),
        Layer(1024, 4096),
        Layer(4096, 4096, group_size=64, dtype="bf16", zero_point=False),
    )
    for m in BUCKETS
]


def test_what_is_written_is_read_back(tmp_path):
    path = tmp_path / "nvidia-h200.jsonl"
    write_text(RECORDS, ENVIRONMENT, path)
    environment, records = read_text(path)
    assert environment == ENVIRONMENT
    assert records == sorted(RECORDS, key=lambda each: each.problem)
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


def test_order_of_records_and_sources_does_not_change_the_bytes(tmp_path):
    turned = replace(ENVIRONMENT, sources=dict(reversed(ENVIRONMENT.sources.items())))
    write_text(RECORDS, ENVIRONMENT, tmp_path / "a")
    write_text(RECORDS[::-1], turned, tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_line_is_one_record_in_documented_fields(tmp_path):
    path = tmp_path / "one.jsonl"
    write_text([record()], ENVIRONMENT, path)
    header, line = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    assert header == {
        "schema": known_revisions()[-1],
        "device": "NVIDIA H200",
        "arch": "sm_90",
        "driver": "CUDA 13.0",
        "compiler": "NVRTC 13.0",
        "torch": "2.13.0",
        "version": "0.1.0",
        "sources": SOURCES,
    }
    assert line == {
        "n": 4096,
        "k": 4096,
        "scheme": "int4-g128-zp-fp16",
        "m": 1,
        "config": f"{FAMILY}:tile_m=8,split_k=1",
        "median_us": 5.25,
        "low_us": 5.125,
        "high_us": 5.5,
        "default_config": f"{FAMILY}:tile_m=64,split_k=1",
        "default_us": 7.75,
        "source_hash": "0123456789abcdef",
        "created_at": "2025-01-01T00:00:00+00:00",
        "mode": "graph",
    }


def test_a_line_from_before_kernels_had_names_has_its_familys_source(tmp_path):
    path = tmp_path / "old.jsonl"
    write_text([replace(record(), source_hash="a kernel")], ENVIRONMENT, path)
    path.write_text(path.read_text().replace('"source_hash":"a kernel",', ""))
    assert read_text(path)[1] == [record()]


def test_one_new_measurement_changes_one_line(tmp_path):
    write_text(RECORDS, ENVIRONMENT, tmp_path / "a")
    write_text(
        [*RECORDS, replace(RECORDS[3], median_us=4.0, created_at="2026-01-01T00:00:00+00:00")],
        ENVIRONMENT,
        tmp_path / "b",
    )
    before, after = ((tmp_path / name).read_text().splitlines() for name in "ab")
    assert len(before) == len(after) == 1 + len(RECORDS)
    assert sum(old != new for old, new in zip(before, after, strict=True)) == 1


def test_times_are_rounded_to_a_nanosecond(tmp_path):
    write_text([replace(record(), median_us=1 / 3)], ENVIRONMENT, tmp_path / "a")
    assert read_text(tmp_path / "a")[1][0].median_us == 0.333


def test_evidence_is_read_back(tmp_path):
    path = tmp_path / "a"
    write_text([record(m=1), with_evidence(record(m=2))], ENVIRONMENT, path)
    assert read_text(path)[1] == [record(m=1), with_evidence(record(m=2))]
    without, line = (json.loads(text) for text in path.read_text().splitlines()[1:])
    assert "evidence" not in without
    assert line["evidence"] == {
        "rounds": 25,
        "gain": [1.5, 1.25, 1.75],
        "ties": [f"{FAMILY}:tile_m=8,split_k=4"],
        "runners_up": [[f"{FAMILY}:tile_m=16,split_k=1", 5.75], [f"{RIVAL}:", 6.5]],
        "clock_mhz": 1980,
        "deviation": 0.125,
        "floor_us": 3.5,
        "temperature_c": 41,
        "power_w": 350,
        "peers": [["vllm:MacheteLinearKernel", 6.25]],
        "candidates": 7,
        "learned_from": [16, 32],
    }


def test_energy_is_kept_by_databases_and_text(tmp_path):
    third = 1 / 3
    energy = ((f"{FAMILY}:tile_m=8,split_k=1", third / 100, 0.003, 0.004),)
    measured = replace(record(), evidence=replace(EVIDENCE, energy=energy))
    with Store.open(str(tmp_path / "mine.db")) as store:
        store.add_result(store.begin_sweep(H200, ENVIRONMENT, {}), trials(measured), measured, None)
        (stored,) = store.records(H200)
    assert stored.evidence.energy == energy
    write_text([stored], ENVIRONMENT, tmp_path / "a")
    assert read_text(tmp_path / "a")[1][0].evidence.energy == ((energy[0][0], 0.003333, 0.003, 0.004),)


def test_evidence_keeps_the_digits_that_mean_something(tmp_path):
    third = 1 / 3
    exact = replace(
        EVIDENCE,
        gain=(1 + third, third, 100 * third),
        ties=(),
        runners_up=((f"{FAMILY}:", third),),
        clock_mhz=None,
        deviation=third / 1000,
        floor_us=third,
        temperature_c=None,
        power_w=None,
        peers=(("vllm:MacheteLinearKernel", third),),
        candidates=None,
        learned_from=(),
    )
    write_text([replace(record(), evidence=exact)], ENVIRONMENT, tmp_path / "a")
    line = json.loads((tmp_path / "a").read_text().splitlines()[1])
    assert line["evidence"] == {
        "rounds": 25,
        "gain": [1.333, 0.3333, 33.33],
        "runners_up": [[f"{FAMILY}:", 0.333]],
        "deviation": 0.0003333,
        "floor_us": 0.333,
        "peers": [["vllm:MacheteLinearKernel", 0.333]],
    }
    assert read_text(tmp_path / "a")[1][0].evidence.clock_mhz is None


@pytest.fixture
def families(monkeypatch):
    """The families of the registry are those of the samples."""
    monkeypatch.setattr(registry, "families", lambda: {name: SmallFamily(name) for name in SOURCES})


@pytest.mark.usefixtures("families")
def test_samples_are_exported_beside_the_records_of_their_problems(tmp_path):
    later, failed = replace(ENVIRONMENT, driver="CUDA 13.1"), replace(record(m=4), config=config(99))
    with Store.open(str(tmp_path / "mine.db")) as store:
        first = store.begin_sweep(H200, ENVIRONMENT, {})
        store.add_result(first, trials(record()), record(), None)
        store.add_result(first, trials(failed)[2:], None, None)
        store.add_result(store.begin_sweep(H200, later, {}), evident_trials(record()), record(), None)
        written = export(store, tmp_path / "out", samples=True)
        assert [path.name for path in written] == ["nvidia-h200.jsonl", "nvidia-h200.samples.jsonl"]
        assert [path.name for path in export(store, tmp_path / "plain")] == ["nvidia-h200.jsonl"]
    header, *lines = map(json.loads, written[1].read_text().splitlines())
    assert (header["device"], header["arch"]) == (H200.name, H200.arch)
    assert [each["driver"] for each in header["environments"]] == ["CUDA 13.0", "CUDA 13.1"]
    assert [(each["m"], each["environment"]) for each in lines] == [(1, 0)] * 3 + [(1, 1)] * 3
    assert lines[4] == {
        "n": 4096,
        "k": 4096,
        "scheme": "int4-g128-zp-fp16",
        "m": 1,
        "config": f"{FAMILY}:tile_m=8,split_k=1",
        "status": "ok",
        "median_us": 5.25,
        "low_us": 5.125,
        "high_us": 5.5,
        "error": None,
        "mode": "server",
        "clock_mhz": 1980,
        "deviation": 0.125,
        "source_hash": "0123456789abcdef",
        "environment": 1,
        "samples_us": [5.0, 5.25, 5.5],
    }
    assert (lines[5]["status"], lines[5]["samples_us"]) == ("failed", [])


@pytest.mark.usefixtures("families")
def test_devices_that_share_a_name_have_files_of_their_own(tmp_path):
    other = replace(H200, arch="sm_91")
    with Store.open(str(tmp_path / "mine.db")) as store:
        for device, m in ((H200, 1), (other, 2), (A100, 4)):
            store.add_result(store.begin_sweep(device, ENVIRONMENT, {}), [], record(m=m), None)
        written = export(store, tmp_path / "out", samples=True)
    records = [path for path in written if not path.name.endswith(".samples.jsonl")]
    assert len(set(written)) == 6
    found = {path.name: [each.arch for each in read_text(path)[1]] for path in records}
    assert found == {
        "nvidia-a100.jsonl": ["sm_80"],
        "nvidia-h200-sm-90.jsonl": ["sm_90"],
        "nvidia-h200-sm-91.jsonl": ["sm_91"],
    }


def test_no_two_devices_have_one_file_name():
    names = ["CPU", "cpu", "C-P-U", "CPU a", "CPU!", "処理装置", "装置", ""]
    devices = [replace(H200, name=name, arch=arch) for name in names for arch in ("a", "b", "a b", "")]
    found = file_names(devices)
    assert len(set(found.values())) == len(devices)
    assert all(re.fullmatch("[a-z0-9][a-z0-9-]*", name) for name in found.values())


@pytest.mark.usefixtures("families")
def test_records_of_other_kernels_are_not_exported(tmp_path):
    with Store.open(str(tmp_path / "mine.db")) as store:
        sweep = store.begin_sweep(H200, ENVIRONMENT, {})
        old = replace(record(), source_hash="another kernel")
        store.add_result(sweep, [], old, None)
        with pytest.raises(DatabaseError, match="no records of today's kernels; run autotune sweep"):
            export(store, tmp_path)
        store.add_result(sweep, [], record(m=2), None)
        (path,) = export(store, tmp_path)
    assert read_text(path)[1] == [record(m=2)]


@pytest.mark.usefixtures("families")
def test_kernels_of_others_hide_nothing_and_stay_at_home(tmp_path):
    foreign = replace(ENVIRONMENT, sources={"theirs": "abcdef0123456789"})
    theirs = replace(record(at=30), config=config(family="theirs"), source_hash="abcdef0123456789")
    with Store.open(str(tmp_path / "mine.db")) as store:
        for environment, each in ((ENVIRONMENT, record(at=1)), (foreign, theirs)):
            store.add_result(store.begin_sweep(H200, environment, {}), trials(each), each, None)
        assert store.environment(H200) == foreign
        (path,) = export(store, tmp_path)
    assert read_text(path) == (ENVIRONMENT, [record(at=1)])


def test_no_look_up_reads_samples(tmp_path, monkeypatch):
    monkeypatch.setattr(stored, "shipped", lambda _: tmp_path)
    for name in ("a.jsonl", "a.samples.jsonl"):
        (tmp_path / name).touch()
    assert [path.name for path in stored.shipped_files()] == ["a.jsonl"]


def test_a_file_of_another_arch_gives_no_records(tmp_path):
    write_text(RECORDS, ENVIRONMENT, tmp_path / "a")
    assert read_text(tmp_path / "a", arch="sm_80") == (ENVIRONMENT, [])
    assert len(read_text(tmp_path / "a", arch="sm_90")[1]) == len(RECORDS)


@pytest.mark.parametrize(
    ("records", "words"),
    [
        ([], "not of 0"),
        ([record(), record(m=2, device=A100)], "not of 2"),
    ],
)
def test_records_that_make_no_file(tmp_path, records, words):
    with pytest.raises(DatabaseError, match=words):
        write_text(records, ENVIRONMENT, tmp_path / "a")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DatabaseError, match="cannot be written"):
        write_text([record()], ENVIRONMENT, tmp_path / "file" / "a")


@pytest.mark.parametrize(
    ("damage", "line"),
    [
        (lambda lines: lines[:0], 1),
        (lambda lines: ["[]", *lines[1:]], 1),
        (lambda lines: ['{"device":"NVIDIA H200","arch":"sm_90"}', *lines[1:]], 1),
        (lambda lines: [*lines[:2], lines[2][:50]], 3),
        (lambda lines: [*lines[:2], lines[2].replace(f"{FAMILY}:", f"{FAMILY.upper()}!")], 3),
        (lambda lines: [*lines[:2], lines[2].replace('"k":4096', '"k":4095')], 3),
        (lambda lines: [*lines[:2], lines[2].replace('"m":2', '"m":"two"')], 3),
        (lambda lines: [*lines[:2], lines[2].replace('"median_us"', '"median_ms"')], 3),
        (lambda lines: [*lines[:2], "7"], 3),
        (lambda lines: [*lines[:2], lines[2].replace('"rounds"', '"round"')], 3),
        (lambda lines: [*lines[:2], lines[2].replace('"gain":[', '"gain":[1,')], 3),
    ],
)
def test_a_damaged_line_is_named(tmp_path, damage, line):
    path = tmp_path / "a.jsonl"
    write_text([record(m=1), with_evidence(record(m=2))], ENVIRONMENT, path)
    path.write_text("\n".join(damage(path.read_text().splitlines())))
    with pytest.raises(DatabaseError, match=rf"a\.jsonl, line {line}: not a record") as raised:
        read_text(path)
    assert "\n" not in str(raised.value)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(DatabaseError, match="cannot be read"):
        read_text(tmp_path / "nothing.jsonl")


def test_group_of_all_k_round_trips(tmp_path):
    stored = record(layer=Layer(64, 72, group_size=-1))
    write_text([stored], ENVIRONMENT, tmp_path / "a")
    assert read_text(tmp_path / "a")[1] == [stored]


def test_a_time_below_a_nanosecond_is_not_written_as_none(tmp_path):
    tiny = replace(record(), evidence=replace(EVIDENCE, floor_us=1.23456e-5))
    write_text([tiny], ENVIRONMENT, tmp_path / "a")
    assert read_text(tmp_path / "a")[1][0].evidence.floor_us == 1.235e-5
