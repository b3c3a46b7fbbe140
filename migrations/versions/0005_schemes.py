"""Schemes as one column, modes in the keys of records, times in Unix seconds, checked states, foreign keys.

Every table that changes is made anew and its rows are copied, because SQLite can add no constraint. So the
database has both for a while, in one transaction.
"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"

# A table comes after those that it refers to.
TABLES = ("device", "sweep", "trial", "record", "job", "worker")
MODES = ("model", "graph", "hot", "server")

SCHEME = """
    'int4-' || CASE WHEN group_size = k THEN 'channel' ELSE 'g' || group_size END
    || CASE WHEN zero_point THEN '-zp-' ELSE '-sym-' END || dtype
"""
PROBLEM = f"n, k, {SCHEME}, m"
SIZES = "cores, l2_bytes, shared_bytes, memory_bytes"


def upgrade() -> None:
    server = op.get_bind().dialect.name == "postgresql"
    op.drop_index("trial_problem", "trial")
    op.drop_index("job_open", "job")
    for table in TABLES:
        op.rename_table(table, f"old_{table}")
    if server:
        _rename_what_belongs_to_them()
    _create_measured()
    _create_queue()
    for table, copy in _copies(server).items():
        op.execute(f"INSERT INTO {table} {copy}")
        if server and table != "worker":
            numbers = f"pg_get_serial_sequence('{table}', 'id')"
            op.execute(f"SELECT setval({numbers}, max(id)) FROM {table}")
        if table == "device":
            _name_unknown_devices()
    _create_indexes()
    for table in reversed(TABLES):
        op.drop_table(f"old_{table}")


def _rename_what_belongs_to_them() -> None:
    """PostgreSQL's indexes and sequences, whose names the new tables are to have."""
    found = op.get_bind().execute(
        sa.text(
            "SELECT relname, relkind FROM pg_class WHERE relnamespace = current_schema()::regnamespace "
            "AND relkind IN ('i', 'S') AND split_part(relname, '_', 1) = ANY(:tables)"
        ),
        {"tables": list(TABLES)},
    )
    for name, kind in found:
        op.execute(f'ALTER {"INDEX" if kind == "i" else "SEQUENCE"} "{name}" RENAME TO "old_{name}"')


def _copies(server: bool) -> dict[str, str]:
    """What each table gets."""
    mode = "evidence->>'mode'"
    if not server:
        mode = "CASE WHEN json_valid(evidence) THEN json_extract(evidence, '$.mode') END"
    here = "(SELECT id FROM device WHERE name = old.device AND device.arch = old.arch)"
    started_at, finished_at, created_at = (
        f"CAST(extract(epoch FROM CAST({name} AS timestamptz)) AS double precision)"
        if server
        else f"CAST(strftime('%s', {name}) AS REAL)"
        for name in ("started_at", "finished_at", "created_at")
    )
    return {
        "device": f"(id, name, arch, kind, {SIZES}) SELECT id, name, arch, kind, {SIZES} FROM old_device",
        "sweep": f"""
            (id, device_id, environment_id, started_at, finished_at, status, arguments)
            SELECT id, device_id, environment_id, coalesce({started_at}, 0), {finished_at}, status, arguments
            FROM old_sweep
        """,
        "trial": f"""
            (id, sweep_id, n, k, scheme, m, config, status, median_us, low_us, high_us, samples, error, mode,
                clock_mhz, deviation, source_hash)
            SELECT id, sweep_id, {PROBLEM}, config, status, median_us, low_us, high_us, samples, error, mode,
                clock_mhz, deviation, source_hash
            FROM old_trial
        """,
        "record": f"""
            (id, device_id, n, k, scheme, m, config, median_us, low_us, high_us, default_config, default_us,
                source_hash, created_at, mode, trial_id, environment_id, binary_id, evidence)
            SELECT id, device_id, {PROBLEM}, config, median_us, low_us, high_us, default_config, default_us,
                source_hash, coalesce({created_at}, 0), coalesce({mode}, 'graph'), trial_id, environment_id,
                binary_id, evidence
            FROM old_record
        """,
        "job": f"""
            (id, n, k, scheme, m, device_id, source_hash, priority, state, attempts, worker, lease_until,
                not_before, reason, created_at)
            SELECT id, {PROBLEM}, {here}, source_hash, priority, state, attempts, worker, lease_until,
                not_before, reason, created_at
            FROM old_job AS old
        """,
        "worker": f"""
            (name, host, device_id, state, job_id, last_seen, started_at)
            SELECT name, host, {here}, state, (SELECT id FROM job WHERE id = old.job_id), last_seen,
                started_at
            FROM old_worker AS old
        """,
    }


