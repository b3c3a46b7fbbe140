"""Values as rows, the same for SQLAlchemy, sqlite3 and JSON; standard library only.

A row may be damaged, or somebody else may have written it. A value made from one has the types, ranges and
lengths that the rest of the code relies on; otherwise RowError says which of them it lacks.
"""

from __future__ import annotations

import functools
import json
import struct
from dataclasses import asdict
from datetime import datetime, timezone
from typing import Any

from autotune.store.fields import (
    LARGEST,
    Row,
    if_any,
    moment,
    number,
    one_of,
    row_of,
    text,
    time_if_any,
    time_us,
    unix_s,
    whole,
    word,
)
from autotune.values.config import Config
from autotune.values.device import Device
from autotune.values.event import EVENTS, Event
from autotune.values.fleet import Promotion, Pulled
from autotune.values.job import STATES, WORKER_STATES, Job, Worker
from autotune.values.layer import Layer, Problem
from autotune.values.record import MODES, Binary, Environment, Evidence, Record, Trial
from autotune.values.scheme import Scheme

PROBLEM_FIELDS = ("n", "k", "scheme", "m")
SIZES = ("cores", "l2_bytes", "shared_bytes", "memory_bytes")
"""Of a device."""
STATUSES = ("ok", "failed", "wrong", "pruned")
"""Of a trial."""

# A database has few layers and configs and many records of them.
_layer = functools.lru_cache(maxsize=4096)(Layer)
_scheme = functools.lru_cache(maxsize=4096)(Scheme.parse)


@functools.lru_cache(maxsize=4096)
def _config(text: str) -> Config:
    config = Config.parse(text)
    if any(value > LARGEST for _, value in config.values):
        raise ValueError(f"config {text!r} has a value beyond {LARGEST}")
    return config


def problem_row(problem: Problem) -> dict[str, Any]:
    """The problem's columns."""
    layer = problem.layer
    return {"n": layer.n, "k": layer.k, "scheme": str(layer.scheme), "m": problem.m}


@row_of("problem")
def problem_of(row: Row) -> Problem:
    """The problem of a row, which may have the columns of schemas before 0005."""
    n, k, m = whole(row, "n"), whole(row, "k"), whole(row, "m")
    try:
        scheme = row["scheme"]
    except LookupError:
        zero_point = bool(one_of(row["zero_point"], "zero_point", (False, True)))
        group_size, dtype = whole(row, "group_size", -1), word(row["dtype"], "dtype")
        return Problem(_layer(n, k, group_size=group_size, dtype=dtype, zero_point=zero_point), m)
    return Problem(_layer(n, k, _scheme(word(scheme, "scheme"))), m)


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


@row_of("trial")
def trial_of(row: Row) -> Trial:
    """The trial of a row."""
    samples = row["samples"]
    status = one_of(row["status"], "status", STATUSES)
    return Trial(
        problem=problem_of(row),
        config=_config(word(row["config"], "config")),
        status=status,
        # What passed was timed; of what did not, nothing has to be known.
        median_us=time_us(row, "median_us") if status == "ok" else time_if_any(row, "median_us"),
        low_us=time_if_any(row, "low_us"),
        high_us=time_if_any(row, "high_us"),
        samples_us=struct.unpack(f"<{len(samples) // 4}f", samples),
        error=if_any(row["error"], text, "error"),
        mode=one_of(row["mode"], "mode", MODES),
        clock_mhz=None if row["clock_mhz"] is None else whole(row, "clock_mhz"),
        deviation=if_any(row["deviation"], number, "deviation"),
        source_hash=if_any(row["source_hash"], word, "source_hash"),
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
        "created_at": unix_s(record.created_at),
        "mode": record.mode,
        "evidence": None if record.evidence is None else evidence_row(record.evidence),
    }


@row_of("record")
def record_of(
    row: Row,
    device: str,
    arch: str,
    source_hash: str,
    environment: Environment | None = None,
    origin: str | None = None,
) -> Record:
    """The record of a row; what a row of the database and a line of text keep elsewhere is given."""
    return Record(
        problem=problem_of(row),
        device=word(device, "device"),
        arch=word(arch, "arch"),
        config=_config(word(row["config"], "config")),
        median_us=time_us(row, "median_us"),
        low_us=time_us(row, "low_us"),
        high_us=time_us(row, "high_us"),
        default_config=_config(word(row["default_config"], "default_config")),
        default_us=time_us(row, "default_us"),
        source_hash=word(source_hash, "source_hash"),
        created_at=moment(row["created_at"], "created_at"),
        mode=one_of(row["mode"], "mode", MODES),
        evidence=None if row["evidence"] is None else evidence_of(row["evidence"]),
        environment=environment,
        origin=origin,
    )


def evidence_row(evidence: Evidence) -> dict[str, Any]:
    """The evidence as JSON has it, without what is not known."""
    return {name: value for name, value in asdict(evidence).items() if value not in (None, ())}


