"""What is worth tuning: what a user asks for, then what models ran without a record of their own."""

from __future__ import annotations

import contextlib
import errno
import glob
import re
import stat
import time
import uuid
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from autotune.families import registry
from autotune.prediction.finding import predictor_for
from autotune.records.misses import UNVERIFIED, Miss, read
from autotune.search.saving import saved_us
from autotune.search.stale import stale_problems
from autotune.store.fields import unix_s
from autotune.store.queue import Queue
from autotune.store.reading import shipped_files
from autotune.store.store import Store
from autotune.store.text import read_text
from autotune.values.device import Device, cpu_device, cuda_devices, find_device
from autotune.values.errors import AutotuneError, DeviceError
from autotune.values.layer import Problem
from autotune.values.record import SERVED, Environment, Record, sources_digest

ASKED = 1e12
"""Priority of what a user asks for: before all that models ran, which would have to save 11 days of work."""
RECHECK = -ASKED
"""Priority of a recheck, plus calls: behind all that tunes, what is called most first."""
STALE = 0.0
"""Priority of what a new autotune made stale: behind all that models ran."""
_CONFIRMED_S = 86_400.0
"""A record is not measured again so soon, whatever hosts say that have not pulled it yet."""

_Model = tuple[str, str, str]
"""Of a job: device, arch and source hash."""
_Calls = dict[tuple[Problem, str], int]
"""By problem and what answered it."""


def queue_misses(store: Store, file: Path) -> int:
    """Queue what the file notes, of every device model, and take it out of the file; how many jobs are new.

    The priority of a problem is its calls times the microseconds that a record is expected to save at each.
    Left out is what other kernel sources ran, and what has a record by now. What ran an unverified record is
    queued for a recheck, unless it was measured within a day. The file is put aside before it is read and
    deleted when the jobs are stored, so a kill loses nothing: at worst notes are read twice, by two processes
    or by the next, which changes no job.

    Raises:
        DatabaseError: the database cannot be read or written; the notes are kept.
        AutotuneError: the file cannot be put aside or read.
    """
    try:
        taken = {each: _size(each) for each in _take(file)}
        calls: dict[_Model, _Calls] = defaultdict(lambda: defaultdict(int))
        unverified: dict[_Model, _Calls] = defaultdict(lambda: defaultdict(int))
        for miss in _misses_of(taken):
            kind = unverified if miss.source == UNVERIFIED else calls
            kind[miss.device, miss.arch, miss.source_hash][miss.problem, miss.source] += miss.calls
        new = sum(_queue(store, model, counts) for model, counts in calls.items())
        new += sum(_queue_rechecks(store, model, counts) for model, counts in unverified.items())
        for each, size in taken.items():
            # Who had it open when it was put aside may have written since: then it is read again next time.
            if _size(each) == size:
                each.unlink(missing_ok=True)
    except OSError as error:
        raise AutotuneError(
            f"misses {file} cannot be taken ({error.strerror}); "
            "it must be a file, in a folder that the daemon's user may write"
        ) from error
    return new


def ask(store: Store, problems: Sequence[Problem], device: Device, priority: float) -> int:
    """Queue problems for a device model, here or elsewhere in a fleet; how many jobs are new.

    Raises:
        DeviceError: no family of the device can do a problem.
        DatabaseError: the database cannot be read or written.
    """
    for problem in problems:
        registry.default_config(problem, device)
    jobs = [(problem, priority) for problem in problems]
    return Queue(store).add(jobs, device.name, device.arch, sources_digest(_hashes(device.kind)))


def queue_stale(store: Store, device: Device) -> int:
    """Queue what a new autotune made stale of the device model's records; how many jobs are new.

    Raises:
        DatabaseError: the database cannot be read or written.
    """
    hashes = _hashes(device.kind)
    jobs = [(problem, STALE) for problem in stale_problems(store, device, hashes)]
    return Queue(store).add(jobs, device.name, device.arch, sources_digest(hashes))


def queue_unverified(store: Store, device: Device, environment: Environment) -> int:
    """Queue for a recheck what another driver or compiler measured or made; how many jobs are new.

    Raises:
        DatabaseError: the database cannot be read or written.
    """
    records = [record for record in store.records(device) if record.config.family in environment.sources]
    last = {record.problem: record for record in records if registry.is_current(record, device)}
    jobs = [(problem, RECHECK) for problem, record in last.items() if is_unverified(record, environment)]
    sources = sources_digest(environment.sources)
    return Queue(store).add(jobs, device.name, device.arch, sources, again=True)


