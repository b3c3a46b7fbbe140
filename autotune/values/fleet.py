"""What a host pulled, and what a channel of a fleet names."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Pulled:
    """A set: everything that was in force after a pull from `origin`; `name` is the same wherever that is.

    `bundle` and `signer` tell of what was pulled then, where it was a bundle; `pulled_at` is when, in UTC as
    ISO 8601.
    """

    id: int
    name: str
    origin: str
    bundle: str | None
    signer: str | None
    pulled_at: str
    rolled_back: bool


@dataclass(frozen=True, slots=True)
class Promotion:
    """The bundle that a channel came to name, when (UTC, as ISO 8601) and why; the newest counts."""

    id: int
    channel: str
    bundle: str
    digest: str
    at: str
    reason: str
