"""Import: better evidence wins, conflicts are told, and a kill leaves all or nothing."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
from databases import rows
from killed import killed_at
from lookup_world import ship, store
from store_samples import (
    ENVIRONMENT,
    EVIDENCE,
    FAMILY,
    H200,
    LAYER,
    RIVAL,
    binary,
    config,
    evident_trials,
    record,
)

from autotune.bundles.format import BundleContents
from autotune.bundles.keys import new_key, signing_key, trust, trusted_keys
from autotune.bundles.taking import import_file
from autotune.bundles.trust import create
from autotune.cli import main
from autotune.records.exchange import export
from autotune.store.entries import Entry, TrialEntry, Wanted, entries
from autotune.store.history import history
from autotune.store.store import Store
from autotune.store.tables import RECORD
from autotune.values.config import Config
from autotune.values.errors import BundleError, DatabaseError
from autotune.values.record import Record

EVIDENT = replace(record(), evidence=EVIDENCE)
MORE = replace(EVIDENCE, rounds=EVIDENCE.rounds + 1)
OTHER = config(16)
STRANGE = config(family="warp_drive")

pytestmark = pytest.mark.usefixtures("database")


@pytest.fixture
def undisturbed() -> None:
    """No time is measured here, and some are not to be believed."""


def bundle(folder: Path, *records, cubin=None, attempts=(), key=None, device=H200) -> Path:
    found = [Entry(each, device, ENVIRONMENT, cubin) for each in records]
    return create("mine", BundleContents(found, attempts), folder / "bundles", key)[1]


def imports(path: Path, url: str | None = None, **more):
    with Store.open(url) as opened:
        return import_file(opened, path, **more)


@pytest.mark.parametrize(
    ("here", "there", "verdict"),
    [
        (record(), record(), "same"),
        (record(), EVIDENT, "better"),
        (EVIDENT, record(at=9), "worse"),
        (EVIDENT, replace(record(best=OTHER), evidence=MORE), "better"),
        (
            replace(record(at=9), evidence=MORE),
            replace(record(best=OTHER, at=10), evidence=EVIDENCE),
            "worse",
        ),
        (record(at=1), record(best=OTHER, at=2), "better"),
        (record(at=2), record(best=OTHER, at=1), "worse"),
    ],
)
def test_better_evidence_wins(url, tmp_path, here, there, verdict):
    store(url, here)
    path = bundle(tmp_path, there)
    for dry_run in (True, False):
        (merged,) = imports(path, url, dry_run=dry_run).merged
        assert merged.verdict == verdict
        with Store.open(url) as opened:
            expected = there if verdict == "better" and not dry_run else here
            assert opened.records() == [expected]


def test_a_date_to_come_is_no_newer(tmp_path, database):
    later = replace(record(best=OTHER), created_at="2999-01-01T00:00:00+00:00")
    store(database, later)
    (merged,) = imports(bundle(tmp_path, record(best=config(24), at=5))).merged
    assert merged.verdict == "worse"
    imports(bundle(tmp_path, replace(record(best=config(24)), evidence=EVIDENCE)))
    with Store.open() as opened:
        assert [each.config for each in opened.records()] == [config(24)]


def test_an_export_is_imported(url, tmp_path):
    store(url, EVIDENT, record(m=2))
    with Store.open(url) as opened:
        export(opened, tmp_path / "text", samples=True)
    done = imports(tmp_path / "text")
    assert [each.verdict for each in done.merged] == ["new", "new"]
    assert [each.verdict for each in imports(tmp_path / "text").merged] == ["same", "same"]
    with Store.open() as opened:
        assert opened.records() == [EVIDENT, record(m=2)]
        assert opened.devices() == [H200]
        assert [event.event for event in history(opened)] == ["import", "import"]


def test_samples_and_evidence_come_along_once(tmp_path):
    attempts = [TrialEntry(trial, H200, ENVIRONMENT) for trial in evident_trials(EVIDENT)]
    path = bundle(tmp_path, EVIDENT, attempts=attempts)
    imports(path)
    imports(path)
    with Store.open() as opened:
        found = opened.trials(EVIDENT.problem, H200)
        assert sorted(found, key=str) == sorted(evident_trials(EVIDENT), key=str)
        assert opened.devices() == [H200]
        assert opened.environment(H200) == ENVIRONMENT


def test_binaries_are_taken_of_a_trusted_signature_only(tmp_path, database):
    trust(new_key("release"))
    path = bundle(tmp_path, EVIDENT, cubin=binary(), key=signing_key("release"))
    done = imports(path)
    assert (done.binaries, done.dropped_binaries) == (0, 1)
    assert rows(str(database), "binary") == []
    other = tmp_path / "other.db"
    done = imports(path, str(other), trusted=trusted_keys())
    assert (done.binaries, done.dropped_binaries) == (1, 0)
    with Store.open(str(other)) as opened:
        assert [entry.binary for entry in entries(opened, Wanted(), binaries=True)] == [binary()]


def test_who_trusts_a_key_takes_nothing_without_its_signature(tmp_path):
    new_key("release")
    for path in (bundle(tmp_path, EVIDENT), tmp_path):
        with pytest.raises(BundleError, match=r"no signature|nobody signed it"):
            imports(path, trusted=[signing_key("release").public])
    with Store.open() as opened:
        assert opened.records() == []


def test_what_was_edited_since_it_was_signed_is_refused_whoever_signed(tmp_path):
    new_key("somebody")
    path = bundle(tmp_path, EVIDENT, key=signing_key("somebody"))
    signature = path.read_bytes().splitlines(keepends=True)[-1]
    mixed = tmp_path / "mixed.bundle"
    mixed.write_bytes(bundle(tmp_path, record(m=2)).read_bytes() + signature)
    with pytest.raises(BundleError, match="it was edited"):
        imports(mixed)
    assert [each.verdict for each in imports(path).merged] == ["new"]


def test_of_two_records_in_one_folder_the_better_stays(tmp_path):
    for name, each in (("a", record()), ("b", EVIDENT)):
        with Store.open(str(tmp_path / f"{name}.db")) as opened:
            store(tmp_path / f"{name}.db", each)
            (text,) = export(opened, tmp_path / name)
        (tmp_path / "both").mkdir(exist_ok=True)
        text.rename(tmp_path / "both" / f"{name}.jsonl")
    assert sorted(each.verdict for each in imports(tmp_path / "both").merged) == ["new", "worse"]
    with Store.open() as opened:
        assert opened.records() == [EVIDENT]


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"median_us": 0.9, "low_us": 0.9, "high_us": 0.9}, "0.90 us is not possible"),
        ({"median_us": 9.0}, "has an interval of"),
    ],
)
def test_what_cannot_be_believed_takes_the_place_of_nothing(tmp_path, database, changed, why):
    store(database, record())
    evidence = replace(EVIDENT.evidence, rounds=10**6, floor_us=2.0)
    done = imports(bundle(tmp_path, replace(EVIDENT, evidence=evidence, **changed)))
    assert list(done.merged) == []
    assert [why in each for each in done.unbelievable] == [True]
    with Store.open() as opened:
        assert opened.records() == [record()]


def edited(median_us: float, floor_us: float | None, m: int = 2) -> Record:
    """A record whose time and floor are as somebody wants them."""
    times = {"median_us": median_us, "low_us": median_us, "high_us": median_us}
    evidence = None if floor_us is None else replace(EVIDENCE, rounds=10**6, floor_us=floor_us)
    return replace(record(m=m), evidence=evidence, **times)


@pytest.mark.parametrize("floor_us", [0.001, None])
def test_an_edited_floor_makes_no_time_possible(tmp_path, database, floor_us):
    # The device reads 4.9 TB/s at most, and by the record that is here at most 2.5 TB/s.
    at_most = {"empty": 0.5 * LAYER.weight_bytes / 4_900e3, "known": 0.5 * EVIDENCE.floor_us}
    store(database, EVIDENT)
    for name, url in (("empty", str(tmp_path / "empty.db")), ("known", str(database))):
        for median_us, is_possible in ((0.99 * at_most[name], False), (1.02 * at_most[name], True)):
            done = imports(bundle(tmp_path / name / str(is_possible), edited(median_us, floor_us)), url)
            assert [bool(done.merged), bool(done.unbelievable)] == [is_possible, not is_possible]


def test_what_ships_tells_of_the_device_too(tmp_path):
    ship(tmp_path, replace(EVIDENT, evidence=replace(EVIDENCE, floor_us=4.0)))
    assert "the roofline's time is 4.0" in imports(bundle(tmp_path, edited(1.9, 0.001))).unbelievable[0]


def test_trials_are_judged_as_records_are(tmp_path):
    good = evident_trials(EVIDENT)
    bad = [replace(good[1], median_us=0.01, low_us=0.01, high_us=0.01), replace(good[0], config=STRANGE)]
    attempts = [TrialEntry(trial, H200, ENVIRONMENT) for trial in (*good, *bad)]
    done = imports(bundle(tmp_path, EVIDENT, attempts=attempts))
    assert (len(done.unbelievable), len(done.unknown)) == (1, 1)
    with Store.open() as opened:
        assert sorted(opened.trials(EVIDENT.problem, H200), key=str) == sorted(good, key=str)


def test_a_date_that_does_not_read_is_the_files(tmp_path, database):
    store(database, record())
    with Store.open() as opened:
        (text,) = export(opened, tmp_path / "text")
    text.write_text(text.read_text().replace('"created_at":"', '"created_at":"some day, '))
    with pytest.raises(DatabaseError, match=r"nvidia-h200\.jsonl, line 2: not a record"):
        imports(text)


def test_a_dry_run_makes_no_database(tmp_path, capsys):
    path = bundle(tmp_path, record())
    assert main(["import", str(path), "--dry-run", "--db", str(tmp_path / "none.db")]) == 0
    assert capsys.readouterr().err == "would be: 1 new, 0 better, 0 worse, 0 same\n"
    assert not (tmp_path / "none.db").exists()


def test_a_file_may_have_any_name(url, tmp_path):
    path = tmp_path / os.fsdecode(b"o\xffd\n.bundle")
    bundle(tmp_path, record()).rename(path)
    assert [each.verdict for each in imports(path, url).merged] == ["new"]


def test_what_is_known_of_a_device_stays(tmp_path, database):
    store(database, record(m=2))
    imports(bundle(tmp_path, record(), device=replace(H200, cores=1, l2_bytes=1)))
    with Store.open() as opened:
        assert opened.devices() == [H200]
        assert len(opened.records(H200)) == 2


@pytest.mark.parametrize(
    ("strange", "why"),
    [
        (STRANGE, "family is one of "),
        (Config.of(FAMILY, tile_m=8, warp=9), "its tunables are tile_m, split_k"),
        (Config.of(FAMILY, tile_m=8), "its tunables are tile_m, split_k"),
    ],
)
def test_an_unknown_config_is_left_out(tmp_path, strange, why):
    path = bundle(tmp_path, record(), replace(record(m=2), config=strange))
    done = imports(path)
    assert [f"has config {strange}: " in each and why in each for each in done.unknown] == [True]
    with Store.open() as opened:
        assert opened.records() == [record()]


def test_the_command_says_what_is_left_out(tmp_path, capsys):
    path = bundle(
        tmp_path, record(), *(replace(record(m=m), config=STRANGE) for m in (2, 4)), edited(9.0, 1e6, m=8)
    )
    assert main(["import", str(path)]) == 0
    told = capsys.readouterr().err.splitlines()
    assert told[0] == "1 new, 0 better, 0 worse, 0 same"
    assert told[1].startswith("left out as not known here: 2; the first: m=2,")
    assert told[2].startswith("left out as not to be believed: 1; the first: m=8,")


def test_a_bad_file_changes_nothing(tmp_path, database):
    store(database, record())
    path = bundle(tmp_path, record(m=2), record(m=4))
    cut = tmp_path / "cut.bundle"
    cut.write_bytes(path.read_bytes()[:-100])
    with Store.open() as opened:
        (text,) = export(opened, tmp_path / "text")
    lines = text.read_bytes().splitlines(keepends=True)
    newer = tmp_path / "newer.jsonl"
    newer.write_bytes(lines[0].replace(b'"0006"', b'"9999"') + lines[1])
    nobody = tmp_path / "nobody.jsonl"
    nobody.write_bytes(lines[0].replace(b'"sm_90"', b"90") + lines[1])
    for bad, why in (
        (cut, "cut off"),
        (newer, "made by a newer autotune"),
        (nobody, r"nobody\.jsonl, line 1: not a record \(device does not read: arch=90"),
        (tmp_path / "bundles", "has no file of records"),
        (tmp_path / "config", "has no file of records"),
    ):
        (tmp_path / "config").mkdir(exist_ok=True)
        with pytest.raises((BundleError, DatabaseError), match=why):
            imports(bad)
    with Store.open() as opened:
        assert opened.records() == [record()]


def test_a_kill_leaves_all_or_nothing(tmp_path, database):
    store(database, record(best=OTHER))
    path = bundle(tmp_path, replace(record(at=5), evidence=EVIDENCE), record(m=2), record(m=4))
    for write in (1, 3, 4, 5, 99):
        code = killed_at(write, "import", str(path))
        assert code == (0 if write == 99 else -signal.SIGKILL)
        with Store.open() as opened:
            assert len(opened.records()) == (3 if write == 99 else 1)
            assert (opened.records()[0].config == OTHER) == (write != 99)
    assert len(rows(str(database), RECORD.name)) == 3


def test_the_command_tells_conflicts(tmp_path, database, capsys):
    store(database, record(best=config(family=RIVAL, tile_m=8)))
    with Store.open() as opened:
        (text,) = export(opened, tmp_path / "text")
    there = tmp_path / "there.jsonl"
    there.write_text(
        text.read_text().replace('"median_us":5.25', '"median_us":5.2').replace(":00+00", ":09+00")
    )
    assert main(["import", str(there), "--dry-run", "--json"]) == 0
    shown = capsys.readouterr()
    told = json.loads(shown.out)
    assert (told["verdict"], told["here"]["median_us"], told["there"]["median_us"]) == ("better", 5.25, 5.2)
    assert "would be: 0 new, 1 better, 0 worse, 0 same" in shown.err