@row_of("evidence")
def evidence_of(stored: Any) -> Evidence:
    """The evidence of an object, or of its JSON text."""
    row = json.loads(stored) if isinstance(stored, str) else stored
    median, low, high = (number(ratio, "gain", above=0) for ratio in row["gain"])
    counts = ("clock_mhz", "temperature_c", "power_w", "candidates")
    known = {name: whole(row, name) for name in counts if row.get(name) is not None}
    return Evidence(
        rounds=whole(row, "rounds"),
        gain=(median, low, high),
        ties=tuple(word(config, "tie") for config in row.get("ties", ())),
        runners_up=_timed(row, "runners_up"),
        deviation=if_any(row.get("deviation"), number, "deviation"),
        floor_us=if_any(row.get("floor_us"), number, "floor_us", 0),
        peers=_timed(row, "peers"),
        learned_from=tuple(whole({"learned_from": m}, "learned_from") for m in row.get("learned_from", ())),
        energy=tuple(
            (word(config, "energy"), *_joules(measured)) for config, *measured in row.get("energy", ())
        ),
        **known,
    )


def _timed(row: dict[str, Any], name: str) -> tuple[tuple[str, float], ...]:
    """What was timed, each with its microseconds."""
    return tuple((word(what, name), number(us, name, 0)) for what, us in row.get(name, ()))


def _joules(measured: list[Any]) -> tuple[float, float, float]:
    joules, low, high = (number(value, "energy", 0) for value in measured)
    return joules, low, high


@row_of("environment")
def environment_of(row: Row) -> Environment:
    """The environment of a row, whose sources are an object or its JSON text."""
    sources = row["sources"]
    sources = json.loads(sources) if isinstance(sources, str) else sources
    return Environment(
        **{name: word(row[name], name) for name in ("driver", "compiler", "torch", "version")},
        sources={word(name, "sources"): word(value, "sources") for name, value in sources.items()},
    )


@row_of("device")
def device_of(row: Row) -> Device:
    """The device model of a row; `index` is 0."""
    return Device(
        kind=one_of(row["kind"], "kind", ("cuda", "cpu")),
        index=0,
        name=word(row["name"], "name"),
        arch=word(row["arch"], "arch"),
        **{name: whole(row, name, most=(1 << 63) - 1) for name in SIZES},
    )


@row_of("job")
def job_of(row: Row) -> Job:
    """The job of a row."""
    return Job(
        id=whole(row, "id", most=(1 << 63) - 1),
        problem=problem_of(row),
        device=word(row["device"], "device"),
        arch=word(row["arch"], "arch"),
        source_hash=word(row["source_hash"], "source_hash"),
        priority=number(row["priority"], "priority"),
        state=one_of(row["state"], "state", STATES),
        attempts=whole(row, "attempts"),
        worker=if_any(row["worker"], word, "worker"),
        lease_until=if_any(row["lease_until"], number, "lease_until"),
        not_before=number(row["not_before"], "not_before"),
        reason=if_any(row["reason"], text, "reason"),
        created_at=number(row["created_at"], "created_at"),
    )


@row_of("binary")
def binary_of(row: Row) -> Binary:
    """The compiled kernel of a row."""
    unit_key, arch, compiler = (word(row[name], name) for name in ("unit_key", "arch", "compiler"))
    binary = Binary(unit_key, arch, compiler, bytes(row["cubin"]))
    if binary.sha256 != row["sha256"] or not binary.cubin.startswith(b"\x7fELF"):
        raise ValueError("it is not the one that was stored")
    return binary


@row_of("history")
def event_of(row: Row) -> Event:
    """The event of a row."""
    at = number(row["at"], "at", -1.0)
    datetime.fromtimestamp(at, timezone.utc)  # which has no year beyond 9999
    names = ("device", "arch", "config", "source_hash", "driver", "compiler")
    words: dict[str, Any] = {name: word(row[name], name) for name in names}
    times: dict[str, Any] = {name: time_if_any(row, name) for name in ("median_us", "low_us", "high_us")}
    counts: dict[str, Any] = {
        name: None if row[name] is None else whole(row, name) for name in ("clock_mhz", "temperature_c")
    }
    return Event(
        problem=problem_of(row),
        **words,
        mode=one_of(row["mode"], "mode", MODES),
        event=one_of(row["event"], "event", EVENTS),
        at=at,
        **times,
        **counts,
    )


@row_of("pulled set")
def pulled_of(row: Row) -> Pulled:
    """The pulled set of a row."""
    return Pulled(
        id=whole(row, "id"),
        name=word(row["name"], "name"),
        origin=word(row["origin"], "origin"),
        bundle=if_any(row["bundle"], word, "bundle"),
        signer=if_any(row["signer"], word, "signer"),
        pulled_at=moment(row["pulled_at"], "pulled_at"),
        rolled_back=bool(row["rolled_back"]),
    )


@row_of("promotion")
def promotion_of(row: Row) -> Promotion:
    """The promotion of a row."""
    names = ("channel", "bundle", "digest", "reason")
    channel, bundle, digest, reason = (word(row[name], name) for name in names)
    return Promotion(whole(row, "id"), channel, bundle, digest, moment(row["at"], "at"), reason)


@row_of("worker")
def worker_of(row: Row) -> Worker:
    """The worker of a row."""
    return Worker(
        **{name: word(row[name], name) for name in ("name", "host", "device", "arch")},
        state=one_of(row["state"], "state", WORKER_STATES),
        job_id=if_any(row["job_id"], lambda _: whole(row, "job_id", most=(1 << 63) - 1)),
        last_seen=number(row["last_seen"], "last_seen"),
        started_at=number(row["started_at"], "started_at"),
    )
