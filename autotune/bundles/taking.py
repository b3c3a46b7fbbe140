"""What is taken from a file of records: which of it is known here, and which binaries are trusted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from autotune.bench.ceilings import KnownFloors
from autotune.bench.noise import why_impossible, why_noisy
from autotune.bundles.format import BundleContents, decode, read_bytes, seal_of
from autotune.bundles.keys import PublicKey
from autotune.bundles.trust import check_signatures, open_trusted
from autotune.families import registry
from autotune.store.entries import Entry, TrialEntry
from autotune.store.merging import Merged, merge
from autotune.store.reading import shipped_files
from autotune.store.store import Store
from autotune.store.text import SAMPLES, device_of_text, read_text
from autotune.values.device import Device
from autotune.values.errors import BundleError
from autotune.values.paths import shown

_BUNDLE = b'{"autotune_bundle"'


@dataclass(frozen=True, slots=True)
class Import:
    """What an import did, or would do. `unknown` says of each record and trial that was left out why no such
    config is known here, `unbelievable` why its time cannot be right.
    """

    merged: Sequence[Merged]
    unknown: Sequence[str]
    unbelievable: Sequence[str]
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
    taken = _Taken(store)
    entries = [entry for entry in contents.entries if taken.has(entry)]
    attempts = [attempt for attempt in contents.attempts if taken.has(attempt)]
    name = shown(path).encode(errors="backslashreplace").decode()  # a name need not be UTF-8
    merged = merge(store, entries, attempts, {"import": name}, dry_run)
    kept = {each.entry.binary.unit_key for each in merged if each.is_taken and each.entry.binary}
    return Import(merged, taken.unknown, taken.unbelievable, len(kept), found)


class _Taken:
    """Says what is taken of records and trials from elsewhere, and keeps why others are left out.

    What a file says of the roofline may have been edited; what is known here counts too.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._floors: dict[tuple[str, str], KnownFloors] = {}
        self.unknown: list[str] = []
        self.unbelievable: list[str] = []

    def has(self, of: Entry | TrialEntry) -> bool:
        """Whether it is taken."""
        measured = of.record if isinstance(of, Entry) else of.trial
        if (reason := registry.why_unknown(measured.config)) is not None:
            self.unknown.append(f"{measured.problem} has {reason}")
        elif (reason := self._why_unbelievable(of)) is not None:
            self.unbelievable.append(f"{measured.problem}: {reason}")
        else:
            return True
        return False

    def _why_unbelievable(self, of: Entry | TrialEntry) -> str | None:
        if isinstance(of, Entry):
            return why_noisy(of.record, self._of(of.device).floor_us(of.record.problem))
        trial = of.trial
        if trial.median_us is None:
            return None
        return why_impossible(trial.median_us, self._of(of.device).floor_us(trial.problem), trial.mode)

    def _of(self, device: Device) -> KnownFloors:
        """What is known of the device model by its arch, and by records that are here or ship."""
        model = device.name, device.arch
        if model not in self._floors:
            here = self._store.records(device)
            for path in shipped_files():
                shipped = device_of_text(path)
                if (shipped.name, shipped.arch) == model:
                    here += read_text(path, bad=[])[1]
            self._floors[model] = KnownFloors(device.arch, here)
        return self._floors[model]


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
        content = read_bytes(path)
        if trusted:
            return open_trusted(content, str(path), trusted)[0].contents, 0
        check_signatures(seal_of(content, str(path)))
        return without_binaries(decode(content, str(path)).contents)
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
