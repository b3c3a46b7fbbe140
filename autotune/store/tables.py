"""The tables at the newest revision. Alembic creates them (see migrations); a test compares the two.

Times are Unix seconds. `noisy` and `record.dense_us` are room for what nobody stores yet: problems whose
times could not be trusted, and how long torch's 16-bit matmul takes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from autotune.store.rows import STATUSES
from autotune.values.event import EVENTS
from autotune.values.job import STATES, WORKER_STATES
from autotune.values.record import MODES

METADATA = sa.MetaData()

CHANNELS = ("stable", "candidate")
SWEEP_STATUSES = ("running", "finished", "interrupted", "failed")


def _problem() -> list[sa.Column[object]]:
    return [
        sa.Column("n", sa.Integer, nullable=False),
        sa.Column("k", sa.Integer, nullable=False),
        sa.Column("scheme", sa.String, nullable=False),
        sa.Column("m", sa.Integer, nullable=False),
    ]


def _one_of(name: str, values: Sequence[str]) -> tuple[sa.Column[object], sa.CheckConstraint]:
    """A column of one of the values."""
    texts = ", ".join(f"'{value}'" for value in values)
    return sa.Column(name, sa.String, nullable=False), sa.CheckConstraint(f"{name} IN ({texts})")


def _measured() -> list[Any]:
    """What a record says, wherever it was measured."""
    return [
        *_problem(),
        sa.Column("config", sa.String, nullable=False),
        sa.Column("median_us", sa.Double, nullable=False),
        sa.Column("low_us", sa.Double, nullable=False),
        sa.Column("high_us", sa.Double, nullable=False),
        sa.Column("default_config", sa.String, nullable=False),
        sa.Column("default_us", sa.Double, nullable=False),
        sa.Column("source_hash", sa.String, nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        *_one_of("mode", MODES),
    ]


DEVICE = sa.Table(
    "device",
    METADATA,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("name", sa.String, nullable=False),
    sa.Column("arch", sa.String, nullable=False),
    *_one_of("kind", ("cuda", "cpu")),
    sa.Column("cores", sa.Integer, nullable=False),
    sa.Column("l2_bytes", sa.BigInteger, nullable=False),
    sa.Column("shared_bytes", sa.BigInteger, nullable=False),
    sa.Column("memory_bytes", sa.BigInteger, nullable=False),
    sa.UniqueConstraint("name", "arch"),
)

ENVIRONMENT = sa.Table(
    "environment",
    METADATA,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("digest", sa.String, nullable=False, unique=True),
    sa.Column("driver", sa.String, nullable=False),
    sa.Column("compiler", sa.String, nullable=False),
    sa.Column("torch", sa.String, nullable=False),
    sa.Column("version", sa.String, nullable=False),
    sa.Column("sources", sa.JSON, nullable=False),
)

SWEEP = sa.Table(
    "sweep",
    METADATA,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("device_id", sa.ForeignKey("device.id"), nullable=False),
    sa.Column("environment_id", sa.ForeignKey("environment.id"), nullable=False),
    sa.Column("started_at", sa.Double, nullable=False),
    sa.Column("finished_at", sa.Double),
    *_one_of("status", SWEEP_STATUSES),
    sa.Column("arguments", sa.JSON, nullable=False),
)

TRIAL = sa.Table(
    "trial",
    METADATA,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("sweep_id", sa.ForeignKey("sweep.id"), nullable=False),
    *_problem(),
    sa.Column("config", sa.String, nullable=False),
    *_one_of("status", STATUSES),
    sa.Column("median_us", sa.Double),
    sa.Column("low_us", sa.Double),
    sa.Column("high_us", sa.Double),
    sa.Column("samples", sa.LargeBinary, nullable=False),
    sa.Column("error", sa.String),
    *_one_of("mode", MODES),
    sa.Column("clock_mhz", sa.Integer),
    sa.Column("deviation", sa.Double),
    sa.Column("source_hash", sa.String),
    sa.Index("trial_problem", "n", "k", "m", "scheme", "sweep_id"),
)

NOISY = sa.Table(
    "noisy",
    METADATA,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("sweep_id", sa.ForeignKey("sweep.id"), nullable=False),
    *_problem(),
    sa.Column("reason", sa.String, nullable=False),
    sa.Column("created_at", sa.Double, nullable=False),
)

BINARY = sa.Table(
    "binary",
    METADATA,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("unit_key", sa.String, nullable=False, unique=True),
    sa.Column("sha256", sa.String, nullable=False),
    sa.Column("arch", sa.String, nullable=False),
    sa.Column("compiler", sa.String, nullable=False),
    sa.Column("cubin", sa.LargeBinary, nullable=False),
)

RECORD = sa.Table(
    "record",
    METADATA,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("device_id", sa.ForeignKey("device.id"), nullable=False),
    *_measured(),
    sa.Column("dense_us", sa.Double),
    # With indexes, so that what is pruned need not be looked for in every record.
    sa.Column("trial_id", sa.ForeignKey("trial.id"), index=True),
    sa.Column("environment_id", sa.ForeignKey("environment.id"), nullable=False),
    sa.Column("binary_id", sa.ForeignKey("binary.id"), index=True),
    sa.Column("evidence", sa.JSON(none_as_null=True)),
    sa.UniqueConstraint("device_id", "n", "k", "scheme", "m", "mode", "source_hash"),
)

HISTORY = sa.Table(
    "history",
    METADATA,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("device_id", sa.ForeignKey("device.id"), nullable=False),
    sa.Column("environment_id", sa.ForeignKey("environment.id"), nullable=False),
    *_problem(),
    sa.Column("config", sa.String, nullable=False),
    *_one_of("mode", MODES),
    sa.Column("source_hash", sa.String, nullable=False),
    *_one_of("event", EVENTS),
    sa.Column("at", sa.Double, nullable=False),
    sa.Column("median_us", sa.Double),
    sa.Column("low_us", sa.Double),
    sa.Column("high_us", sa.Double),
    sa.Column("clock_mhz", sa.Integer),
    sa.Column("temperature_c", sa.Integer),
    sa.Index("history_problem", "n", "k", "m", "scheme", "device_id"),
)

# What a host pulled: a row is in force from the set `since` on, and before the set `until` if there is one.
ORIGIN = sa.Table(
    "origin",
    METADATA,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("name", sa.String, nullable=False, unique=True),
    sa.Column("digest", sa.String),
)

PULLED_SET = sa.Table(
    "pulled_set",
    METADATA,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("name", sa.String, nullable=False),
    sa.Column("origin_id", sa.ForeignKey("origin.id"), nullable=False),
    sa.Column("bundle", sa.String),
    sa.Column("signer", sa.String),
    sa.Column("pulled_at", sa.Double, nullable=False),
    sa.Column("rolled_back", sa.Boolean, nullable=False),
)

PULLED = sa.Table(
    "pulled",
    METADATA,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("origin_id", sa.ForeignKey("origin.id"), nullable=False),
    sa.Column("since", sa.ForeignKey("pulled_set.id"), nullable=False),
    sa.Column("until", sa.ForeignKey("pulled_set.id")),
    sa.Column("version", sa.String, nullable=False),
    sa.Column("device_id", sa.ForeignKey("device.id"), nullable=False),
    *_measured(),
    sa.Column("environment_id", sa.ForeignKey("environment.id"), nullable=False),
    sa.Column("binary_id", sa.ForeignKey("binary.id"), index=True),
    sa.Column("evidence", sa.JSON(none_as_null=True)),
    sa.Index("pulled_layer", "device_id", "n", "k", "scheme"),
    sa.Index("pulled_since", "since"),
    sa.Index("pulled_until", "until"),
)

# What a fleet's hosts follow: bundles, and which of them each channel names; the newest row of a name counts.
BUNDLE = sa.Table(
    "bundle",
    METADATA,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("digest", sa.String, nullable=False, unique=True),
    sa.Column("name", sa.String, nullable=False),
    sa.Column("content", sa.LargeBinary, nullable=False),
    sa.Column("created_at", sa.Double, nullable=False),
)

CHANNEL = sa.Table(
    "channel",
    METADATA,
    sa.Column("id", sa.Integer, primary_key=True),
    *_one_of("name", CHANNELS),
    sa.Column("bundle_id", sa.ForeignKey("bundle.id"), nullable=False),
    sa.Column("at", sa.Double, nullable=False),
    sa.Column("reason", sa.String, nullable=False),
)

JOB = sa.Table(
    "job",
    METADATA,
    # A queue that is filled again and again uses up numbers for the jobs that it already has.
    sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
    *_problem(),
    sa.Column("device_id", sa.ForeignKey("device.id"), nullable=False),
    sa.Column("source_hash", sa.String, nullable=False),
    sa.Column("priority", sa.Double, nullable=False),
    *_one_of("state", STATES),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("worker", sa.String),
    sa.Column("lease_until", sa.Double),
    sa.Column("not_before", sa.Double, nullable=False),
    sa.Column("reason", sa.String),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.UniqueConstraint("n", "k", "scheme", "m", "device_id", "source_hash"),
)

# Only what can be claimed, in the order of claims: finished jobs, however many, cost a claim nothing. The
# states are text, not parameters, because that is how both planners see that the index has every row.
OPEN = sa.text("state IN ('queued', 'running')")
sa.Index(
    "job_open",
    JOB.c.device_id,
    JOB.c.source_hash,
    JOB.c.priority.desc(),
    JOB.c.id,
    sqlite_where=OPEN,
    postgresql_where=OPEN,
)

WORKER = sa.Table(
    "worker",
    METADATA,
    sa.Column("name", sa.String, primary_key=True),
    sa.Column("host", sa.String, nullable=False),
    sa.Column("device_id", sa.ForeignKey("device.id"), nullable=False),
    *_one_of("state", WORKER_STATES),
    sa.Column("job_id", sa.ForeignKey("job.id", ondelete="SET NULL")),
    sa.Column("last_seen", sa.Double, nullable=False),
    sa.Column("started_at", sa.Double, nullable=False),
)


def with_device(table: sa.Table) -> sa.Select[Any]:
    """Rows of jobs, workers or history with the name and arch of their device model."""
    return sa.select(table, DEVICE.c.name.label("device"), DEVICE.c.arch).join(DEVICE)
