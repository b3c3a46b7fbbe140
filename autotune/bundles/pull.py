"""Pulls records into a local file: of a fleet's database, of a channel of it, or of a bundle."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from filelock import FileLock

from autotune.bundles.download import Download
from autotune.bundles.format import read_bytes
from autotune.bundles.keys import trusted_keys
from autotune.bundles.taking import is_bundle
from autotune.bundles.trust import open_trusted
from autotune.families import registry
from autotune.store import channels, pulled
from autotune.store.entries import Entry, Wanted, entries_by_id, outlines
from autotune.store.pulled import digest_of, version_of
from autotune.store.store import Store
from autotune.values.errors import BundleError, DatabaseError
from autotune.values.fleet import Pulled
from autotune.values.paths import database_url, lock_folder, shown, sqlite_path
from autotune.values.record import SERVED

_LONGEST_SOURCE = 900
"""Sets keep the name of their source, in a line."""
_HTTP = re.compile(r"https?://", re.IGNORECASE)
_SQLITE = b"SQLite format 3\0"
_Where = TypeVar("_Where")


@dataclass(frozen=True, slots=True)
class PullResult:
    """What a pull did. `changed` is the new set, None when nothing is new; `records` is how many came new,
    of the `offered` ones that are wanted here; `origin` is where they come from, as it is shown. `undone`
    says that these were pulled before and a rollback undid that. `devices` are the models of which the
    source has records, told where none of these is wanted.
    """

    origin: str
    changed: Pulled | None
    records: int
    offered: int
    undone: bool = False
    devices: Sequence[str] = ()


def pull(
    store: Store, source: str, wanted: Wanted, channel: str | None = None, again: bool = True
) -> PullResult:
    """Have what the source offers of the wanted records in the store, beside what was measured there.

    A source is an HTTP address or a file of a bundle, which a trusted key must have signed, or a database.
    Of a database these are its records, without binaries, or with a `channel` the bundle that this names.
    Only what is new is fetched, and it is applied in one transaction. What the user undid by a rollback is
    pulled only if `again`. One process of the user pulls at a time; others wait.

    Raises:
        BundleError: the bundle cannot be fetched, does not read, or is not trusted; nothing has changed.
        DatabaseError: a database cannot be read or written, or the store is no file; nothing has changed.
    """
    if store.database.path is None:
        raise DatabaseError(f"{store.name} is no file; models read one, so pull into that (--db PATH)")
    if not source.isprintable() or len(source) > _LONGEST_SOURCE:
        raise BundleError(f"{source[:80]!r} is no name to remember; give the source a plain and shorter one")
    with FileLock(lock_folder() / "pull.lock"):
        if _HTTP.match(source) or is_bundle(Path(source)):
            if channel is not None:
                raise BundleError(f"{shown(source)} is a bundle; a --channel is one of a database")
            return _pull_bundle(store, source, wanted, again)
        return _pull_database(store, source, wanted, channel, again)


def _pull_bundle(store: Store, source: str, wanted: Wanted, again: bool) -> PullResult:
    if not _HTTP.match(source):
        return _apply_bundle(store, None, read_bytes(Path(source)), source, wanted, again)
    download = Download(source)
    content = read_bytes(download.fetch())
    try:
        return _apply_bundle(store, None, content, shown(source), wanted, again)
    except BundleError:
        download.forget()  # or the same bytes would be refused for ever
        raise


def _apply_bundle(
    store: Store, channel: str | None, content: bytes, where: str, wanted: Wanted, again: bool
) -> PullResult:
    """A channel's bundle takes the place of its former one, any other that of one of the same name."""
    bundle, key = open_trusted(content, where, trusted_keys())
    origin = channel or f"bundle {bundle.name}"
    by = f"{key.name} ({key.fingerprint})"
    offered = {version_of(entry): entry for entry in bundle.contents.entries if _is_meant(entry, wanted)}
    done = _apply(store, origin, offered, list, again, bundle.id, by)
    return done if offered else replace(done, devices=_devices(bundle.contents.entries))


def _pull_database(store: Store, source: str, wanted: Wanted, channel: str | None, again: bool) -> PullResult:
    url = database_url(source)
    file = sqlite_path(url)
    if file is not None and file.is_file() and not _is_sqlite(file):
        raise BundleError(
            f"{shown(source)} is neither a bundle nor a database; autotune import takes files of records"
        )
    with Store.open_existing(url) as central:
        path = central.database.path
        if path is not None and store.database.path is not None and path.samefile(store.database.path):
            raise DatabaseError(f"{store.name} is pulled from itself; give another source or --db")
        if channel is not None:
            origin = f"{central.name} {channel}"
            name, content = channels.content(central, channel)
            return _apply_bundle(store, origin, content, f"bundle {name} of {origin}", wanted, again)
        offered = {
            version_of(entry): row_id
            for row_id, entry in outlines(central, wanted).items()
            if _is_meant(entry, wanted)
        }
        done = _apply(store, central.name, offered, lambda ids: entries_by_id(central, ids), again)
        return done if offered else replace(done, devices=_devices(outlines(central, Wanted()).values()))


def _is_sqlite(path: Path) -> bool:
    """Whether the file begins as SQLite's do, or is empty; of one that cannot be read, its opening tells."""
    try:
        with path.open("rb") as file:
            return file.read(len(_SQLITE)) in (b"", _SQLITE)
    except OSError:
        return True


def _devices(entries: Iterable[Entry]) -> list[str]:
    return sorted({entry.device.name for entry in entries})


def _is_meant(entry: Entry, wanted: Wanted) -> bool:
    """Whether a model may run it here: a kernel of others is known to those only who name it."""
    record = entry.record
    return wanted.has(entry) and record.mode in SERVED and record.config.family in registry.families()


def _apply(
    store: Store,
    origin: str,
    offered: Mapping[str, _Where],
    fetch: Callable[[list[_Where]], list[Entry]],
    again: bool,
    bundle: str | None = None,
    by: str | None = None,
) -> PullResult:
    """Have the origin's records be those offered, each by its version; `fetch` gets those that are new."""
    here = pulled.versions(store, origin)
    if not again and pulled.last_digest(store, origin) == digest_of(offered):
        return PullResult(origin, None, 0, len(offered), undone=here != set(offered))
    new = sorted(offered.keys() - here)
    entries = fetch([offered[version] for version in new])
    changed = pulled.apply(store, origin, offered.keys(), entries, bundle, by)
    return PullResult(origin, changed, len(entries), len(offered))
