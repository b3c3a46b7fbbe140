"""Writes records as text, one file per device, for review and for shipping; db/README.md has the fields."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autotune.families import registry
from autotune.store.rows import SIZES, evidence_row, record_row, trial_row
from autotune.store.text import SAMPLES
from autotune.store.trouble import known_revisions
from autotune.values.errors import DatabaseError
from autotune.values.layer import Problem
from autotune.values.record import SERVED, Environment, Record, Trial

if TYPE_CHECKING:
    from autotune.store.store import Store
    from autotune.values.device import Device


def export(store: Store, folder: Path, samples: bool = False) -> list[Path]:
    """Write one file per device of the store, with the records of today's kernels.

    Kernels of others are left out, because no other autotune has them. With `samples`, a second file per
    device has every trial of the problems of the first.

    Raises:
        DatabaseError: the store has no such records, or a file cannot be written.
    """
    own, written = registry.families(), []
    devices = store.devices()
    names = file_names(devices)
    for device in devices:
        environment = store.environment(device, own)
        if environment is None:
            continue
        current = [
            record
            for record in store.records(device)
            if record.config.family in own and registry.is_current(record, device)
        ]
        if not current:
            continue
        name = names[device]
        path = folder / f"{name}.jsonl"
        write_text(current, environment, path, device)
        written.append(path)
        if samples:
            path = folder / f"{name}{SAMPLES}"
            write_samples(store, device, sorted({record.problem for record in current}), path)
            written.append(path)
    if not written:
        raise DatabaseError(f"{store.name} has no records of today's kernels; run autotune sweep first")
    return written


def file_names(devices: Sequence[Device]) -> dict[Device, str]:
    """A file name without ending for each device: its name, with arch or a digest where others share it."""
    wanted = {device: _names(device) for device in devices}
    sharing = Counter(name for names in wanted.values() for name in names)
    return {
        device: next(name for name in names if name and sharing[name] == 1)
        for device, names in wanted.items()
    }


def _names(device: Device) -> list[str]:
    """Names for its file, each of them once, from the shortest to one that no other device has."""
    digest = hashlib.sha256(f"{device.name}\0{device.arch}".encode()).hexdigest()[:12]
    texts = (device.name, f"{device.name} {device.arch}", f"{device.name} {device.arch} {digest}")
    return list(dict.fromkeys(re.sub("[^a-z0-9]+", "-", text.lower()).strip("-") for text in texts))


def write_text(
    records: Iterable[Record], environment: Environment, path: Path, model: Device | None = None
) -> None:
    """Write the records of one device, sorted by problem, equal bytes for equal records.

    Of the device `model`, where it is given, the sizes are told too.

    Times are rounded to 1 ns, ratios to four digits. Of several records of one problem that is written which
    look-up prefers: by its mode, then the newest.

    Raises:
        DatabaseError: there are no records, or they are of several devices; or the file cannot be written.
    """
    served = (record for record in records if record.mode in SERVED)
    last = sorted(served, key=lambda record: (-SERVED.index(record.mode), record.created_at))
    newest = {record.problem: record for record in last}
    devices = sorted({(record.device, record.arch) for record in newest.values()})
    if len(devices) != 1:
        raise DatabaseError(f"{path}: records of exactly one device make a file, not of {len(devices)}")
    device, arch = devices[0]
    whose = {"schema": known_revisions()[-1], "device": device, "arch": arch}
    sizes = {} if model is None else {name: getattr(model, name) for name in SIZES}
    lines: list[dict[str, Any]] = [whose | sizes | asdict(environment)]
    lines[0]["sources"] = dict(sorted(environment.sources.items()))
    lines += (record_line(record) for record in sorted(newest.values(), key=lambda record: record.problem))
    _write(path, lines)


def write_samples(store: Store, device: Device, problems: Iterable[Problem], path: Path) -> None:
    """Write every trial of the problems on the device, the oldest of each first, with its samples.

    Raises:
        DatabaseError: the store cannot be read, or the file cannot be written.
    """
    environments: dict[str, int] = {}
    lines: list[dict[str, Any]] = []
    for problem in problems:
        for trial, environment in store.attempts(problem, device):
            text = json.dumps(asdict(environment), sort_keys=True)
            number = environments.setdefault(text, len(environments))
            lines.append(trial_line(trial) | {"environment": number})
    known = [json.loads(text) for text in environments]
    _write(path, [{"device": device.name, "arch": device.arch, "environments": known}, *lines])


def record_line(record: Record) -> dict[str, Any]:
    """The record's line, without missing evidence."""
    row = {name: _rounded(value) for name, value in record_row(record).items()}
    row["created_at"] = record.created_at
    del row["evidence"]
    evidence = record.evidence
    if evidence is None:
        return row
    median, low, high = map(_digits, evidence.gain)
    rounded = replace(
        evidence,
        gain=(median, low, high),
        runners_up=tuple((config, _rounded(median_us)) for config, median_us in evidence.runners_up),
        deviation=None if evidence.deviation is None else _digits(evidence.deviation),
        floor_us=_rounded(evidence.floor_us),
        peers=tuple((name, _rounded(median_us)) for name, median_us in evidence.peers),
        energy=tuple(
            (name, _digits(j), _digits(least), _digits(most)) for name, j, least, most in evidence.energy
        ),
    )
    return row | {"evidence": evidence_row(rounded)}


def trial_line(trial: Trial) -> dict[str, Any]:
    """The trial's line, with its samples."""
    row = {name: _rounded(value) for name, value in trial_row(trial).items() if name != "samples"}
    return row | {"samples_us": [_rounded(sample) for sample in trial.samples_us]}


def _write(path: Path, lines: Iterable[dict[str, Any]]) -> None:
    """Write the objects, one a line; a reader sees the old file or the new one."""
    text = "".join(json.dumps(line, separators=(",", ":"), ensure_ascii=False) + "\n" for line in lines)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        with suppress(OSError):
            partial.unlink()
        raise DatabaseError(f"{path} cannot be written ({error.strerror})") from error


def _rounded(value: Any) -> Any:
    """To 1 ns; what is less keeps its digits, because no time is 0."""
    return (round(value, 3) or _digits(value)) if isinstance(value, float) else value


def _digits(value: float) -> float:
    """Four digits that mean something, be the value large or small."""
    return float(f"{value:.4g}")
