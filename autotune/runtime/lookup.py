"""Look-up at model load: the best known config of a problem, and where it comes from.

Standard library only. No trouble with a database stops it: it is warned of once, and the next source answers.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from math import log2

from autotune.config import Config
from autotune.device import Device, find_device
from autotune.errors import AutotuneError, ConfigError, DatabaseError
from autotune.kernels import registry
from autotune.kernels.compiler import cached_by
from autotune.layer import Layer, Problem, bucket_of
from autotune.paths import database_url, sqlite_path
from autotune.record import Record, sources_digest
from autotune.runtime.explain import Explanation, explain
from autotune.runtime.misses import Tally, miss_file
from autotune.runtime.stored import shipped_files, user_binary, user_records
from autotune.store.exchange import read_text

NEAR_OCTAVES = 2.0
"""How far a near record may be, in m, and in n and k together: a factor of four."""

_warned: set[str] = set()


@dataclass(frozen=True)
class Answer:
    """The config to run for a problem on a device.

    `source` is `exact` (a record of the user's database), `shipped` (a record that autotune carries),
    `near` (the config of a record of another problem or device) or `default`. `record` is what the config
    comes from, None for `default`. `median_us` and `default_us` are the record's, None where nothing was
    measured for this problem's bucket on this device. `reason` says in one line why this source answered.
    """

    problem: Problem
    device: str
    config: Config
    source: str
    median_us: float | None
    default_us: float | None
    record: Record | None
    reason: str


class Lookup:
    """Every record that can serve a device, read once, and the answers to problems on it.

    The order: the record of the problem's bucket on this device model in the user's database, the one that
    autotune ships, the nearest record, the default config. Near is, in this order:

    1. the same layer on this device at another bucket, the smallest |log2| of the ratio of buckets first,
       the larger bucket of two;
    2. the same problem on another device of the arch, the newest first;
    3. another layer of the same dtype, group size and zero_point, the smallest |log2| of the ratios of n and
       k, summed, first; of a layer its nearest bucket, and this device, first.

    A near record is at most NEAR_OCTAVES away, in m and in n and k: beyond, the default config knows more of
    the problem. A record is used only when the code of today makes its kernel and its config is valid for the
    problem on this device.
    """

    def __init__(self, device: Device, db: str | None = None, names: Collection[str] | None = None) -> None:
        """Read the records of the device's arch from `db` (None: AUTOTUNE_DB or the user's own database).

        They are those of autotune's own families, or of the families of these `names`.
        """
        self.device = device
        self.url, self.names = database_url(db), names
        self._names = names
        self._path = sqlite_path(database_url(db))
        self._misses = miss_file(db)
        self._hashes = {family.name: family.source_hash() for family in registry.families_of(device, names)}
        self._exact: dict[Problem, dict[str, Record]] = {}
        self._stale: dict[Problem, Record] = {}
        self._kinds: dict[tuple[str, int, bool], dict[Layer, list[Record]]] = {}
        self._answers: dict[tuple[Layer, int], Answer] = {}
        self._compilers: set[str] = set()
        if self._path is None:
            scheme = database_url(db).partition("://")[0]
            _warn(
                f"database {scheme}://...: model load reads a local SQLite file only; use --db with its path"
            )
        self._add("shipped", self._shipped())
        self._add("exact", self._user())

    def answer(self, problem: Problem) -> Answer:
        """The config for the problem, by the bucket of its m.

        Raises:
            DeviceError: no family of the device can do the problem.
        """
        bucket = bucket_of(problem.m)
        answer = self._answers.get((problem.layer, bucket))
        if answer is None:
            answer = self._answers[problem.layer, bucket] = self._answer(Problem(problem.layer, bucket))
        return answer if problem.m == bucket else replace(answer, problem=problem)

    def explain(self, answer: Answer) -> Explanation | None:
        """The evidence of the answer's record, which no other look-up reads; None without a record."""
        if answer.record is None:
            return None
        try:
            return explain(answer.record, self._path)
        except DatabaseError as error:
            _warn(str(error))
            return Explanation(answer.record, None)

    def binary(self, unit_key: str) -> bytes | None:
        """The compiled kernel of the unit, None when there is none to be had without a compiler.

        It is that of the user's database, else what a compiler that measured shipped records once made of it.
        """
        made = (cached_by(version, unit_key) for version in self._compilers)
        return self._user_binary(unit_key) or next(filter(None, made), None)

    def tally(self, answers: Sequence[Answer]) -> Tally:
        """Counts the calls of a layer, given its answer for each bucket."""
        return Tally(self._misses, self.device.arch, sources_digest(self._hashes), answers)

    def _user_binary(self, unit_key: str) -> bytes | None:
        if self._path is None:
            return None
        try:
            return user_binary(self._path, unit_key)
        except DatabaseError as error:
            _warn(str(error))
            return None

    def _user(self) -> list[Record]:
        if self._path is None:
            return []
        try:
            return user_records(self._path, self.device.arch)
        except AutotuneError as error:
            _warn(str(error))
            return []

    def _shipped(self) -> list[Record]:
        records: list[Record] = []
        for path in shipped_files():
            try:
                environment, found = read_text(path, self.device.arch)
            except DatabaseError as error:
                _warn(str(error))
                continue
            if found:
                self._compilers.add(environment.compiler)
            records += found
        return records

    def _add(self, source: str, records: list[Record]) -> None:
        """Index records, the oldest first; of equal problems the last one counts."""
        for record in records:
            if self._names is not None and record.config.family not in self._names:
                continue
            mine = record.device == self.device.name
            if record.config.family not in self._hashes or not registry.is_current(record, self.device):
                if mine:
                    self._stale[record.problem] = record
                continue
            if mine:
                self._exact.setdefault(record.problem, {})[source] = record
            layers = self._kinds.setdefault(_kind(record.problem.layer), {})
            layers.setdefault(record.problem.layer, []).append(record)

    def _answer(self, problem: Problem) -> Answer:
        why = self._why_not_exact(problem)
        exact = self._exact.get(problem, {})
        for source in ("exact", "shipped"):
            record = exact.get(source)
            if record is None:
                continue
            invalid = self._invalid(record.config, problem)
            if invalid is None:
                reason = f"measured {record.created_at} on this device"
                times = (record.median_us, record.default_us)
                return Answer(problem, self.device.name, record.config, source, *times, record, reason)
            why = f"the record's config {record.config} is not valid here: {invalid}"
        for record in self._near(problem):
            if self._invalid(record.config, problem) is None:
                reason = f"{why}; the nearest record is of {record.problem} on {record.device}"
                return Answer(problem, self.device.name, record.config, "near", None, None, record, reason)
        config = registry.default_config(problem, self.device, self._names)
        return Answer(
            problem, self.device.name, config, "default", None, None, None, f"{why}, and none is near"
        )

    def _near(self, problem: Problem) -> Iterator[Record]:
        """Records by the rule of the class, nearest first."""
        layer = problem.layer
        layers = self._kinds.get(_kind(layer), {})

        def by_bucket(record: Record) -> tuple[float, int, bool]:
            return (_octaves(record.problem.m, problem.m), -record.problem.m, not self._mine(record))

        same = [record for record in reversed(layers.get(layer, [])) if _is_near(record, problem)]
        yield from sorted(filter(self._mine, same), key=by_bucket)
        yield from (record for record in same if record.problem == problem and not self._mine(record))
        distances = sorted((_distance(other, layer), other) for other in layers)
        for distance, other in distances:
            if distance > NEAR_OCTAVES:
                return
            near = (record for record in reversed(layers[other]) if _is_near(record, problem))
            yield from sorted(near, key=by_bucket)

    def _mine(self, record: Record) -> bool:
        return record.device == self.device.name

    def _invalid(self, config: Config, problem: Problem) -> str | None:
        try:
            return registry.family_of(config).reject(config, problem, self.device)
        except ConfigError as error:
            return str(error)

    def _why_not_exact(self, problem: Problem) -> str:
        stale = self._stale.get(problem)
        if stale is None:
            return "no record of this problem"
        return registry.why_stale(stale, self.device) or "the record is of a family that is not asked for"


def lookup(layer: Layer, m: int = 1, device: str = "auto", db: str | None = None) -> Answer:
    """The config for `m` tokens of a layer on `device` (auto, cpu, cuda, cuda:N).

    Reads the database at each call; for many layers make one `Lookup`.

    Raises:
        DeviceError: there is no such device, or no family of it can do the problem.
    """
    return Lookup(find_device(device), db).answer(Problem(layer, m))


def _kind(layer: Layer) -> tuple[str, int, bool]:
    """What a near layer has in common; one group of all k is alike for every k."""
    return layer.dtype, -1 if layer.groups == 1 else layer.group_size, layer.zero_point


def _octaves(a: int, b: int) -> float:
    return abs(log2(a / b))


def _distance(a: Layer, b: Layer) -> float:
    return _octaves(a.n, b.n) + _octaves(a.k, b.k)


def _is_near(record: Record, problem: Problem) -> bool:
    return _octaves(record.problem.m, problem.m) <= NEAR_OCTAVES


def _warn(message: str) -> None:
    """Warn once in the life of the process, whatever filters are set."""
    if message not in _warned:
        _warned.add(message)
        warnings.warn(f"{message} (going on without it)", stacklevel=2)