def is_unverified(record: Record, environment: Environment) -> bool:
    """Whether another driver ran the record's kernel when it was timed, or another compiler made it."""
    then = record.environment
    return then is not None and (then.driver, then.compiler) != (environment.driver, environment.compiler)


def device_here(name: str) -> Device | None:
    """This machine's device called `auto`, `cpu`, `cuda` or `cuda:N`; None for a name that is a model's.

    Raises:
        DeviceError: there is no such device.
    """
    return find_device(name) if re.fullmatch(r"auto|cpu|cuda(:[0-9]+)?", name) else None


def models_named(store: Store, name: str) -> list[Device]:
    """The device models that are meant: that of `auto`, `cpu` or `cuda:N` here, or the database's by name.

    Raises:
        DeviceError: there is none.
        DatabaseError: the database cannot be read.
    """
    here = device_here(name)
    if here is not None:
        return [here]
    known = store.devices()
    named = [device for device in known if device.name == name]
    if not named:
        names = ", ".join(dict.fromkeys(repr(device.name) for device in known))
        names = names or "none until a sweep or daemon ran"
        raise DeviceError(f"device {name!r} is not auto, cpu, cuda:N or one of the database's: {names}")
    return named


def _take(file: Path) -> list[Path]:
    """Put the file aside, under a name of its own, beside what earlier processes left when they ended."""
    with contextlib.suppress(FileNotFoundError):  # there is none, or another daemon was faster
        if not stat.S_ISREG(file.lstat().st_mode):
            raise OSError(errno.EINVAL, "it is no file")
        file.rename(file.with_name(f"{file.name}.{uuid.uuid4().hex}"))
    return sorted(file.parent.glob(f"{glob.escape(file.name)}.*"))


def _size(file: Path) -> int:
    try:
        return file.lstat().st_size
    except FileNotFoundError:
        return 0


def _misses_of(files: Iterable[Path]) -> list[Miss]:
    current = {sources_digest(_hashes(kind)) for kind in ("cuda", "cpu")}
    misses = []
    for file in files:
        try:
            misses += [miss for miss in read(file) if miss.source_hash in current]
        except FileNotFoundError:
            continue  # another daemon has queued it
    return misses


def _queue(store: Store, model: _Model, calls: _Calls) -> int:
    name, arch, source_hash = model
    known = _records(store, arch)
    mine = [record for record in known if record.device == name]
    devices = {(each.name, each.arch): each for each in (*store.devices(), *cuda_devices(), cpu_device())}
    done = _done(mine, devices.values())
    device = devices.get((name, arch))
    predictor = None if device is None else predictor_for(device, store.database.path)
    savings: dict[Problem, float] = defaultdict(float)
    for (problem, source), count in calls.items():
        if problem not in done:
            savings[problem] += count * saved_us(problem, source, mine or known, predictor)
    jobs = [(problem, min(saving, ASKED / 2)) for problem, saving in savings.items()]
    return Queue(store).add(jobs, name, arch, source_hash)


def _queue_rechecks(store: Store, model: _Model, calls: _Calls) -> int:
    device, arch, _ = model
    since = time.time() - _CONFIRMED_S
    known = (record for record in _records(store, arch) if record.device == device)
    fresh = {record.problem for record in known if unix_s(record.created_at) > since}
    jobs = [
        (problem, min(RECHECK + count, RECHECK / 2))
        for (problem, _), count in calls.items()
        if problem not in fresh
    ]
    return Queue(store).add(jobs, *model, again=True)


def _done(records: Sequence[Record], devices: Iterable[Device]) -> set[Problem]:
    """The problems of today's records; whether a record is of today is known where its device is."""
    known = {(device.name, device.arch): device for device in devices}
    placed = ((record, known.get((record.device, record.arch))) for record in records)
    served = ((record, device) for record, device in placed if device and record.mode in SERVED)
    return {record.problem for record, device in served if registry.is_current(record, device)}


def _records(store: Store, arch: str) -> list[Record]:
    shipped = [record for path in shipped_files() for record in read_text(path, arch)[1]]
    stored = [record for device in store.devices() if device.arch == arch for record in store.records(device)]
    own = registry.families()
    return [record for record in shipped + stored if record.config.family in own]


def _hashes(kind: str) -> dict[str, str]:
    return {
        family.name: family.source_hash() for family in registry.families().values() if family.kind == kind
    }
