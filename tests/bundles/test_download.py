"""Downloads of bundles: what breaks off is gone on with, and what a server may do wrong."""

from __future__ import annotations

import re
import subprocess
import sys
import threading

import pytest
from http_server import serving
from pulling import FAST, SLOW, answer, pulls
from store_samples import record

from autotune.bundles import format as format_
from autotune.bundles.download import Download
from autotune.store.store import Store
from autotune.values.errors import BundleError
from autotune.values.layer import BUCKETS, Layer

pytestmark = pytest.mark.usefixtures("database")


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
        with pytest.raises(BundleError, match="the connection was lost after 100 bytes"):
            pulls(server.url)
        assert server.asked == [None, "bytes=100-", None, "bytes=100-", None]


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
        with pytest.raises(BundleError) as caught:
            pulls(server.url)
        assert str(caught.value).startswith(f"{server.url} is no bundle")
        monkeypatch.setattr(format_, "LARGEST_BYTES", 5000)
        server.etag = '"2"'
        with pytest.raises(BundleError, match="has 6000 bytes; a bundle has 5000 at most"):
            pulls(server.url)
        address = server.url
    monkeypatch.setattr("autotune.bundles.download._ATTEMPTS", 2)
    with pytest.raises(BundleError, match=r"gives nothing \(Connection refused\); check the address"):
        pulls(address)


def test_a_server_that_sends_next_to_nothing_is_given_up(signed):
    content = signed("mine", record(best=FAST)).read_bytes()
    with serving(content) as server:
        server.most = 1
        with pytest.raises(BundleError, match="the connection was lost after 5 bytes"):
            pulls(server.url)
        server.most = 1 << 30
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("autotune.bundles.download._SLOW_S", -1.0)
            with pytest.raises(BundleError, match=r"sent fewer than 65536 bytes in -1 s; pull again"):
                pulls(server.url)
        pulls(server.url)
        assert answer().config == FAST


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


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("http://", "it names no host"),
        ("https:///x", "it names no host"),
        ("http://:80/x", "it names no host"),
        ("http://[::1", "its host or port does not read"),
        ("http://host:99999/x", "its host or port does not read"),
        ("http://host:secret/x", "its host or port does not read"),
        ("http://a b/", "has to be written as %XX"),
        ("http://host/ü", "has to be written as %XX"),
        ("http://me:secret@host/x", "it has a user's name"),
    ],
)
def test_an_address_that_is_none(address, why):
    with pytest.raises(BundleError, match=r"is no address of a bundle") as caught:
        pulls(address)
    assert why in str(caught.value)
    assert "secret" not in str(caught.value)


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
