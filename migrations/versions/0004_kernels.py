"""Which kernel a trial was of."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.add_column("trial", sa.Column("source_hash", sa.String))
