"""Records as text, one file per device, for review and for shipping; db/README.md has the fields.

Standard library only: model load reads these files.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autotune.errors import AutotuneError, DatabaseError
from autotune.record import Environment, Record
from autotune.store.rows import record_of, record_row

if TYPE_CHECKING:
    from autotune.store.store import Store


def export(store: Store, folder: Path) -> list[Path]:
    """Write one file per device of the store, with the records of its newest environment's kernels.

    Raises:
        DatabaseError: the store has no records, or a file cannot be written.
    """
    written = []
    for device in store.devices():
        environment = store.environment(device)
        if environment is None:
            continue
        current = [
            record
            for record in store.records(device)
            if environment.sources.get(record.config.family) == record.source_hash
        ]
        path = folder / f"{re.sub('[^a-z0-9]+', '-', device.name.lower()).strip('-')}.jsonl"
        write_text(current, environment, path)
        written.append(path)
    if not written:
        raise DatabaseError(f"{store.name} has no records to export; run autotune sweep first")
    return written


def write_text(records: Iterable[Record], environment: Environment, path: Path) -> None:
    """Write the records of one device, sorted by problem, equal bytes for equal records.

    Times are rounded to 1 ns. Of several records of one problem the newest is written.

    Raises:
        DatabaseError: there are no records, they are of several devices, or one was measured with a kernel
            source that the environment does not have; or the file cannot be written.
    """
    newest = {record.problem: record for record in sorted(records, key=lambda record: record.created_at)}
    devices = sorted({(record.device, record.arch) for record in newest.values()})
    if len(devices) != 1:
        raise DatabaseError(f"{path}: records of exactly one device make a file, not of {len(devices)}")
    device, arch = devices[0]
    lines: list[dict[str, Any]] = [{"device": device, "arch": arch} | asdict(environment)]
    lines[0]["sources"] = dict(sorted(environment.sources.items()))
    for record in sorted(newest.values(), key=lambda record: record.problem):
        family = record.config.family
        if environment.sources.get(family) != record.source_hash:
            raise DatabaseError(
                f"{path}: the record of {record.problem} is from {family} source {record.source_hash}, "
                f"not from the environment's {environment.sources.get(family)}"
            )
        row = {name: _rounded(value) for name, value in record_row(record).items() if name != "source_hash"}
        lines.append(row)
    text = "".join(json.dumps(line, separators=(",", ":"), ensure_ascii=False) + "\n" for line in lines)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        raise DatabaseError(f"{path} cannot be written ({error.strerror})") from error


def read_text(path: Path, arch: str | None = None) -> tuple[Environment, list[Record]]:
    """The environment and the records of a file; no records when the file is of another arch than `arch`.

    Raises:
        DatabaseError: the file cannot be read, or a line of it; the message names the line.
    """
    number = 1
    try:
        with path.open(encoding="utf-8") as lines:
            header = json.loads(next(lines))
            device, its_arch = header.pop("device"), header.pop("arch")
            environment = Environment(**header)
            records: list[Record] = []
            if arch is not None and its_arch != arch:
                return environment, records
            for number, line in enumerate(lines, start=2):  # noqa: B007
                row = json.loads(line)
                family = row["config"].partition(":")[0]
                records.append(record_of(row, device, its_arch, environment.sources[family]))
            return environment, records
    except OSError as error:
        raise DatabaseError(f"{path} cannot be read ({error.strerror})") from error
    except (AutotuneError, KeyError, TypeError, ValueError, AttributeError, StopIteration) as error:
        raise DatabaseError(f"{path}, line {number}: not a record ({error!r})") from error


def _rounded(value: Any) -> Any:
    return round(value, 3) if isinstance(value, float) else value
