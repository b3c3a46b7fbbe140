"""The sets of times that can be compared, and what URLs call them."""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from autotune.bundles.format import decode
from autotune.families import registry
from autotune.store import compared
from autotune.store.compared import StoredBundle, TimedProblem
from autotune.store.pages import Pages, Sweep
from autotune.store.reading import shipped_files
from autotune.store.text import RecordFile
from autotune.values.device import Device
from autotune.values.errors import BundleError
from autotune.values.layer import Layer, Problem
from autotune.values.record import SERVED, Record
from autotune.web.query import device_key

_LONGEST_NAME = 100


@dataclass(frozen=True, slots=True)
class Choice:
    """A set that can be compared: where its layers and its times come from."""

    key: str
    kind: str
    title: str
    device: Device | None
    layers: Callable[[], Sequence[Layer]]
    times: Callable[[Sequence[Layer]], list[TimedProblem]]


def choices_of(pages: Pages) -> list[Choice]:
    """Every set, of a kind the newest first."""
    devices, sweeps = pages.devices(), pages.sweeps()
    return [
        *(_of_device(pages, device) for device in devices),
        *(_of_file(path) for path in shipped_files()),
        *(_of_bundle(pages, bundle, each) for bundle in compared.bundles(pages) for each in devices),
        *_of_pulled_sets(pages, devices),
        *_of_imports(pages, [sweep for sweep in sweeps if sweep.source is not None]),
        *_of_drivers(pages, [sweep for sweep in sweeps if sweep.source is None]),
        *(_of_sweep(pages, sweep) for sweep in sweeps if sweep.source is None),
    ]


def _of_device(pages: Pages, device: Device) -> Choice:
    def times(layers: Sequence[Layer]) -> list[TimedProblem]:
        families = registry.families()
        return [each for each in compared.recorded(pages, device, layers) if _family(each) in families]

    key = device_key(device)
    return Choice(
        f"device:{key}", "device", f"{key}, its records", device, lambda: pages.layers([device]), times
    )


def _family(timed: TimedProblem) -> str:
    return timed.config.partition(":")[0]


def _of_file(path: Path) -> Choice:
    file = RecordFile(path)

    def times(layers: Sequence[Layer]) -> list[TimedProblem]:
        return [_timed(record) for layer in layers for record in file.records(layer)]

    title = f"{path.stem}, shipped with autotune"
    return Choice(f"shipped:{path.stem}", "shipped", title, None, lambda: sorted(file.layers), times)


def _of_bundle(pages: Pages, bundle: StoredBundle, device: Device) -> Choice:
    def its() -> Mapping[Layer, list[TimedProblem]]:
        content = _Content(bundle.digest, bundle.name, lambda: compared.bundle_bytes(pages, bundle))
        return _bundled(content).get((device.name, device.arch), {})

    def times(layers: Sequence[Layer]) -> list[TimedProblem]:
        return [timed for layer in layers for timed in its().get(layer, ())]

    channels = f", {' and '.join(bundle.channels)}" if bundle.channels else ""
    title = f"{bundle.name}{channels}, {device.name}"
    key = f"bundle:{bundle.digest[:12]}:{device_key(device)}"
    return Choice(key, "bundle of a channel", title, device, lambda: sorted(its()), times)


def _of_pulled_sets(pages: Pages, devices: Sequence[Device]) -> Iterator[Choice]:
    found = compared.pulled_sets(pages, devices)
    for which, device in found:
        source = _short(which.bundle or which.origin)
        state = "in force" if which == found[0][0] else "before"
        yield Choice(
            f"pulled:{which.id}:{device_key(device)}",
            "pulled set",
            f"{source}, pulled {_when(which.pulled_at)}, set {which.name}, {state}, {device.name}",
            device,
            functools.partial(compared.layers_pulled, pages, which, device),
            functools.partial(compared.pulled, pages, which, device),
        )


def _of_imports(pages: Pages, imports: Sequence[Sweep]) -> Iterator[Choice]:
    """A file has a sweep for each environment; those of a device within a minute are one set."""
    groups: dict[tuple[Device, str], list[Sweep]] = defaultdict(list)
    for sweep in imports:
        title = f"{_short(sweep.source or '')}, imported {_when(sweep.started_at)}, {sweep.device.name}"
        groups[sweep.device, title].append(sweep)
    for (device, title), its in groups.items():
        yield Choice(
            f"import:{min(sweep.id for sweep in its)}",
            "import",
            title,
            device,
            functools.partial(compared.layers_imported, pages, its),
            functools.partial(compared.imported, pages, its),
        )


def _of_drivers(pages: Pages, sweeps: Sequence[Sweep]) -> Iterator[Choice]:
    groups: dict[tuple[Device, str, str], list[int]] = defaultdict(list)
    for sweep in sweeps:
        groups[sweep.device, sweep.driver, sweep.compiler].append(sweep.id)
    for (device, driver, compiler), ids in groups.items():
        title = f"{device.name}, driver {driver}, compiler {compiler}"
        yield _of_trials(pages, f"driver:{min(ids)}", "driver and compiler", title, device, ids)


def _of_sweep(pages: Pages, sweep: Sweep) -> Choice:
    title = f"sweep {sweep.id}, {_when(sweep.started_at)}, {sweep.device.name}, {sweep.status}"
    return _of_trials(pages, f"sweep:{sweep.id}", "sweep", title, sweep.device, [sweep.id])


def _of_trials(pages: Pages, key: str, kind: str, title: str, device: Device, ids: Sequence[int]) -> Choice:
    return Choice(
        key,
        kind,
        title,
        device,
        functools.partial(compared.layers_of_sweeps, pages, device, ids),
        functools.partial(compared.fastest, pages, ids),
    )


@dataclass(frozen=True, slots=True)
class _Content:
    """A bundle, which never changes, so that what `read` gets is asked for once."""

    digest: str
    name: str = field(compare=False)
    read: Callable[[], bytes] = field(compare=False)


@functools.lru_cache(maxsize=8)
def _bundled(content: _Content) -> Mapping[tuple[str, str], Mapping[Layer, list[TimedProblem]]]:
    """The times in a bundle, by device model and layer.

    Raises:
        BundleError: it is damaged.
    """
    bundle = decode(content.read(), f"bundle {content.name}")
    if bundle.digest != content.digest:
        raise BundleError(f"bundle {content.name} is not the one that was stored; promote it again")
    best: dict[tuple[str, str], dict[Problem, Record]] = defaultdict(dict)
    records = [entry.record for entry in bundle.contents.entries if entry.record.mode in SERVED]
    for record in sorted(records, key=lambda record: (-SERVED.index(record.mode), record.created_at)):
        best[record.device, record.arch][record.problem] = record
    found: dict[tuple[str, str], dict[Layer, list[TimedProblem]]] = {}
    for device, its in best.items():
        layers = found.setdefault(device, {})
        for problem, record in its.items():
            layers.setdefault(problem.layer, []).append(_timed(record))
    return found


def _timed(record: Record) -> TimedProblem:
    return TimedProblem(record.problem, str(record.config), record.median_us, record.low_us, record.high_us)


def _when(moment: str) -> str:
    return moment[:16].replace("T", " ")


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST_NAME else f"…{text[-_LONGEST_NAME:]}"
