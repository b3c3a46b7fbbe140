"""Pulls: from databases, bundles and HTTP servers into a local file, beside what was measured there."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
from dataclasses import replace

import pytest
from command_line import PROGRAM
from databases import change
from killed import killed_at
from lookup_world import store
from pulling import ALL, FAST, SLOW, answer, pulls
from store_samples import A100, ENVIRONMENT, EVIDENCE, H200, LAYER, binary, config, record

from autotune.bundles.collect import collected
from autotune.bundles.keys import new_key
from autotune.bundles.pull import pull
from autotune.records.lookup import Lookup
from autotune.serving.sets import hand_on_set
from autotune.store import pulled
from autotune.store.entries import Wanted
from autotune.store.prune import prune
from autotune.store.reading import pulled_set, user_evidence, user_records
from autotune.store.store import Store
from autotune.values.errors import BundleError, DatabaseError
from autotune.values.layer import Layer

pytestmark = pytest.mark.usefixtures("database")


def test_what_a_database_knows_answers_here(url, database):
    store(url, replace(record(best=FAST), evidence=EVIDENCE))
    assert answer().source == "default"
    outcome = pulls(url)
    assert (outcome.records, outcome.offered) == (1, 1)
    found = answer()
    assert (found.source, found.config) == ("exact", FAST)
    assert found.record.origin == outcome.origin
    assert user_evidence(database, found.record) == (EVIDENCE, ENVIRONMENT)


def test_only_what_is_new_is_fetched_and_what_is_gone_goes(url):
    store(url, *(record(m=m, best=FAST) for m in (1, 2, 4)))
    assert pulls(url).records == 3
    assert pulls(url).changed is None
    with Store.open(url) as central:
        sweep = central.begin_sweep(H200, ENVIRONMENT, {})
        central.add_result(sweep, (), record(m=1, best=SLOW, at=9), None, [record(m=2, best=FAST)])
    outcome = pulls(url)
    assert (outcome.records, outcome.offered) == (1, 2)
    assert [answer(m).config for m in (1, 4)] == [SLOW, FAST]
    assert answer(2).source == "default"


def test_what_was_measured_here_goes_first(tmp_path, database):
    store(tmp_path / "central.db", record(best=FAST, at=9), record(m=2, best=FAST))
    store(database, record(best=SLOW))
    pulls(tmp_path / "central.db")
    assert [answer(m).config for m in (1, 2)] == [SLOW, FAST]


def test_a_host_pulls_its_devices_and_layers(tmp_path):
    store(tmp_path / "central.db", record(), record(device=A100), record(layer=Layer(1024, 4096)))
    outcome = pulls(tmp_path / "central.db", Wanted({H200.name}, {LAYER}))
    assert (outcome.records, outcome.offered) == (1, 1)


def test_a_rollback_brings_the_former_answer_back(tmp_path):
    central = tmp_path / "central.db"
    store(central, record(best=FAST), record(m=2, best=FAST))
    first = pulls(central).changed
    store(central, record(best=SLOW, at=9), record(m=4, best=SLOW))
    second = pulls(central).changed
    assert [answer(m).config for m in (1, 2, 4)] == [SLOW, FAST, SLOW]
    with Store.open() as here:
        assert pulled.roll_back(here) == (replace(second, rolled_back=True), first)
    assert [answer(m).config for m in (1, 2)] == [FAST, FAST]
    assert answer(4).source == "default"
    kept = pulls(central, again=False)
    assert (kept.changed, kept.undone) == (None, True)
    assert answer().config == FAST
    assert pulls(central).changed.name == second.name
    assert answer().config == SLOW
    with Store.open() as here:
        pulled.roll_back(here)
        assert pulled.roll_back(here)[1] is None
        with pytest.raises(DatabaseError, match="keeps no pulled set"):
            pulled.roll_back(here)
    assert answer().source == "default"


def test_rollbacks_at_once_undo_one_set_each(tmp_path):
    names = set()
    for at in range(4):
        store(tmp_path / "central.db", record(best=config(8 * (at + 1)), at=at))
        names.add(pulls(tmp_path / "central.db").changed.name)
    together, undone = threading.Barrier(4), []

    def one() -> None:
        with Store.open() as here:
            together.wait()
            undone.append(pulled.roll_back(here)[0].name)

    threads = [threading.Thread(target=one) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(undone) == sorted(names)
    assert answer().source == "default"


def test_a_group_reads_the_set_that_it_was_told(tmp_path, monkeypatch):
    central = tmp_path / "central.db"
    store(central, record(best=FAST))
    first = pulls(central).changed
    store(central, record(best=SLOW, at=9))
    pulls(central)
    monkeypatch.setenv("AUTOTUNE_SET", first.name)
    assert answer().config == FAST
    monkeypatch.setenv("AUTOTUNE_SET", "unheard")
    with pytest.warns(UserWarning, match="AUTOTUNE_SET=unheard names no pulled set"):
        assert answer().config == SLOW


def test_a_damaged_row_costs_nothing_but_itself(tmp_path, database):
    store(tmp_path / "central.db", record(best=FAST), record(m=2, best=FAST))
    pulls(tmp_path / "central.db")
    change(database, "UPDATE pulled SET median_us = -1 WHERE m = 1")
    with pytest.warns(UserWarning, match="rows left out: 1; the first: record 1 does not read"):
        sources = [answer(m).source for m in (2, 1)]
    assert sources == ["exact", "default"]


def test_old_sets_are_forgotten(tmp_path):
    central = tmp_path / "central.db"
    for at in range(pulled.KEPT_SETS + 4):
        store(central, record(best=config(8 * (at + 1)), at=at))
        pulls(central)
    with Store.open() as here:
        assert len(pulled.sets(here)) == pulled.KEPT_SETS + 1  # to which the last undo leads
        for _ in range(pulled.KEPT_SETS):
            pulled.roll_back(here)
        with pytest.raises(DatabaseError, match="keeps no pulled set"):
            pulled.roll_back(here)
    assert answer().config == config(8 * 4)


def test_a_source_must_be_another_one_that_is_there(tmp_path, database):
    missing = tmp_path / "missing.db"
    with pytest.raises(DatabaseError, match="is not there"):
        pulls(missing)
    assert not missing.exists()
    store(database, record())
    link = tmp_path / "link.db"
    link.symlink_to(database)
    for itself in (database, link, f"{database.parent}/./{database.name}"):
        with pytest.raises(DatabaseError, match="pulled from itself"):
            pulls(itself)


def test_a_source_that_is_neither_a_bundle_nor_a_database(tmp_path):
    (tmp_path / "text.jsonl").write_text('{"device":"NVIDIA H200"}\n')
    os.mkfifo(tmp_path / "pipe")
    for name, why in (
        ("text.jsonl", "is neither a bundle nor a database; autotune import takes files of records"),
        ("pipe", "is no file"),
        (".", "is no file"),
        ("a\nb", "is no name to remember"),
        ("a" * 1000, "is no name to remember"),
    ):
        with pytest.raises((BundleError, DatabaseError), match=why):
            pulls(tmp_path / name)


def test_who_has_none_of_the_devices_is_told_which_there_are(tmp_path, signed):
    store(tmp_path / "central.db", record(), record(device=A100))
    found = pulls(tmp_path / "central.db", Wanted({"NVIDIA B200"}))
    assert (found.offered, list(found.devices)) == (0, [A100.name, H200.name])
    assert list(pulls(tmp_path / "central.db", Wanted({A100.name})).devices) == []
    assert list(pulls(signed("mine", record()), Wanted({A100.name})).devices) == [H200.name]


def test_models_read_files_only(postgres, template, tmp_path):
    name = postgres.create(template)
    store(tmp_path / "central.db", record())
    with Store.open(postgres.url(name)) as server, pytest.raises(DatabaseError, match="is no file"):
        pull(server, str(tmp_path / "central.db"), ALL)


def test_a_signed_bundle_brings_its_binaries(signed):
    path = signed("mine", record(best=FAST), cubin=binary())
    outcome = pulls(path)
    assert outcome.changed.bundle.startswith("mine@")
    assert outcome.changed.signer.startswith("release (")
    assert answer().config == FAST
    with Store.open() as here:
        assert prune(here)["kernel"] == 0
        assert Lookup(H200).binary("unit") == binary().cubin
        pulled.roll_back(here)
        assert prune(here)["kernel"] == 1


def test_kernels_that_come_later_are_brought(signed):
    pulls(signed("mine", record(best=FAST)))
    assert Lookup(H200).binary("unit") is None
    outcome = pulls(signed("mine", record(best=FAST), cubin=binary()))
    assert outcome.changed is not None
    assert Lookup(H200).binary("unit") == binary().cubin


def test_a_bundle_takes_the_place_of_one_of_its_name(signed):
    pulls(signed("mine", record(best=FAST), record(m=2)))
    pulls(signed("other", record(m=4)))
    assert answer(2).source == "exact"
    pulls(signed("mine", record(best=SLOW, at=1)))
    assert [answer(m).source for m in (1, 2, 4)] == ["exact", "default", "exact"]
    assert answer().config == SLOW


def test_what_is_not_trusted_changes_nothing(signed, tmp_path, database):
    new_key("stranger")
    good = signed("mine", record(best=FAST))
    edited = tmp_path / "edited.bundle"
    edited.write_bytes(good.read_bytes().replace(b"tile_m=16", b"tile_m=24", 1))
    cut = tmp_path / "cut.bundle"
    cut.write_bytes(good.read_bytes()[:-700])
    strange = tmp_path / "strange.bundle"
    head = good.read_bytes().splitlines(keepends=True)[0]
    strange.write_bytes(head + b"[" * json.loads(head)["bytes"])
    for path, why in (
        (signed("none", record(best=FAST), key=None), "has no signature"),
        (signed("other", record(best=FAST), key="stranger"), "nobody here trusts its key"),
        (edited, "it was edited"),
        (cut, "cut off"),
        (strange, "has no signature"),  # before anybody reads what is in it
    ):
        with pytest.raises(BundleError, match=why):
            pulls(path)
    assert user_records(database, H200, LAYER) == ([], [])


def test_a_kill_leaves_all_or_nothing(tmp_path):
    store(tmp_path / "central.db", *(record(m=m) for m in (1, 2, 4)))
    Store.open().close()
    for write in (1, 3, 5, 99):
        code = killed_at(write, "pull", str(tmp_path / "central.db"), "--device", "all")
        assert code == (0 if write == 99 else -signal.SIGKILL)
        sources = {answer(m).source for m in (1, 2, 4)}
        assert sources == ({"exact"} if write == 99 else {"default"})


def test_watch_goes_on_until_sigterm(tmp_path):
    central, here = tmp_path / "central.db", tmp_path / "here.db"
    store(central, record())
    command = (*PROGRAM, "pull", str(central), "--device", "all", "--db", str(here), "--watch", "0.1s")
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as watch:
        assert "1 new, 1 record " in watch.stdout.readline()
        store(central, record(m=2))
        assert "1 new, 2 records " in watch.stdout.readline()
        with Store.open(str(here)) as opened:
            pulled.roll_back(opened)
        while not (line := watch.stderr.readline()).startswith("a rollback undid this"):
            assert line.startswith("nothing new")
        central.rename(tmp_path / "away.db")
        while not (line := watch.stderr.readline()).startswith("warning"):
            pass
        assert "is not there" in line
        watch.send_signal(signal.SIGTERM)
        assert watch.wait() == 0


def test_an_engine_hands_its_set_on(tmp_path, database, monkeypatch):
    monkeypatch.delenv("AUTOTUNE_SET", raising=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.environ", dict(os.environ))
        hand_on_set()
        assert "AUTOTUNE_SET" not in os.environ
        store(tmp_path / "central.db", record())
        first = pulls(tmp_path / "central.db").changed
        hand_on_set()
        store(tmp_path / "central.db", record(m=2))
        pulls(tmp_path / "central.db")
        hand_on_set()
        assert os.environ["AUTOTUNE_SET"] == first.name
    assert pulled_set(database) != first.name


def test_a_collected_bundle_is_what_a_database_has(tmp_path):
    store(tmp_path / "central.db", replace(record(best=FAST), evidence=EVIDENCE), cubin=binary())
    with Store.open(str(tmp_path / "central.db")) as central:
        contents = collected(central, ALL, binaries=True, samples=True)
    assert [entry.binary for entry in contents.entries] == [binary()]
    assert len(contents.attempts) == 3
