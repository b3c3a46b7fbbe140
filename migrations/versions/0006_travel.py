"""Records that travel: the history of each, what was pulled beside what was measured, bundles and channels.

History begins with the records that are there.
"""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"

MODES = ("model", "graph", "hot", "server")


def upgrade() -> None:
    op.create_table(
        "history",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("device_id", sa.Integer, sa.ForeignKey("device.id"), nullable=False),
        sa.Column("environment_id", sa.Integer, sa.ForeignKey("environment.id"), nullable=False),
        *_problem(),
        sa.Column("config", sa.String, nullable=False),
        *_one_of("mode", MODES),
        sa.Column("source_hash", sa.String, nullable=False),
        *_one_of("event", ("sweep", "kept", "replaced", "dropped", "import")),
        sa.Column("at", sa.Double, nullable=False),
        sa.Column("median_us", sa.Double),
        sa.Column("low_us", sa.Double),
        sa.Column("high_us", sa.Double),
        sa.Column("clock_mhz", sa.Integer),
        sa.Column("temperature_c", sa.Integer),
    )
    op.create_index("history_problem", "history", ["n", "k", "m", "scheme", "device_id"])
    op.execute(
        """
        INSERT INTO history (device_id, environment_id, n, k, scheme, m, config, mode, source_hash, event, at,
            median_us, low_us, high_us)
        SELECT device_id, environment_id, n, k, scheme, m, config, mode, source_hash, 'sweep', created_at,
            median_us, low_us, high_us
        FROM record ORDER BY id
        """
    )
    _create_pulled()
    _create_bundles()


def _create_pulled() -> None:
    op.create_table(
        "origin",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("name", sa.String, nullable=False, unique=True),
        sa.Column("digest", sa.String),
    )
    op.create_table(
        "pulled_set",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("name", sa.String, nullable=False),
        sa.Column("origin_id", sa.Integer, sa.ForeignKey("origin.id"), nullable=False),
        sa.Column("bundle", sa.String),
        sa.Column("signer", sa.String),
        sa.Column("pulled_at", sa.Double, nullable=False),
        sa.Column("rolled_back", sa.Boolean, nullable=False),
    )
    op.create_table(
        "pulled",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("origin_id", sa.Integer, sa.ForeignKey("origin.id"), nullable=False),
        sa.Column("since", sa.Integer, sa.ForeignKey("pulled_set.id"), nullable=False),
        sa.Column("until", sa.Integer, sa.ForeignKey("pulled_set.id")),
        sa.Column("version", sa.String, nullable=False),
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
        sa.Column("environment_id", sa.Integer, sa.ForeignKey("environment.id"), nullable=False),
        sa.Column("binary_id", sa.Integer, sa.ForeignKey("binary.id")),
        sa.Column("evidence", sa.JSON),
    )
    op.create_index("pulled_layer", "pulled", ["device_id", "n", "k", "scheme"])
    op.create_index("pulled_since", "pulled", ["since"])
    op.create_index("pulled_until", "pulled", ["until"])
    op.create_index("ix_pulled_binary_id", "pulled", ["binary_id"])


def _create_bundles() -> None:
    op.create_table(
        "bundle",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("digest", sa.String, nullable=False, unique=True),
        sa.Column("name", sa.String, nullable=False),
        sa.Column("content", sa.LargeBinary, nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
    )
    op.create_table(
        "channel",
        sa.Column("id", sa.Integer, primary_key=True),
        *_one_of("name", ("stable", "candidate")),
        sa.Column("bundle_id", sa.Integer, sa.ForeignKey("bundle.id"), nullable=False),
        sa.Column("at", sa.Double, nullable=False),
        sa.Column("reason", sa.String, nullable=False),
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
