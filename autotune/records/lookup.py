"""Look-up at model load: the best known config of a problem, and where it comes from.

Standard library only. No trouble with a source stops it: it is warned of once, and the next one answers.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from autotune.families import registry
from autotune.records.explanation import Explanation
from autotune.records.misses import Tally, miss_file
from autotune.records.sources import Sources
from autotune.store.rows import in_short
from autotune.values.config import Config
from autotune.values.device import Device, driver_of, find_device
from autotune.values.layer import BUCKETS, Layer, Problem, buckets_for
from autotune.values.near import is_near, octaves
from autotune.values.paths import Location, database_url
from autotune.values.record import Record, sources_digest


@dataclass(frozen=True)
class Answer:
    """The config to run for a problem on a device.

    `source` is `exact` (a record of the user's database), `shipped` (a record that autotune carries),
    `near` (the config of a record of another problem or device) or `default`. `record` is what the config
    comes from, None for `default`; of `exact` and `shipped` it is one of this layer and device, of the
    problem's m or of a bucket that answers it. `median_us` and `default_us` are then the record's, else None.
    `reason` says in one line why this source answered. `unverified` says why the record's time may not hold
    here, None when nothing speaks against it: a recheck is due, and the config is the best that is known.
    """

    problem: Problem
    device: str
    config: Config
    source: str
    median_us: float | None
    default_us: float | None
    record: Record | None
    reason: str
    unverified: str | None = None


class Lookup:
    """The answers to problems on a device, from the records that can serve it.

    A number of tokens has the answer of the smallest bucket >= m that has one, of the largest above that. A
    coarse bucket always has one, a finer bucket where it has a record, so that a finer record which autotune
    ships goes before the user's own coarse one. The order for a bucket: its record on this device model in
    the user's database, the one that autotune ships, and for a coarse bucket the nearest record, the default
    config. Near is, in this order:

    1. the same layer on this device at another bucket, the smallest |log2| of the ratio of buckets first,
       the larger bucket of two;
    2. the same problem on another device of the arch, the newest first;
    3. another layer of the same dtype, group size and zero_point, the smallest |log2| of the ratios of n and
       k, summed, first; of a layer its nearest bucket, and this device, first.

    A near record is at most NEAR_OCTAVES away, in m and in n and k: beyond, the default config knows more of
    the problem. A record is used only when the code of today makes its kernel and its config is valid for the
    problem on this device.

    What is read of the user's database is bounded, however large it is. A layer's records are read when it
    is first asked for: the newest 64 of each problem on this device, and of the layer on each of 16 others.
    Other layers are read if none of these answers: the 4 nearest of those that the 2,048 entries of the index
    on each side of its n name, and about 500 records of them. Of each file that autotune ships, the lines of
    the layer are parsed, or those of the 4 nearest layers. Rows and lines that do not read are left out, with
    one warning for the file.
    """

    def __init__(
        self, device: Device, db: Location | None = None, names: Collection[str] | None = None
    ) -> None:
        """Read what autotune ships; `db` (None: AUTOTUNE_DB or the user's own database) is read when asked.

        The records are those of autotune's own families, or of the families of these `names`.
        """
        self.device = device
        self.url, self.names = database_url(db), names
        self._misses = miss_file(db)
        self._hashes = {family.name: family.source_hash() for family in registry.families_of(device, names)}
        self._stale: dict[Record, str | None] = {}
        self._sources = Sources(device, db)
        self._own: dict[Layer, dict[int, list[tuple[str, Record]]]] = {}
        self._answers: dict[tuple[Layer, int], Answer | None] = {}

    def answer(self, problem: Problem) -> Answer:
        """The config for the problem, by the bucket that answers its m.

        Raises:
            DeviceError: no family of the device can do the problem.
        """
        answer = self._serving(problem.layer, problem.m)
        return answer if problem == answer.problem else replace(answer, problem=problem)

    def answers(self, layer: Layer, tokens: Iterable[int] = BUCKETS) -> tuple[Answer, ...]:
        """The different answers to these numbers of tokens, by m; each is for the bucket that it is of.

        Raises:
            DeviceError: no family of the device can do a problem.
        """
        found = (self._serving(layer, m) for m in sorted(tokens))
        return tuple({answer.problem.m: answer for answer in found}.values())

    def forget(self) -> None:
        """Read the database anew for what is asked from now on."""
        self._sources = Sources(self.device, self.url)
        self._own, self._answers, self._stale = {}, {}, {}

    def explain(self, answer: Answer) -> Explanation | None:
        """The evidence of the answer's record, which no other look-up reads; None without a record."""
        return None if answer.record is None else self._sources.explain(answer.record)

    def binary(self, unit_key: str) -> bytes | None:
        """The compiled kernel of the unit, None when there is none to be had without a compiler.

        It is that of the user's database, else what a compiler that measured shipped records once made of it.
        """
        return self._sources.binary(unit_key)

    def tally(self, answers: Sequence[Answer]) -> Tally:
        """Counts the calls of a layer, given its answers."""
        return Tally(self._misses, self.device.arch, sources_digest(self._hashes), answers)

    def _serving(self, layer: Layer, m: int) -> Answer:
        *finer, coarse = buckets_for(m)
        found = (self._finer(layer, bucket) for bucket in finer)
        return next(filter(None, found), None) or self._coarse(layer, coarse)

    def _finer(self, layer: Layer, bucket: int) -> Answer | None:
        """The answer of the bucket's own records, None where it has none."""
        if (layer, bucket) not in self._answers:
            self._answers[layer, bucket] = self._measured(Problem(layer, bucket))[0]
        return self._answers[layer, bucket]

    def _coarse(self, layer: Layer, bucket: int) -> Answer:
        answer = self._answers.get((layer, bucket))
        if answer is None:
            answer = self._answers[layer, bucket] = self._answer(Problem(layer, bucket))
        return answer

    def _answer(self, problem: Problem) -> Answer:
        answer, why = self._measured(problem)
        if answer is not None:
            return answer
        for record in self._near(problem):
            if self._unusable(record, problem) is None:
                reason = f"{why}; the nearest record is of {record.problem} on {record.device}"
                return Answer(problem, self.device.name, record.config, "near", None, None, record, reason)
        config = registry.default_config(problem, self.device, self.names)
        reason = f"{why}, and none is near"
        return Answer(problem, self.device.name, config, "default", None, None, None, reason)

    def _measured(self, problem: Problem) -> tuple[Answer | None, str]:
        """The answer of the problem's own records on this device, or why there is none."""
        why: str | None = None
        for source, record in self._own_records(problem.layer).get(problem.m, ()):
            reason = self._unusable(record, problem)
            if reason is None:
                reason = f"measured {record.created_at} on this device"
                if record.origin is not None:
                    reason += f" model, pulled from {record.origin}"
                told = (record.median_us, record.default_us, record, reason, self._why_unverified(record))
                return Answer(problem, self.device.name, record.config, source, *told), reason
            why = why or reason
        return None, why or "no record of this problem"

    def _own_records(self, layer: Layer) -> dict[int, list[tuple[str, Record]]]:
        """The layer's records on this device with their source, by m; of each m by the order of sources."""
        if layer not in self._own:
            found: dict[int, list[tuple[str, Record]]] = {}
            for source, records in (("exact", self._sources.stored), ("shipped", self._sources.shipped)):
                for record in filter(self._mine, records(layer)):
                    if record.config.family in self._hashes:
                        found.setdefault(record.problem.m, []).append((source, record))
            self._own[layer] = found
        return self._own[layer]

    def _near(self, problem: Problem) -> Iterator[Record]:
        """Records by the rule of the class, nearest first."""
        layer = problem.layer

        def by_bucket(record: Record) -> tuple[float, int, bool]:
            return (octaves(record.problem.m, problem.m), -record.problem.m, not self._mine(record))

        own = [*self._sources.stored(layer), *self._sources.shipped(layer)]
        same = [record for record in own if is_near(record.problem, problem)]
        yield from sorted(filter(self._mine, same), key=by_bucket)
        yield from (record for record in same if record.problem == problem and not self._mine(record))
        for records in self._sources.others(layer):
            near = (record for record in records if is_near(record.problem, problem))
            yield from sorted(near, key=by_bucket)

    def _mine(self, record: Record) -> bool:
        return record.device == self.device.name

    def _unusable(self, record: Record, problem: Problem) -> str | None:
        """Why the record's config must not run the problem, or None when it may."""
        try:
            stale = self._why_stale(record)
            reason = stale or registry.family_of(record.config).reject(record.config, problem, self.device)
        except Exception as error:  # a stored config may have any tunables, with any values
            return f"the record's config {record.config} is not valid here: {in_short(error)}"
        return stale or (reason and f"the record's config {record.config} is not valid here: {reason}")

    def _why_unverified(self, record: Record) -> str | None:
        """Why its time may be another one now. A daemon also sees to kernels of other compilers."""
        then = record.environment
        if then is None or then.driver == self._driver:
            return None
        return f"measured with {then.driver}, and here is {self._driver}"

    @functools.cached_property
    def _driver(self) -> str:
        return driver_of(self.device)

    def _why_stale(self, record: Record) -> str | None:
        """Why the record is not current, or not of a family that is asked for; found out once."""
        if record not in self._stale:
            asked = record.config.family in self._hashes
            other = None if asked else "the record is of a family that is not asked for"
            self._stale[record] = registry.why_stale(record, self.device) or other
        return self._stale[record]


def lookup(layer: Layer, m: int = 1, device: str = "auto", db: Location | None = None) -> Answer:
    """The config for `m` tokens of a layer on `device` (auto, cpu, cuda, cuda:N).

    Reads the database at each call; for many layers make one `Lookup`.

    Raises:
        DeviceError: there is no such device, or no family of it can do the problem.
    """
    return Lookup(find_device(device), db).answer(Problem(layer, m))
