"""Values as rows, the same for SQLAlchemy, sqlite3 and JSON; standard library only."""

from __future__ import annotations

import functools
import json
import struct
from dataclasses import asdict, fields
from typing import Any, Protocol

from autotune.config import Config
from autotune.job import Job, Worker
from autotune.layer import Layer, Problem
from autotune.record import Environment, Evidence, Record, Trial

PROBLEM_FIELDS = ("n", "k", "group_size", "dtype", "zero_point", "m")


class Row(Protocol):
    """What dict, sqlite3.Row and SQLAlchemy's RowMapping have in common."""

    def __getitem__(self, name: str, /) -> Any: ...


# A database has few layers and configs and many records of them.
_layer = functools.lru_cache(maxsize=4096)(Layer)
_config = functools.lru_cache(maxsize=4096)(Config.parse)


def problem_row(problem: Problem) -> dict[str, Any]:
    """The problem's six columns."""
    layer = problem.layer
    return {
        "n": layer.n,
        "k": layer.k,
        "group_size": layer.group_size,
        "dtype": layer.dtype,
        "zero_point": layer.zero_point,
        "m": problem.m,
    }


def problem_of(row: Row) -> Problem:
    """The problem of a row."""
    layer = _layer(row["n"], row["k"], row["group_size"], row["dtype"], bool(row["zero_point"]))
    return Problem(layer, row["m"])


def trial_row(trial: Trial) -> dict[str, Any]:
    """The trial's own columns; samples become little-endian float32."""
    return problem_row(trial.problem) | {
        "config": str(trial.config),
        "status": trial.status,
        "median_us": trial.median_us,
        "low_us": trial.low_us,
        "high_us": trial.high_us,
        "samples": struct.pack(f"<{len(trial.samples_us)}f", *trial.samples_us),
        "error": trial.error,
        "mode": trial.mode,
        "clock_mhz": trial.clock_mhz,
        "deviation": trial.deviation,
        "source_hash": trial.source_hash,
    }


def trial_of(row: Row) -> Trial:
    """The trial of a row."""
    samples = row["samples"]
    return Trial(
        problem=problem_of(row),
        config=_config(row["config"]),
        status=row["status"],
        median_us=row["median_us"],
        low_us=row["low_us"],
        high_us=row["high_us"],
        samples_us=struct.unpack(f"<{len(samples) // 4}f", samples),
        error=row["error"],
        mode=row["mode"],
        clock_mhz=row["clock_mhz"],
        deviation=row["deviation"],
        source_hash=row["source_hash"],
    )


def record_row(record: Record) -> dict[str, Any]:
    """The record's own columns; its device is a row of another table."""
    return problem_row(record.problem) | {
        "config": str(record.config),
        "median_us": record.median_us,
        "low_us": record.low_us,
        "high_us": record.high_us,
        "default_config": str(record.default_config),
        "default_us": record.default_us,
        "source_hash": record.source_hash,
        "created_at": record.created_at,
        "evidence": None if record.evidence is None else evidence_row(record.evidence),
    }


def record_of(row: Row, device: str, arch: str, source_hash: str) -> Record:
    """The record of a row; what a row of the database and a line of text keep elsewhere is given."""
    return Record(
        problem=problem_of(row),
        device=device,
        arch=arch,
        config=_config(row["config"]),
        median_us=row["median_us"],
        low_us=row["low_us"],
        high_us=row["high_us"],
        default_config=_config(row["default_config"]),
        default_us=row["default_us"],
        source_hash=source_hash,
        created_at=row["created_at"],
        evidence=None if row["evidence"] is None else evidence_of(row["evidence"]),
    )


def evidence_row(evidence: Evidence) -> dict[str, Any]:
    """The evidence as JSON has it, without what is not known."""
    return {name: value for name, value in asdict(evidence).items() if value not in (None, ())}


def evidence_of(stored: dict[str, Any] | str) -> Evidence:
    """The evidence of an object, or of its JSON text."""
    row = json.loads(stored) if isinstance(stored, str) else stored
    median, low, high = row["gain"]
    return Evidence(
        mode=row["mode"],
        rounds=row["rounds"],
        gain=(median, low, high),
        ties=tuple(row.get("ties", ())),
        runners_up=tuple((config, float(median_us)) for config, median_us in row.get("runners_up", ())),
        clock_mhz=row.get("clock_mhz"),
        deviation=row.get("deviation"),
        floor_us=row.get("floor_us"),
        temperature_c=row.get("temperature_c"),
        power_w=row.get("power_w"),
    )


def environment_of(row: Row) -> Environment:
    """The environment of a row, whose sources are an object or its JSON text."""
    sources = row["sources"]
    return Environment(
        driver=row["driver"],
        compiler=row["compiler"],
        torch=row["torch"],
        version=row["version"],
        sources=json.loads(sources) if isinstance(sources, str) else sources,
    )


def job_of(row: Row) -> Job:
    """The job of a row."""
    return Job(
        id=row["id"],
        problem=problem_of(row),
        device=row["device"],
        arch=row["arch"],
        source_hash=row["source_hash"],
        priority=float(row["priority"]),  # SQLite may return a whole number as an int
        state=row["state"],
        attempts=row["attempts"],
        worker=row["worker"],
        lease_until=row["lease_until"],
        not_before=row["not_before"],
        reason=row["reason"],
        created_at=row["created_at"],
    )


def worker_of(row: Row) -> Worker:
    """The worker of a row."""
    return Worker(**{field.name: row[field.name] for field in fields(Worker)})
