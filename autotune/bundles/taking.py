"""What is taken from a file of records: which of it is known here, and which binaries are trusted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from autotune.bench.noise import why_noisy
from autotune.bundles.format import Bundle, BundleContents, read_bundle
from autotune.bundles.keys import PublicKey
from autotune.bundles.trust import check_signatures, signer
from autotune.families import registry
from autotune.store.entries import Entry
from autotune.store.merging import Merged, merge
from autotune.store.store import Store
from autotune.store.text import SAMPLES, device_of_text, read_text
from autotune.values.errors import BundleError
from autotune.values.paths import shown

_BUNDLE = b'{"autotune_bundle"'


@dataclass(frozen=True, slots=True)
class Import:
    """What an import did, or would do: `unknown` counts records by families that this autotune lacks, `noisy`
    says of each record left out why its time cannot be believed.
    """

    merged: Sequence[Merged]
    unknown: dict[str, int]
    noisy: Sequence[str]
    binaries: int
    dropped_binaries: int


def import_file(store: Store, path: Path, trusted: Sequence[PublicKey] = (), dry_run: bool = False) -> Import:
    """Merge a bundle, a file of records or a folder of these into the store, as `merge` says.

    Binaries are dropped, to be compiled again from the sources here, unless one of the `trusted` keys signed
    the bundle that has them.

    Raises:
        BundleError: a file does not read, or there is none; a signed bundle was edited; or keys are trusted,
            and none of them signed.
        DatabaseError: a file of records does not read, or the store cannot be written.
    """
    contents, found = _contents(path, trusted)
    known = _known(contents.entries)
    noisy = [why for entry in known if (why := why_noisy(entry.record)) is not None]
    believed = [entry for entry in known if why_noisy(entry.record) is None]
    merged = merge(store, believed, contents.attempts, {"import": shown(path)}, dry_run)
    unknown = Counter(entry.record.config.family for entry in contents.entries)
    for entry in known:
        unknown[entry.record.config.family] = 0
    kept = {each.entry.binary.unit_key for each in merged if each.is_taken and each.entry.binary}
    left_out = {name: count for name, count in unknown.items() if count}
    return Import(merged, left_out, noisy, len(kept), found)


def is_bundle(path: Path) -> bool:
    """Whether the file begins as bundles do."""
    try:
        if not path.is_file():  # a pipe would be waited for
            return False
        with path.open("rb") as file:
            return file.read(len(_BUNDLE)) == _BUNDLE
    except OSError:
        return False


def without_binaries(contents: BundleContents) -> tuple[BundleContents, int]:
    """The contents with no binary, and how many there were."""
    units = {entry.binary.unit_key for entry in contents.entries if entry.binary is not None}
    entries = [entry._replace(binary=None) for entry in contents.entries]
    return BundleContents(entries, contents.attempts), len(units)


def _contents(path: Path, trusted: Sequence[PublicKey]) -> tuple[BundleContents, int]:
    """What the file or folder has, and how many binaries of it are dropped."""
    if is_bundle(path):
        bundle: Bundle = read_bundle(path)
        if trusted:
            signer(bundle, trusted)
            return bundle.contents, 0
        check_signatures(bundle)
        return without_binaries(bundle.contents)
    if trusted:
        raise BundleError(f"{path} is no bundle, so nobody signed it; leave --trust out")
    files = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
    texts = [file for file in files if not file.name.endswith(SAMPLES)]
    if not texts:
        raise BundleError(f"{path} has no file of records; give what autotune export or bundle create wrote")
    return BundleContents([entry for file in texts for entry in _text_entries(file)]), 0


def _text_entries(path: Path) -> list[Entry]:
    device = device_of_text(path)
    environment, records = read_text(path)
    return [Entry(record, device, environment) for record in records]


def _known(entries: Sequence[Entry]) -> list[Entry]:
    own = registry.families()
    return [entry for entry in entries if entry.record.config.family in own]
