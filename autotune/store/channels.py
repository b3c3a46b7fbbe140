"""Bundles of a fleet's database, and the channels by which hosts follow them."""

from __future__ import annotations

import sqlalchemy as sa

from autotune.store.clock import now
from autotune.store.database import put
from autotune.store.rows import promotion_of
from autotune.store.store import Store
from autotune.store.tables import BUNDLE, CHANNEL
from autotune.values.errors import DatabaseError
from autotune.values.fleet import Promotion


def promotions(store: Store, channel: str) -> list[Promotion]:
    """All of the channel, the newest first.

    Raises:
        DatabaseError: the store cannot be read.
    """
    with store.database.transaction() as connection:
        return _promotions(connection, channel)


def _promotions(connection: sa.Connection, channel: str) -> list[Promotion]:
    query = sa.select(
        CHANNEL.c.id,
        CHANNEL.c.name.label("channel"),
        BUNDLE.c.name.label("bundle"),
        BUNDLE.c.digest,
        CHANNEL.c.at,
        CHANNEL.c.reason,
    )
    query = query.join(BUNDLE).where(CHANNEL.c.name == channel).order_by(CHANNEL.c.id.desc())
    return [promotion_of(row) for row in connection.execute(query).mappings()]


def promote(store: Store, channel: str, digest: str, name: str, content: bytes, reason: str) -> None:
    """Store the bundle if it is new, and have the channel name it.

    Raises:
        DatabaseError: the store cannot be written.
    """
    with store.database.transaction(write=True) as connection:
        values = {"name": name, "content": content, "created_at": now()}
        bundle_id = put(connection, BUNDLE, {"digest": digest}, values)
        row = {"name": channel, "bundle_id": bundle_id, "at": now(), "reason": reason}
        connection.execute(sa.insert(CHANNEL).values(row))


def roll_back(store: Store, channel: str, reason: str) -> tuple[Promotion, Promotion]:
    """Have the channel name the bundle before the one that it names; that one, and the one from now on.

    Raises:
        DatabaseError: there is none before, or the store cannot be written.
    """
    with store.database.transaction(write=True) as connection:
        query = sa.select(CHANNEL.c.id, CHANNEL.c.bundle_id).where(CHANNEL.c.name == channel)
        rows = connection.execute(query.order_by(CHANNEL.c.id)).all()
        # A promotion is undone by taking its row's predecessor; what was undone is no predecessor.
        stack: list[int] = []
        for _, bundle_id in rows:
            if len(stack) > 1 and stack[-2] == bundle_id:
                stack.pop()
            elif not stack or stack[-1] != bundle_id:
                stack.append(bundle_id)
        if len(stack) < 2:
            raise DatabaseError(f"{store.name}: channel {channel} names no bundle before its present one")
        row = {"name": channel, "bundle_id": stack[-2], "at": now(), "reason": reason}
        connection.execute(sa.insert(CHANNEL).values(row))
        newest, former, *_ = _promotions(connection, channel)
    return former, newest


def content(store: Store, channel: str) -> tuple[str, bytes]:
    """Name and bytes of the bundle that the channel names.

    Raises:
        DatabaseError: it names none, or the store cannot be read.
    """
    query = sa.select(BUNDLE.c.name, BUNDLE.c.content).join(CHANNEL).where(CHANNEL.c.name == channel)
    with store.database.transaction() as connection:
        row = connection.execute(query.order_by(CHANNEL.c.id.desc()).limit(1)).one_or_none()
    if row is None:
        raise DatabaseError(
            f"{store.name}: channel {channel} names no bundle; autotune promote has it name one"
        )
    return row[0], bytes(row[1])
