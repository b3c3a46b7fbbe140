"""Values as rows, the same for SQLAlchemy, sqlite3 and JSON; standard library only.

A row may be damaged, or somebody else may have written it. A value made from one has the types, ranges and
lengths that the rest of the code relies on; otherwise RowError says which of them it lacks.
"""

from __future__ import annotations

import functools
import json
import math
import struct
from collections.abc import Callable
from dataclasses import asdict
from datetime import datetime, timezone
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

from autotune.values.config import Config
from autotune.values.device import Device
from autotune.values.errors import DatabaseError
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
_LONGEST_WORD = 1000
_LONGEST_TEXT = 1 << 24
# As both databases can hold them in a column of INTEGER.
_LARGEST = (1 << 31) - 1

_Value = TypeVar("_Value")
_More = ParamSpec("_More")


class Row(Protocol):
    """What dict, sqlite3.Row and SQLAlchemy's RowMapping have in common."""

    def __getitem__(self, name: str, /) -> Any: ...


class RowError(DatabaseError):
    """A row that is not what its table promises; the message names the value, but not the database."""


_Maker = Callable[Concatenate[Row, _More], _Value]


def _row_of(what: str) -> Callable[[_Maker[_More, _Value]], _Maker[_More, _Value]]:
    """Have a maker of values raise RowError and nothing else, whatever is in the row."""

    def decorate(make: _Maker[_More, _Value]) -> _Maker[_More, _Value]:
        @functools.wraps(make)
        def made(row: Row, /, *more: _More.args, **named: _More.kwargs) -> _Value:
            try:
                return make(row, *more, **named)
            except RowError:
                raise
            except Exception as error:
                raise RowError(f"{what}{_number_of(row)} does not read: {in_short(error)}") from error

        return made

    return decorate


def _number_of(row: Row) -> str:
    try:
        return f" {row['id']:d}"
    except Exception:
        return ""  # a line of text has none


def in_short(error: BaseException) -> str:
    """The error in one line of at most some 200 characters."""
    line = " ".join((repr(error) if isinstance(error, LookupError) else str(error)).split())
    return line if len(line) <= 200 else f"{line[:200]}…"


# A database has few layers and configs and many records of them.
_layer = functools.lru_cache(maxsize=4096)(Layer)
_scheme = functools.lru_cache(maxsize=4096)(Scheme.parse)


@functools.lru_cache(maxsize=4096)
def _config(text: str) -> Config:
    config = Config.parse(text)
    if any(value > _LARGEST for _, value in config.values):
        raise ValueError(f"config {text!r} has a value beyond {_LARGEST}")
    return config


def _whole(row: Row, name: str, least: int = 0, most: int = _LARGEST) -> int:
    value = row[name]
    if type(value) is not int or not least <= value <= most:
        raise ValueError(f"{name}={value!r} is not a whole number from {least} to {most}")
    return value


def _number(value: Any, name: str, above: float = -math.inf) -> float:
    """The value as a float; SQLite and JSON may have a whole number in its place."""
    if type(value) not in (int, float) or not above < value < math.inf:
        raise ValueError(f"{name}={value!r} is not a finite number" + (" above 0" if above == 0 else ""))
    return float(value)


def _time_us(row: Row, name: str) -> float:
    return _number(row[name], name, above=0)


def _time_if_any(row: Row, name: str) -> float | None:
    return None if row[name] is None else _time_us(row, name)


def _word(value: Any, name: str) -> str:
    """A text that fits into a line."""
    if not isinstance(value, str) or len(value) > _LONGEST_WORD or not value.isprintable():
        raise ValueError(f"{name}={value!r} is not a line of text")
    return value


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str) or len(value) > _LONGEST_TEXT:
        raise ValueError(f"{name}={value!r} is not a text")
    return value


def unix_s(moment: str) -> float:
    """The Unix seconds of a time as ISO 8601; one without an offset is in UTC."""
    read = datetime.fromisoformat(moment)
    return (read if read.tzinfo else read.replace(tzinfo=timezone.utc)).timestamp()


def moment(value: Any, name: str) -> str:
    """A time as ISO 8601, of Unix seconds; text and schemas before 0005 have it as it is."""
    if isinstance(value, str):
        unix_s(_word(value, name))
        return value
    seconds = _number(value, name)
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="seconds")


def _one_of(value: Any, name: str, known: tuple[Any, ...]) -> Any:
    if value not in known:
        raise ValueError(f"{name}={value!r} is not one of {', '.join(map(str, known))}")
    return value


