"""What the tests of pulls share: two configs, a pull into this host's database, and what answers then."""

from __future__ import annotations

from store_samples import H200, LAYER, config

from autotune.bundles.pull import PullResult, pull
from autotune.records.lookup import Answer, Lookup
from autotune.store.entries import Wanted
from autotune.store.store import Store
from autotune.values.layer import Problem

ALL = Wanted()
FAST, SLOW = config(16), config(32)


def pulls(source: object, wanted: Wanted = ALL, **more) -> PullResult:
    with Store.open() as opened:
        return pull(opened, str(source), wanted, **more)


def answer(m: int = 1) -> Answer:
    return Lookup(H200).answer(Problem(LAYER, m))
