"""The schema: Alembic alone creates and changes it, from the migrations that the package ships."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import command
from alembic.config import Config

from autotune.store.database import Database
from autotune.store.trouble import check_known, known_revisions
from autotune.values.paths import Location, shipped

# Any number will do, as long as every autotune takes the same: one process changes a schema at a time.
_LOCK = 0x6175746F


def upgrade(url: Location | None = None) -> str:
    """Bring the database to the newest revision, creating it when it is not there; the revision.

    Raises:
        DatabaseError: it cannot be written, is not ours, or was made by a newer autotune.
    """
    database = Database(url)
    try:
        return migrate(database)
    finally:
        database.close()


def migrate(database: Database) -> str:
    """What `upgrade` does, on an opened database: one transaction, so a kill leaves the old schema."""
    found = database.revision()
    database.make_folder()
    if found is not None:
        check_known(database.name, found)
    with database.transaction(write=True) as connection:
        if connection.dialect.name == "postgresql":
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))
        config = Config()
        config.set_main_option("script_location", str(shipped("migrations")).replace("%", "%%"))
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
    return known_revisions()[-1]