def _if_any(value: Any, make: Callable[..., _Value], *more: Any) -> _Value | None:
    return None if value is None else make(value, *more)


def problem_row(problem: Problem) -> dict[str, Any]:
    """The problem's columns."""
    layer = problem.layer
    return {"n": layer.n, "k": layer.k, "scheme": str(layer.scheme), "m": problem.m}


@_row_of("problem")
def problem_of(row: Row) -> Problem:
    """The problem of a row, which may have the columns of schemas before 0005."""
    n, k, m = _whole(row, "n"), _whole(row, "k"), _whole(row, "m")
    try:
        scheme = row["scheme"]
    except LookupError:
        zero_point = bool(_one_of(row["zero_point"], "zero_point", (False, True)))
        group_size, dtype = _whole(row, "group_size", -1), _word(row["dtype"], "dtype")
        return Problem(_layer(n, k, group_size=group_size, dtype=dtype, zero_point=zero_point), m)
    return Problem(_layer(n, k, _scheme(_word(scheme, "scheme"))), m)


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


@_row_of("trial")
def trial_of(row: Row) -> Trial:
    """The trial of a row."""
    samples = row["samples"]
    status = _one_of(row["status"], "status", STATUSES)
    return Trial(
        problem=problem_of(row),
        config=_config(_word(row["config"], "config")),
        status=status,
        # What passed was timed; of what did not, nothing has to be known.
        median_us=_time_us(row, "median_us") if status == "ok" else _time_if_any(row, "median_us"),
        low_us=_time_if_any(row, "low_us"),
        high_us=_time_if_any(row, "high_us"),
        samples_us=struct.unpack(f"<{len(samples) // 4}f", samples),
        error=_if_any(row["error"], _text, "error"),
        mode=_one_of(row["mode"], "mode", MODES),
        clock_mhz=None if row["clock_mhz"] is None else _whole(row, "clock_mhz"),
        deviation=_if_any(row["deviation"], _number, "deviation"),
        source_hash=_if_any(row["source_hash"], _word, "source_hash"),
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


@_row_of("record")
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
        device=_word(device, "device"),
        arch=_word(arch, "arch"),
        config=_config(_word(row["config"], "config")),
        median_us=_time_us(row, "median_us"),
        low_us=_time_us(row, "low_us"),
        high_us=_time_us(row, "high_us"),
        default_config=_config(_word(row["default_config"], "default_config")),
        default_us=_time_us(row, "default_us"),
        source_hash=_word(source_hash, "source_hash"),
        created_at=moment(row["created_at"], "created_at"),
        mode=_one_of(row["mode"], "mode", MODES),
        evidence=None if row["evidence"] is None else evidence_of(row["evidence"]),
        environment=environment,
        origin=origin,
    )


def evidence_row(evidence: Evidence) -> dict[str, Any]:
    """The evidence as JSON has it, without what is not known."""
    return {name: value for name, value in asdict(evidence).items() if value not in (None, ())}


@_row_of("evidence")
def evidence_of(stored: Any) -> Evidence:
    """The evidence of an object, or of its JSON text."""
    row = json.loads(stored) if isinstance(stored, str) else stored
    median, low, high = (_number(ratio, "gain", above=0) for ratio in row["gain"])
    counts = ("clock_mhz", "temperature_c", "power_w", "candidates")
    known = {name: _whole(row, name) for name in counts if row.get(name) is not None}
    return Evidence(
        rounds=_whole(row, "rounds"),
        gain=(median, low, high),
        ties=tuple(_word(config, "tie") for config in row.get("ties", ())),
        runners_up=_timed(row, "runners_up"),
        deviation=_if_any(row.get("deviation"), _number, "deviation"),
        floor_us=_if_any(row.get("floor_us"), _number, "floor_us", 0),
        peers=_timed(row, "peers"),
        learned_from=tuple(_whole({"learned_from": m}, "learned_from") for m in row.get("learned_from", ())),
        energy=tuple(
            (_word(config, "energy"), *_joules(measured)) for config, *measured in row.get("energy", ())
        ),
        **known,
    )


def _timed(row: dict[str, Any], name: str) -> tuple[tuple[str, float], ...]:
    """What was timed, each with its microseconds."""
    return tuple((_word(what, name), _number(us, name, 0)) for what, us in row.get(name, ()))


