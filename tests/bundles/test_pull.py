"""Pulls: from databases, bundles and HTTP servers into a local file, beside what was measured there."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from command_line import PROGRAM
from databases import change
from killed import killed_at
from lookup_world import make_small_world, store
from store_samples import A100, ENVIRONMENT, EVIDENCE, H200, LAYER, binary, config, record

from autotune.bundles import format as format_
from autotune.bundles.collect import collected
from autotune.bundles.download import Download
from autotune.bundles.format import BundleContents
from autotune.bundles.keys import new_key, signing_key, trust
from autotune.bundles.pull import pull
from autotune.bundles.trust import create
from autotune.records.lookup import Lookup
from autotune.serving.sets import hand_on_set
from autotune.store import pulled
from autotune.store.entries import Entry, Wanted
from autotune.store.prune import prune
from autotune.store.reading import pulled_set, user_evidence, user_records
from autotune.store.store import Store
from autotune.values.errors import BundleError, DatabaseError
from autotune.values.layer import BUCKETS, Layer, Problem

ALL = Wanted()
FAST, SLOW = config(16), config(32)


@pytest.fixture(autouse=True)
def database(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("AUTOTUNE_CACHE", str(tmp_path / "cache"))
    return make_small_world(tmp_path, monkeypatch)


@pytest.fixture
def signed(tmp_path):
    """Makes bundles that a trusted key signed."""
    trust(new_key("release"))

    def make(name: str, *records, cubin=None, key: str | None = "release") -> Path:
        entries = [Entry(each, H200, ENVIRONMENT, cubin) for each in records]
        return create(name, BundleContents(entries), tmp_path / "bundles", key and signing_key(key))[1]

    return make


def pulls(source: object, wanted: Wanted = ALL, **more):
    with Store.open() as opened:
        return pull(opened, str(source), wanted, **more)


def answer(m: int = 1):
    return Lookup(H200).answer(Problem(LAYER, m))


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
    assert pulls(central, again=False).changed is None
    assert answer().config == FAST
    assert pulls(central).changed.name == second.name
    assert answer().config == SLOW
    with Store.open() as here:
        pulled.roll_back(here)
        assert pulled.roll_back(here)[1] is None
        with pytest.raises(DatabaseError, match="keeps no pulled set"):
            pulled.roll_back(here)
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
    with pytest.raises(DatabaseError, match="pulled from itself"):
        pulls(database)


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
    for path, why in (
        (signed("none", record(best=FAST), key=None), "has no signature"),
        (signed("other", record(best=FAST), key="stranger"), "nobody here trusts its key"),
        (edited, "it was edited"),
        (cut, "cut off"),
    ):
        with pytest.raises(BundleError, match=why):
            pulls(path)
    assert user_records(database, H200, LAYER) == ([], [])


class Server(ThreadingHTTPServer):
    """Serves `content` with ranges; each answer ends after `most` bytes, as a connection that breaks."""

    daemon_threads = True

    def __init__(self, content: bytes) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.content, self.most = content, 1 << 30
        self.etag, self.ranges = '"1"', True
        self.lies = False  # of what part it sends
        self.asked: list[str | None] = []
        self.answers: list[int] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/mine.bundle"


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server = self.server
        asked = self.headers["Range"]
        server.asked.append(asked)
        if self.headers["If-None-Match"] == server.etag:
            self._answer(304)
            return
        begin = 0
        if asked and server.ranges and self.headers["If-Range"] == server.etag:
            begin = int(re.fullmatch(r"bytes=(\d+)-", asked)[1])
        part = server.content[begin:]
        self.send_response(206 if begin else 200)
        server.answers.append(206 if begin else 200)
        if begin:
            whole = len(server.content)
            self.send_header("Content-Range", f"bytes {0 if server.lies else begin}-{whole - 1}/{whole}")
        self.send_header("ETag", server.etag)
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        self.wfile.write(part[: server.most])

    def _answer(self, code: int) -> None:
        self.server.answers.append(code)
        self.send_response(code)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serving(content: bytes) -> Iterator[Server]:
    with Server(content) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def test_a_download_that_breaks_off_is_gone_on_with(signed):
    content = signed("mine", record(best=FAST)).read_bytes()
    with serving(content) as server:
        server.most = len(content) // 3
        pulls(server.url)
        parts = [f"bytes={done}-" for done in range(server.most, len(content), server.most)]
        assert server.asked == [None, *parts]
        assert answer().config == FAST
        assert pulls(server.url).changed is None
        assert server.answers[-1] == 304


def test_what_came_is_kept_for_the_next_pull(signed):
    content = signed("mine", record(best=FAST)).read_bytes()
    with serving(content) as server:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("autotune.bundles.download._ATTEMPTS", 1)
            server.most = 100
            server.ranges = False
            with pytest.raises(BundleError, match="the connection was lost after 100 bytes"):
                pulls(server.url)
        server.most, server.ranges = 1 << 30, True
        pulls(server.url)
        assert server.asked[-1] == "bytes=100-"
        assert answer().config == FAST


def test_a_server_that_sends_another_part_than_was_asked_for_is_given_up(signed):
    with serving(signed("mine", record(best=FAST)).read_bytes()) as server:
        server.most, server.lies = 100, True
        with pytest.raises(BundleError, match="another part than the one that was missing"):
            pulls(server.url)
        assert len(server.asked) < 20


def test_parts_of_two_versions_are_not_mixed(signed):
    old, new = (signed(name, record(best=best)).read_bytes() for name, best in (("a", SLOW), ("b", FAST)))
    with serving(old) as server:
        server.most = 100
        with pytest.raises(Exception, match="100 bytes of"):
            Download(server.url)._fetch()
        server.content, server.etag, server.most = new, '"2"', 1 << 30
        pulls(server.url)
        assert server.answers == [200, 200]
        assert answer().config == FAST


def test_a_damaged_download_is_fetched_again(signed):
    content = signed("mine", record(best=FAST)).read_bytes()
    with serving(content.replace(b"tile_m=16", b"tile_m=24", 1)) as server:
        with pytest.raises(BundleError, match="it was edited"):
            pulls(server.url)
        server.content = content
        pulls(server.url)
        assert answer().config == FAST


def test_bad_servers(monkeypatch):
    with serving(b"<html>" * 1000) as server:
        with pytest.raises(BundleError, match="is no bundle"):
            pulls(server.url)
        monkeypatch.setattr(format_, "LARGEST_BYTES", 5000)
        server.etag = '"2"'
        with pytest.raises(BundleError, match="has 6000 bytes; a bundle has 5000 at most"):
            pulls(server.url)
        address = server.url
    monkeypatch.setattr("autotune.bundles.download._ATTEMPTS", 2)
    with pytest.raises(BundleError, match="the connection was lost after"):
        pulls(address)


def test_two_pulls_at_once_wait_for_each_other(signed):
    content = signed("mine", record(best=FAST)).read_bytes()
    Store.open().close()
    together = threading.Barrier(2)
    outcomes = []

    def one() -> None:
        together.wait()
        outcomes.append(pulls(server.url))

    with serving(content) as server:
        threads = [threading.Thread(target=one) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert server.answers == [200, 304]
    assert sorted(outcome.changed is None for outcome in outcomes) == [False, True]


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


@pytest.mark.parametrize("address", ["http://", "http://[::1", "http://a b/", "https:///x"])
def test_an_address_that_is_none(address):
    with pytest.raises(BundleError, match=r"is no address|the connection was lost"):
        pulls(address)


FULL = """
import resource, signal, sys
from autotune.cli import main
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))
sys.exit(main(sys.argv[1:]))
"""


def test_a_full_disk_is_one_line(signed):
    layers = [Layer(n, 4096) for n in range(1024, 1088, 8)]
    content = signed("mine", *(record(m, layer) for layer in layers for m in BUCKETS)).read_bytes()
    assert len(content) > 65536
    Store.open().close()
    with serving(content) as server:
        ended = subprocess.run(
            [sys.executable, "-c", FULL, "pull", server.url, "--device", "all"],
            capture_output=True,
            text=True,
            check=False,
        )
    assert ended.returncode == 1
    assert re.fullmatch(r"error: .* cannot be written \(File too large\)\n", ended.stderr)


def test_a_collected_bundle_is_what_a_database_has(tmp_path):
    store(tmp_path / "central.db", replace(record(best=FAST), evidence=EVIDENCE), cubin=binary())
    with Store.open(str(tmp_path / "central.db")) as central:
        contents = collected(central, ALL, binaries=True, samples=True)
    assert [entry.binary for entry in contents.entries] == [binary()]
    assert len(contents.attempts) == 3