def _name_unknown_devices() -> None:
    """Jobs may be for device models on which nobody measured yet; these have a name, and no sizes."""
    op.execute(
        f"""
        INSERT INTO device (name, arch, kind, {SIZES})
        SELECT device, arch, CASE WHEN arch LIKE 'sm\\_%' ESCAPE '\\' THEN 'cuda' ELSE 'cpu' END, 0, 0, 0, 0
        FROM (SELECT device, arch FROM old_job UNION SELECT device, arch FROM old_worker) AS named
        WHERE NOT EXISTS (SELECT 1 FROM device WHERE name = named.device AND device.arch = named.arch)
        """
    )


def _create_measured() -> None:
    op.create_table(
        "device",
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
    op.create_table(
        "sweep",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("device_id", sa.Integer, sa.ForeignKey("device.id"), nullable=False),
        sa.Column("environment_id", sa.Integer, sa.ForeignKey("environment.id"), nullable=False),
        sa.Column("started_at", sa.Double, nullable=False),
        sa.Column("finished_at", sa.Double),
        *_one_of("status", ("running", "finished", "interrupted", "failed")),
        sa.Column("arguments", sa.JSON, nullable=False),
    )
    op.create_table(
        "trial",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("sweep_id", sa.Integer, sa.ForeignKey("sweep.id"), nullable=False),
        *_problem(),
        sa.Column("config", sa.String, nullable=False),
        *_one_of("status", ("ok", "failed", "wrong", "pruned")),
        sa.Column("median_us", sa.Double),
        sa.Column("low_us", sa.Double),
        sa.Column("high_us", sa.Double),
        sa.Column("samples", sa.LargeBinary, nullable=False),
        sa.Column("error", sa.String),
        *_one_of("mode", MODES),
        sa.Column("clock_mhz", sa.Integer),
        sa.Column("deviation", sa.Double),
        sa.Column("source_hash", sa.String),
    )
    op.create_table(
        "noisy",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("sweep_id", sa.Integer, sa.ForeignKey("sweep.id"), nullable=False),
        *_problem(),
        sa.Column("reason", sa.String, nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
    )
    op.create_table(
        "record",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("device_id", sa.Integer, sa.ForeignKey("device.id"), nullable=False),
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
        sa.Column("dense_us", sa.Double),
        sa.Column("trial_id", sa.Integer, sa.ForeignKey("trial.id")),
        sa.Column("environment_id", sa.Integer, sa.ForeignKey("environment.id"), nullable=False),
        sa.Column("binary_id", sa.Integer, sa.ForeignKey("binary.id")),
        sa.Column("evidence", sa.JSON),
        sa.UniqueConstraint("device_id", "n", "k", "scheme", "m", "mode", "source_hash"),
    )


def _create_queue() -> None:
    op.create_table(
        "job",
        sa.Column("id", _big_integer(), primary_key=True),
        *_problem(),
        sa.Column("device_id", sa.Integer, sa.ForeignKey("device.id"), nullable=False),
        sa.Column("source_hash", sa.String, nullable=False),
        sa.Column("priority", sa.Double, nullable=False),
        *_one_of("state", ("queued", "running", "parked", "cancelled", "done")),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("worker", sa.String),
        sa.Column("lease_until", sa.Double),
        sa.Column("not_before", sa.Double, nullable=False),
        sa.Column("reason", sa.String),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.UniqueConstraint("n", "k", "scheme", "m", "device_id", "source_hash"),
    )
    op.create_table(
        "worker",
        sa.Column("name", sa.String, primary_key=True),
        sa.Column("host", sa.String, nullable=False),
        sa.Column("device_id", sa.Integer, sa.ForeignKey("device.id"), nullable=False),
        *_one_of("state", ("idle", "tuning", "waiting", "stopped")),
        sa.Column("job_id", _big_integer(), sa.ForeignKey("job.id", ondelete="SET NULL")),
        sa.Column("last_seen", sa.Double, nullable=False),
        sa.Column("started_at", sa.Double, nullable=False),
    )


def _create_indexes() -> None:
    op.create_index("trial_problem", "trial", ["n", "k", "m", "scheme", "sweep_id"])
    op.create_index("ix_record_trial_id", "record", ["trial_id"])
    op.create_index("ix_record_binary_id", "record", ["binary_id"])
    is_open = sa.text("state IN ('queued', 'running')")
    op.create_index(
        "job_open",
        "job",
        ["device_id", "source_hash", sa.text("priority DESC"), "id"],
        sqlite_where=is_open,
        postgresql_where=is_open,
    )


def _problem() -> list[sa.Column[object]]:
    return [
        sa.Column("n", sa.Integer, nullable=False),
        sa.Column("k", sa.Integer, nullable=False),
        sa.Column("scheme", sa.String, nullable=False),
        sa.Column("m", sa.Integer, nullable=False),
    ]


def _one_of(name: str, values: tuple[str, ...]) -> tuple[sa.Column[object], sa.CheckConstraint]:
    texts = ", ".join(f"'{value}'" for value in values)
    return sa.Column(name, sa.String, nullable=False), sa.CheckConstraint(f"{name} IN ({texts})")


def _big_integer() -> sa.types.TypeEngine[int]:
    return sa.BigInteger().with_variant(sa.Integer, "sqlite")
