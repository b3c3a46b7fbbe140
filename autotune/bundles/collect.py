"""What goes into a bundle: a store's records of today's kernels."""

from __future__ import annotations

from autotune.bundles.format import BundleContents
from autotune.families import registry
from autotune.store.entries import Wanted, attempts, entries
from autotune.store.store import Store


def collected(store: Store, wanted: Wanted, binaries: bool = False, samples: bool = False) -> BundleContents:
    """The store's records that today's kernels make, with their binaries and trials on request.

    Kernels of others stay, because no other autotune has them.

    Raises:
        DatabaseError: the store cannot be read.
    """
    own = registry.families()
    found = [
        entry
        for entry in entries(store, wanted, binaries)
        if entry.record.config.family in own and registry.is_current(entry.record, entry.device)
    ]
    if not samples:
        return BundleContents(found)
    problems = {(entry.device.name, entry.device.arch, entry.record.problem) for entry in found}
    tried = (
        each
        for each in attempts(store, wanted)
        if (each.device.name, each.device.arch, each.trial.problem) in problems
    )
    return BundleContents(found, list(tried))
