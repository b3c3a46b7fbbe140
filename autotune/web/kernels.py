"""Kernels: which family and which values of its tunables win where, what was tried, and what failed."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from autotune.store.pages import WINDOW, Pages, Trouble
from autotune.values.config import Config
from autotune.values.errors import ConfigError
from autotune.values.layer import COARSE, bucket_of
from autotune.web.query import Query, chosen_devices, device_key
from autotune.web.tables import columns

if TYPE_CHECKING:
    from autotune.web.site import Site

STATUSES = ("ok", "pruned", "failed", "wrong")
_TABLES = {
    "space": columns(
        "family", "#tried", "#timed to the end", "#lost to pruning", "#failed", "#wrong", "#records"
    ),
    "troubles": columns("status", "#trials", "reason", "one of them"),
}
_LEVELS = 8


@dataclass(frozen=True, slots=True)
class Share:
    """How often something won for a range of tokens; `level` is its colour."""

    wins: int
    of: int

    @property
    def level(self) -> int:
        """0 where it never won, 8 where it always did."""
        return 0 if not self.wins else max(1, round(_LEVELS * self.wins / self.of))

    @property
    def percent(self) -> int:
        """The share in whole percents."""
        return round(100 * self.wins / self.of) if self.of else 0


@dataclass(frozen=True, slots=True)
class Tunable:
    """A tunable of a family: for each value where it wins, and what became of the trials that had it."""

    name: str
    values: Mapping[int, Sequence[Share]]
    tried: Mapping[int, Mapping[str, int]]


@dataclass(frozen=True, slots=True)
class FamilyShare:
    """A family: where it wins, what became of its trials, and its tunables by the `columns` where it does."""

    name: str
    wins: int
    shares: Sequence[Share]
    columns: Sequence[int]
    tried: Mapping[str, int]
    tunables: Sequence[Tunable]


def view(site: Site, pages: Pages, query: Query) -> dict[str, Any]:  # noqa: ARG001
    """What the template needs."""
    devices, chosen = chosen_devices(pages, query)
    if not chosen:
        return {"devices": [], "kernels": [], "columns": [], "troubles": [], "tables": _TABLES}
    device = chosen[0]
    wins, tried = _wins(pages.wins(device)), _tried(pages.outcomes(device))
    columns = [m for m in COARSE if any(each == m for _, each in wins)]
    total: Counter[int] = Counter()
    for (_, m), count in wins.items():
        total[m] += count
    names = sorted({config.family for config, _ in wins} | {config.family for config in tried})
    kernels = [_kernel(name, columns, wins, tried, total) for name in names]
    return {
        "tables": _TABLES,
        "devices": [(device_key(each), each == device) for each in devices],
        "key": device_key(device),
        "columns": columns,
        "kernels": sorted(kernels, key=lambda kernel: -kernel.wins),
        "records": sum(total.values()),
        "trials": sum(sum(each.values()) for each in tried.values()),
        "troubles": _reasons(pages.troubles(device)),
        "statuses": STATUSES,
        "window": WINDOW,
    }


def _wins(found: Sequence[tuple[str, int, int]]) -> Counter[tuple[Config, int]]:
    """Records by config and coarse bucket; a finer bucket counts with the coarse one above it."""
    wins: Counter[tuple[Config, int]] = Counter()
    for text, m, count in found:
        config = _config(text)
        if config is not None:
            wins[config, next(each for each in COARSE if each >= bucket_of(m))] += count
    return wins


def _tried(found: Sequence[tuple[str, str, int]]) -> dict[Config, Counter[str]]:
    tried: dict[Config, Counter[str]] = defaultdict(Counter)
    for text, status, count in found:
        config = _config(text)
        if config is not None:
            tried[config][status] += count
    return tried


def _config(text: str) -> Config | None:
    try:
        return Config.parse(text)
    except ConfigError:
        return None


def _kernel(
    name: str,
    columns: Sequence[int],
    wins: Counter[tuple[Config, int]],
    tried: Mapping[Config, Counter[str]],
    total: Counter[int],
) -> FamilyShare:
    mine: Counter[int] = Counter()
    by_value: dict[str, dict[int, Counter[int]]] = defaultdict(lambda: defaultdict(Counter))
    fates: dict[str, dict[int, Counter[str]]] = defaultdict(lambda: defaultdict(Counter))
    became: Counter[str] = Counter()
    for (config, m), count in wins.items():
        if config.family == name:
            mine[m] += count
            for tunable, value in config.values:
                by_value[tunable][value][m] += count
    for config, statuses in tried.items():
        if config.family == name:
            became.update(statuses)
            for tunable, value in config.values:
                fates[tunable][value].update(statuses)
    own = [m for m in columns if mine[m]]
    tunables = [
        _tunable(each, own, by_value[each], fates[each], mine)
        for each in dict.fromkeys([*by_value, *fates])
        if len({*by_value[each], *fates[each]}) > 1  # one that has a single value decides nothing
    ]
    shares = [Share(mine[m], total[m]) for m in columns]
    return FamilyShare(name, sum(mine.values()), shares, own, became, tunables)


def _tunable(
    name: str,
    columns: Sequence[int],
    won: Mapping[int, Counter[int]],
    fates: Mapping[int, Counter[str]],
    mine: Counter[int],
) -> Tunable:
    values = sorted({*won, *fates})
    none: Counter[int] = Counter()
    shares = {value: [Share(won.get(value, none)[m], mine[m]) for m in columns] for value in values}
    return Tunable(name, shares, {value: fates.get(value, Counter()) for value in values})


def _reasons(troubles: Sequence[Trouble]) -> list[tuple[Trouble, int]]:
    """One of each family, status and first line of the reason, with how many there are."""
    found: dict[tuple[str, str, str], list[Trouble]] = defaultdict(list)
    for trouble in troubles:
        first = trouble.error.strip().partition("\n")[0][:120]
        found[trouble.config.partition(":")[0], trouble.status, first].append(trouble)
    return sorted(((each[0], len(each)) for each in found.values()), key=lambda pair: -pair[1])
