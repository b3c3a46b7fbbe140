"""When a channel may come to name a bundle: rechecks confirm its records, or somebody says why it may."""

from __future__ import annotations

from collections import defaultdict

from autotune.bundles.format import Bundle
from autotune.bundles.keys import trusted_keys
from autotune.bundles.trust import open_trusted
from autotune.store import channels
from autotune.store.fields import unix_s
from autotune.store.history import history
from autotune.store.store import Store
from autotune.values.errors import BundleError


def promote(
    store: Store, content: bytes, where: str, channel: str, force_reason: str | None
) -> tuple[Bundle, str]:
    """Have the channel of the store's database name the bundle of these bytes; the bundle, and why it may.

    A trusted key must have signed it. For `stable` the history of the store must confirm it, as `confirmed`
    says, or there is a `force_reason`. The reason is kept with the channel.

    Raises:
        BundleError: it does not read, is not trusted, or not confirmed.
        DatabaseError: the store cannot be written.
    """
    bundle, _ = open_trusted(content, where, trusted_keys())
    if force_reason is not None:
        reason = f"forced: {force_reason}"
    elif channel == "stable":
        reason = confirmed(store, bundle)
    else:
        reason = "a candidate"
    channels.promote(store, channel, bundle.digest, bundle.id, content, reason)
    return bundle, reason


def confirmed(store: Store, bundle: Bundle) -> str:
    """What confirms the bundle: later rechecks kept a record of each device model of it, and refuted none.

    A recheck keeps a record only when its config beats the default again with 95 % confidence, or is it.

    Raises:
        BundleError: nothing confirms it for a device model, or something refutes it.
        DatabaseError: the store cannot be read.
    """
    verdicts: dict[tuple[object, ...], tuple[str, float]] = {}
    for event in history(store):
        if event.event in ("kept", "replaced", "dropped"):
            verdicts[event.kernel] = event.event, event.at
    kept: dict[str, int] = defaultdict(int)
    for entry in bundle.contents.entries:
        record = entry.record
        key = (
            record.device,
            record.arch,
            record.problem,
            str(record.config),
            record.mode,
            record.source_hash,
        )
        verdict, at = verdicts.get(key, ("", 0.0))
        if verdict and at > unix_s(record.created_at):
            if verdict != "kept":
                raise BundleError(
                    f"bundle {bundle.id}: a recheck {verdict} its record of {record.problem} on "
                    f"{record.device}; make a new bundle, or give --force and a --reason"
                )
            kept[record.device] += 1
    for device in sorted({entry.record.device for entry in bundle.contents.entries}):
        if device not in kept:
            raise BundleError(
                f"bundle {bundle.id}: no recheck confirms a record of {device} yet; run there "
                "autotune sweep --recheck with this --db, or give --force and a --reason"
            )
    return "rechecks kept " + ", ".join(f"{count} of {device}" for device, count in sorted(kept.items()))
