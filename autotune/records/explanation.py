"""Why an answer of look-up can be trusted: its record's evidence and the environment it was measured in."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path

from autotune.store.reading import shipped_evidence, user_evidence
from autotune.values.record import Environment, Record


@dataclass(frozen=True, slots=True)
class Explanation:
    """A record with all that is stored with it; what an older autotune did not store is None."""

    record: Record
    environment: Environment | None

    @property
    def gain(self) -> tuple[float, float | None, float | None]:
        """The default config's time over the winner's, and its 95 % interval where there is one."""
        evidence = self.record.evidence
        return evidence.gain if evidence else (self.record.default_us / self.record.median_us, None, None)

    @property
    def roofline(self) -> float | None:
        """The fraction that the winner reaches of the roofline."""
        evidence = self.record.evidence
        if evidence is None or evidence.floor_us is None:
            return None
        return evidence.floor_us / self.record.median_us

    def age_days(self, now: datetime | None = None) -> int | None:
        """Whole days since the record was measured, None when its date does not read."""
        try:
            measured = datetime.fromisoformat(self.record.created_at)
        except ValueError:
            return None
        if measured.tzinfo is None:
            measured = measured.replace(tzinfo=timezone.utc)
        return ((now or datetime.now(timezone.utc)) - measured).days


def explain(record: Record, database: Path | None) -> Explanation:
    """The record with its evidence and environment, from the user's SQLite file or the shipped files.

    Raises:
        DatabaseError: the file cannot be read, or the evidence in it.
    """
    found = None if database is None else user_evidence(database, record)
    found = found or shipped_evidence(record)
    if found is None:
        return Explanation(record, None)
    evidence, environment = found
    return Explanation(replace(record, evidence=evidence), environment)
