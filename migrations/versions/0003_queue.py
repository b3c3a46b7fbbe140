"""The queue of jobs and the workers that serve it; look-ups of trials that stay fast among a million."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.create_table(
        "job",
        sa.Column("id", _big_integer(), primary_key=True),
        sa.Column("n", sa.Integer, nullable=False),
        sa.Column("k", sa.Integer, nullable=False),
        sa.Column("group_size", sa.Integer, nullable=False),
        sa.Column("dtype", sa.String, nullable=False),
        sa.Column("zero_point", sa.Boolean, nullable=False),
        sa.Column("m", sa.Integer, nullable=False),
        sa.Column("device", sa.String, nullable=False),
        sa.Column("arch", sa.String, nullable=False),
        sa.Column("source_hash", sa.String, nullable=False),
        sa.Column("priority", sa.Double, nullable=False),
        sa.Column("state", sa.String, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("worker", sa.String),
        sa.Column("lease_until", sa.Double),
        sa.Column("not_before", sa.Double, nullable=False),
        sa.Column("reason", sa.String),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.UniqueConstraint(
            *("n", "k", "group_size", "dtype", "zero_point", "m", "device", "arch", "source_hash"),
            name="job_key",
        ),
    )
    is_open = sa.text("state IN ('queued', 'running')")
    op.create_index(
        "job_open",
        "job",
        ["device", "arch", "source_hash", sa.text("priority DESC"), "id"],
        sqlite_where=is_open,
        postgresql_where=is_open,
    )
    op.create_table(
        "worker",
        sa.Column("name", sa.String, primary_key=True),
        sa.Column("host", sa.String, nullable=False),
        sa.Column("device", sa.String, nullable=False),
        sa.Column("arch", sa.String, nullable=False),
        sa.Column("state", sa.String, nullable=False),
        sa.Column("job_id", _big_integer()),
        sa.Column("last_seen", sa.Double, nullable=False),
        sa.Column("started_at", sa.Double, nullable=False),
    )
    op.drop_index("trial_problem", "trial")
    whole = ["n", "k", "m", "group_size", "dtype", "zero_point", "sweep_id"]
    op.create_index("trial_problem", "trial", whole)


def _big_integer() -> sa.types.TypeEngine[int]:
    return sa.BigInteger().with_variant(sa.Integer, "sqlite")
