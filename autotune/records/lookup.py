"""Look-up at model load: the best known config of a problem, and where it comes from.

Standard library only. No trouble with a source stops it: it is warned of once, and the next one answers.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

from autotune.families import registry
from autotune.records.energy import least_energy
from autotune.records.explanation import Explanation
from autotune.records.misses import Tally, miss_file
from autotune.records.sources import Sources
from autotune.store.fields import in_short
from autotune.values.config import Config
from autotune.values.device import Device, driver_of, find_device
from autotune.values.errors import ConfigError
from autotune.values.layer import BUCKETS, Layer, Problem, buckets_for
from autotune.values.paths import Location, database_url
from autotune.values.policy import Policy, policy_in_force
from autotune.values.record import Record, sources_digest

if TYPE_CHECKING:
    from autotune.families.invariant import Invariant
    from autotune.prediction.predictor import Prediction, Predictor

    _Find = Callable[[Problem], "Answer | None"]


@dataclass(frozen=True)
class Answer:
    """The config to run for a problem on a device.

    `source` is `exact` (a record of the user's database), `shipped` (a record that autotune carries),
    `predicted` (what a model of time chooses), `default`, or `policy` (what the policy asks for). `record` is
    what an `exact` or `shipped` config comes from, of this layer and device, of the problem's m or of a
    bucket that answers it; `median_us` and `default_us` are the record's. `prediction` is what a `predicted`
    config is expected to take. Each is None for other sources. `reason` says in one line why this source
    answered. `unverified` says why the record's time may not hold here, None when nothing speaks against it:
    a recheck is due, and the config is the best that is known.
    """

    problem: Problem
    device: str
    config: Config
    source: str
    median_us: float | None
    default_us: float | None
    record: Record | None
    reason: str
    prediction: Prediction | None = None
    unverified: str | None = None


class Lookup:
    """The answers to problems on a device, from the records that can serve it.

    A number of tokens has the answer of the smallest bucket >= m that has a record, up to the next power of
    two; then of the smallest that has a prediction; then that of the power of two. A finer record which
    autotune ships goes before the user's own coarse one. The order for a bucket: its record on this device
    model in the user's database, the one that autotune ships, what a fit of the device model predicts to be
    the fastest, the default config.

    A record is used only when the code of today makes its kernel and its config is valid for the problem on
    this device, and a fit only for families whose kernels and estimates are those that it was made with.

    All this is the policy `fast`. With `deterministic` only families that give the same bits at each run take
    part. With `efficient` a record answers with the config of its race that takes the least energy, where
    that was measured. With `batch_invariant` neither records nor fits answer: all configs of a layer add up
    its rows in one order.

    What is read of the user's database is bounded, however large it is: a layer's records are read when it is
    first asked for, the newest 64 of each problem on this device. Of each file that autotune ships, the lines
    of the layer are parsed. Rows and lines that do not read are left out, with one warning for the file.
    """

    def __init__(
        self,
        device: Device,
        db: Location | None = None,
        names: Collection[str] | None = None,
        policy: Policy = "fast",
    ) -> None:
        """Read what autotune ships; `db` (None: AUTOTUNE_DB or the user's own database) is read when asked.

        The records are those of autotune's own families, or of the families of these `names`.
        """
        self.device = device
        self.url, self.names, self.policy = database_url(db), names, policy
        families = registry.families_of(device, names)
        self._allowed = names
        if policy == "deterministic":
            self._allowed = [family.name for family in families if family.deterministic]
        self._misses = miss_file(db)
        self._hashes = {family.name: family.source_hash() for family in families}
        self._stale: dict[Record, str | None] = {}
        self._sources = Sources(device, db)
        self._own: dict[Layer, dict[int, list[tuple[str, Record]]]] = {}
        self._answers: dict[tuple[str, Layer, int], Answer | None] = {}
        self._predicted: dict[Layer, dict[int, Prediction]] = {}
        self._invariant: dict[Layer, Invariant] = {}

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

    def alternatives(self, answer: Answer) -> list[Answer]:
        """What the fit of a predicted answer would choose, the fastest first; nothing for other sources."""
        if answer.prediction is None or self._predictor is None:
            return []
        return [self._told(answer.problem, found) for found in self._predictor.ranked(answer.problem)]

    def forget(self) -> None:
        """Read the database anew for what is asked from now on."""
        self._sources = Sources(self.device, self.url)
        self._own, self._answers, self._stale, self._predicted = {}, {}, {}, {}
        self.__dict__.pop("_predictor", None)

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

    def fallback(self, problem: Problem) -> Config | None:
        """What runs where an answer's kernel cannot be made, None where nothing else keeps the policy."""
        if self.policy == "batch_invariant":
            return None
        return registry.default_config(problem, self.device, self._allowed)

    def _serving(self, layer: Layer, m: int) -> Answer:
        buckets = buckets_for(m)
        if self.policy == "batch_invariant":
            return self._of_one_order(Problem(layer, buckets[0]))
        asked: list[tuple[_Find, int]] = [
            *((self._recorded, bucket) for bucket in buckets),
            *((self._foretold, bucket) for bucket in buckets),
            (self._default, buckets[-1]),
        ]
        found = (self._once(find, layer, bucket) for find, bucket in asked)
        return next(answer for answer in found if answer is not None)

    def _once(self, find: _Find, layer: Layer, bucket: int) -> Answer | None:
        key = find.__name__, layer, bucket
        if key not in self._answers:
            self._answers[key] = find(Problem(layer, bucket))
        return self._answers[key]

    def _recorded(self, problem: Problem) -> Answer | None:
        """The answer of the problem's own records, None where it has none."""
        return self._measured(problem)[0]

    def _foretold(self, problem: Problem) -> Answer | None:
        """The answer of the device's fit, None where it has none."""
        layer, predictor = problem.layer, self._predictor
        if layer not in self._predicted:
            self._predicted[layer] = {} if predictor is None else predictor.best(layer, BUCKETS)
        found = self._predicted[layer].get(problem.m)
        return None if found is None else self._told(problem, found)

    def _told(self, problem: Problem, found: Prediction) -> Answer:
        why = self._measured(problem)[1]
        sure = f"8 of 10 such times lie from {found.low_us:.1f} to {found.high_us:.1f}"
        reason = f"{why}; {found.us:.1f} us expected, {sure}"
        return Answer(problem, self.device.name, found.config, "predicted", None, None, None, reason, found)

    @cached_property
    def _predictor(self) -> Predictor | None:
        """None where there is no fit for the device."""
        fit = self._sources.fit()
        if fit is None:
            return None
        from autotune.prediction.predictor import Predictor

        return Predictor(fit, self.device, self._allowed)

    def _default(self, problem: Problem) -> Answer:
        config = registry.default_config(problem, self.device, self._allowed)
        reason = f"{self._measured(problem)[1]}, and nothing predicts one"
        return Answer(problem, self.device.name, config, "default", None, None, None, reason)

    def _of_one_order(self, problem: Problem) -> Answer:
        """The answer of the policy `batch_invariant`."""
        layer = problem.layer
        if layer not in self._invariant:
            from autotune.families.invariant import invariant_configs

            self._invariant[layer] = invariant_configs(layer, self.device, self._allowed)
        found = self._invariant[layer]
        reason = (
            "gives a row the same bits with any number of others; such configs are estimated to take "
            f"{found.cost:.2f} times as long as the default ones, on average over the powers of two"
        )
        config = found.configs[problem.m]
        return Answer(problem, self.device.name, config, "policy", None, None, None, reason)

    def _measured(self, problem: Problem) -> tuple[Answer | None, str]:
        """The answer of the problem's own records on this device, or why there is none."""
        why: str | None = None
        for source, record in self._own_records(problem.layer).get(problem.m, ()):
            reason = self._unusable(record, problem)
            if reason is None:
                reason = f"measured {record.created_at} on this device"
                if record.origin is not None:
                    reason += f" model, pulled from {record.origin}"
                told = (record.median_us, record.default_us, record, reason)
                answer = Answer(problem, self.device.name, record.config, source, *told)
                answer = replace(answer, unverified=self._why_unverified(record))
                return self._efficient(answer) if self.policy == "efficient" else answer, reason
            why = why or reason
        return None, why or "no record of this problem"

    def _efficient(self, answer: Answer) -> Answer:
        """The answer with the config of the record's race that takes the least energy."""
        explained = self.explain(answer)
        evidence = None if explained is None else explained.record.evidence

        def fits(name: str) -> bool:
            try:
                return self._why_invalid(Config.parse(name), answer.problem) is None
            except ConfigError:
                return False

        config, reason = least_energy(answer.config, evidence, self.device, fits)
        answer = replace(answer, reason=f"{answer.reason}; {reason}")
        if config == answer.config or evidence is None:
            return answer
        return replace(answer, config=config, median_us=dict(evidence.runners_up).get(str(config)))

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

    def _mine(self, record: Record) -> bool:
        return record.device == self.device.name

    def _unusable(self, record: Record, problem: Problem) -> str | None:
        """Why the record's config must not run the problem, or None when it may."""
        try:
            stale = self._why_stale(record)
        except Exception as error:  # a stored config may have any tunables, with any values
            reason: str | None = in_short(error)
        else:
            if stale is not None:
                return stale
            reason = self._why_invalid(record.config, problem)
        return reason and f"the record's config {record.config} is not valid here: {reason}"

    def _why_invalid(self, config: Config, problem: Problem) -> str | None:
        """Why the config cannot run the problem here, whatever it is, or None when it can."""
        try:
            return registry.family_of(config).reject(config, problem, self.device)
        except Exception as error:
            return in_short(error)

    def _why_unverified(self, record: Record) -> str | None:
        """Why its time may be another one now. A daemon also sees to kernels of other compilers."""
        then = record.environment
        if then is None or then.driver == self._driver:
            return None
        return f"measured with {then.driver}, and here is {self._driver}"

    @cached_property
    def _driver(self) -> str:
        return driver_of(self.device)

    def _why_stale(self, record: Record) -> str | None:
        """Why the record is not current, or not of a family that is asked for; found out once."""
        if record not in self._stale:
            asked = record.config.family in (self._hashes if self._allowed is None else self._allowed)
            other = None if asked else "the record is of a family that is not asked for"
            self._stale[record] = registry.why_stale(record, self.device) or other
        return self._stale[record]


def lookup(
    layer: Layer,
    m: int = 1,
    device: str = "auto",
    db: Location | None = None,
    policy: str | None = None,
) -> Answer:
    """The config for `m` tokens of a layer on `device` (auto, cpu, cuda, cuda:N).

    `policy` is what to choose by, as of `Lookup`; by default that of AUTOTUNE_POLICY, or `fast`. Reads the
    database at each call; for many layers make one `Lookup`.

    Raises:
        DeviceError: there is no such device, or no family of it can do the problem.
        ConfigError: there is no such policy.
    """
    chosen = policy_in_force(policy)
    return Lookup(find_device(device), db, policy=chosen).answer(Problem(layer, m))
