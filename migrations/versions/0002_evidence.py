"""How a trial was timed, and a record's evidence."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.add_column("trial", sa.Column("mode", sa.String, nullable=False, server_default="graph"))
    op.add_column("trial", sa.Column("clock_mhz", sa.Integer))
    op.add_column("trial", sa.Column("deviation", sa.Double))
    op.add_column("record", sa.Column("evidence", sa.JSON))
