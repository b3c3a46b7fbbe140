"""Makes the fit of every device of a database, and writes it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from autotune.prediction.files import file_name, own_fit
from autotune.prediction.fit import write
from autotune.prediction.fitting import check_enough, make
from autotune.prediction.timings import merged, of_records, of_store
from autotune.store.reading import shipped_files
from autotune.store.text import read_text
from autotune.values.counts import counted
from autotune.values.errors import DatabaseError
from autotune.values.paths import Location, database_url, shown, sqlite_path

if TYPE_CHECKING:
    from autotune.prediction.fitting import Timing
    from autotune.store.store import Store
    from autotune.values.device import Device


def fits(store: Store, db: Location | None, folder: Path | None) -> Iterator[tuple[Path, str]]:
    """Write the fit of each device model of the store that has enough trials; its path and a summary.

    Without a folder they stand beside the database `db`, which is a file then.

    Raises:
        DatabaseError: no device has enough trials, there is no folder for the files, or one is not writable.
    """
    told: list[str] = []
    for device in store.devices():
        path = _path(db, device, folder)
        try:
            own = of_store(store, device)
            check_enough(own, device)
            fit = make(merged(own, _shipped(device)), device)
        except DatabaseError as error:
            told.append(str(error))
            continue
        write(fit, path)
        families = ", ".join(fit.families)
        made_of = f"{counted(fit.timings, 'timed config')} of {counted(fit.layers, 'layer')}"
        yield path, f"{device.name}: {made_of}, of families {families}"
    if told or not store.devices():
        raise DatabaseError("; ".join(told) or f"{store.name} has no device; run autotune sweep first")


def _path(db: Location | None, device: Device, folder: Path | None) -> Path:
    if folder is not None:
        return folder / file_name(device.name)
    database = sqlite_path(database_url(db))
    if database is None:
        raise DatabaseError(
            f"database {shown(database_url(db))} is no file to stand beside; give a folder with --out"
        )
    return own_fit(database, device.name)


def _shipped(device: Device) -> list[Timing]:
    records = [record for path in shipped_files() for record in read_text(path, device.arch)[1]]
    return of_records(records, device)
