"""The whole loop: what one host misses is tuned once, by a daemon elsewhere, and served on every host."""

from __future__ import annotations

import json
from pathlib import Path

from command_line import autotune
from daemons import LAYER, PROBLEM, special

from autotune.records.lookup import Lookup
from autotune.store.queue import Queue
from autotune.store.store import Store
from autotune.values.device import cpu_device

SHAPE = f"n={LAYER.n},k={LAYER.k},group_size={LAYER.group_size}"


class Host:
    """A host with a database of its own."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._folder, self._db = folder, str(folder / "own.db")

    def source(self) -> str:
        """Where the answer to the problem comes from in a process that starts now."""
        told = self.run("lookup", "--shapes", SHAPE, "--m", "1", "--device", "cpu", "--json")
        return json.loads(told)[0]["source"]

    def call(self) -> None:
        """What a model does that calls the problem once and ends."""
        lookup = Lookup(cpu_device(), self._db)
        tally = lookup.tally([lookup.answer(PROBLEM)])
        tally.calls[0] += 1
        tally.note_all()

    def run(self, *arguments: str) -> str:
        ended = autotune(*arguments, "--db", self._db, cwd=self._folder)
        assert ended.returncode == 0, ended.stderr
        return ended.stdout


def test_a_miss_anywhere_is_tuned_once_and_served_everywhere(tmp_path, server_url):
    hosts = [Host(tmp_path / name) for name in ("a", "b")]
    for host in hosts:
        assert host.source() == "default"
        host.call()
    assert [host.run("push", server_url).partition(" at ")[0] for host in hosts] == [
        "1 new job",
        "0 new jobs",
    ]
    assert hosts[0].run("push", server_url).startswith("0 new jobs")
    with special(tmp_path, db=server_url, once=True) as daemon:
        assert daemon.until("done")["problem"] == str(PROBLEM)
        assert daemon.end() == 0
    for host in hosts:
        assert host.run("pull", server_url).startswith("set ")
        assert host.source() == "exact"
        host.call()
        assert host.run("push", server_url).startswith("0 new jobs")
    with Store.open(server_url) as store:
        assert Queue(store).counts() == {"done": 1}
        (record,) = store.records()
        assert record.problem == PROBLEM