def _joules(measured: list[Any]) -> tuple[float, float, float]:
    joules, low, high = (_number(value, "energy", 0) for value in measured)
    return joules, low, high


@_row_of("environment")
def environment_of(row: Row) -> Environment:
    """The environment of a row, whose sources are an object or its JSON text."""
    sources = row["sources"]
    sources = json.loads(sources) if isinstance(sources, str) else sources
    return Environment(
        **{name: _word(row[name], name) for name in ("driver", "compiler", "torch", "version")},
        sources={_word(name, "sources"): _word(value, "sources") for name, value in sources.items()},
    )


@_row_of("device")
def device_of(row: Row) -> Device:
    """The device model of a row; `index` is 0."""
    return Device(
        kind=_one_of(row["kind"], "kind", ("cuda", "cpu")),
        index=0,
        name=_word(row["name"], "name"),
        arch=_word(row["arch"], "arch"),
        **{name: _whole(row, name, most=(1 << 63) - 1) for name in SIZES},
    )


@_row_of("job")
def job_of(row: Row) -> Job:
    """The job of a row."""
    return Job(
        id=_whole(row, "id", most=(1 << 63) - 1),
        problem=problem_of(row),
        device=_word(row["device"], "device"),
        arch=_word(row["arch"], "arch"),
        source_hash=_word(row["source_hash"], "source_hash"),
        priority=_number(row["priority"], "priority"),
        state=_one_of(row["state"], "state", STATES),
        attempts=_whole(row, "attempts"),
        worker=_if_any(row["worker"], _word, "worker"),
        lease_until=_if_any(row["lease_until"], _number, "lease_until"),
        not_before=_number(row["not_before"], "not_before"),
        reason=_if_any(row["reason"], _text, "reason"),
        created_at=_number(row["created_at"], "created_at"),
    )


@_row_of("binary")
def binary_of(row: Row) -> Binary:
    """The compiled kernel of a row."""
    unit_key, arch, compiler = (_word(row[name], name) for name in ("unit_key", "arch", "compiler"))
    binary = Binary(unit_key, arch, compiler, bytes(row["cubin"]))
    if binary.sha256 != row["sha256"] or not binary.cubin.startswith(b"\x7fELF"):
        raise ValueError("it is not the one that was stored")
    return binary


@_row_of("history")
def event_of(row: Row) -> Event:
    """The event of a row."""
    at = _number(row["at"], "at", -1.0)
    datetime.fromtimestamp(at, timezone.utc)  # which has no year beyond 9999
    names = ("device", "arch", "config", "source_hash", "driver", "compiler")
    words: dict[str, Any] = {name: _word(row[name], name) for name in names}
    times: dict[str, Any] = {name: _time_if_any(row, name) for name in ("median_us", "low_us", "high_us")}
    counts: dict[str, Any] = {
        name: None if row[name] is None else _whole(row, name) for name in ("clock_mhz", "temperature_c")
    }
    return Event(
        problem=problem_of(row),
        **words,
        mode=_one_of(row["mode"], "mode", MODES),
        event=_one_of(row["event"], "event", EVENTS),
        at=at,
        **times,
        **counts,
    )


@_row_of("pulled set")
def pulled_of(row: Row) -> Pulled:
    """The pulled set of a row."""
    return Pulled(
        id=_whole(row, "id"),
        name=_word(row["name"], "name"),
        origin=_word(row["origin"], "origin"),
        bundle=_if_any(row["bundle"], _word, "bundle"),
        signer=_if_any(row["signer"], _word, "signer"),
        pulled_at=moment(row["pulled_at"], "pulled_at"),
        rolled_back=bool(row["rolled_back"]),
    )


@_row_of("promotion")
def promotion_of(row: Row) -> Promotion:
    """The promotion of a row."""
    names = ("channel", "bundle", "digest", "reason")
    channel, bundle, digest, reason = (_word(row[name], name) for name in names)
    return Promotion(_whole(row, "id"), channel, bundle, digest, moment(row["at"], "at"), reason)


@_row_of("worker")
def worker_of(row: Row) -> Worker:
    """The worker of a row."""
    return Worker(
        **{name: _word(row[name], name) for name in ("name", "host", "device", "arch")},
        state=_one_of(row["state"], "state", WORKER_STATES),
        job_id=_if_any(row["job_id"], lambda _: _whole(row, "job_id", most=(1 << 63) - 1)),
        last_seen=_number(row["last_seen"], "last_seen"),
        started_at=_number(row["started_at"], "started_at"),
    )
