"""`autotune doctor`: what is here, what is missing, and what to do about it."""

from __future__ import annotations

import importlib
import importlib.util
import json
import runpy
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import click

from autotune import __version__
from autotune.cli.options import database_option
from autotune.console.text import table
from autotune.values.counts import counted
from autotune.values.errors import AutotuneError, DatabaseError

if TYPE_CHECKING:
    from autotune.store.store import Store
    from autotune.values.record import Record

_OLDEST_ARCH = 80


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked for; `remedy` says what to do when `status` is not `ok`."""

    name: str
    status: str
    detail: str
    remedy: str = ""


def _ok(name: str, detail: str) -> Check:
    return Check(name, "ok", detail)


def _missing(name: str, detail: str, remedy: str) -> Check:
    return Check(name, "missing", detail, remedy)


def _broken(name: str, detail: str, remedy: str) -> Check:
    return Check(name, "broken", detail, remedy)


@click.command(epilog="\b\nExamples:\n  autotune doctor\n  autotune doctor --json")
@database_option
@click.option("--json", "as_json", is_flag=True, help="One list of objects.")
def command(db: str | None, as_json: bool) -> None:
    """Show what is here and what is missing.

    Looks for devices, compiler, extension, torch and database, and says what to do about what is missing.
    Exits 1 when nothing can run at all, or when something is broken.
    """
    checks = [_ok("autotune", f"{__version__} on Python {sys.version.split()[0]}")]
    extension = _extension()
    checks.append(extension)
    if extension.status == "ok":
        for look in _LOOKS:
            checks += look()
        checks += _database(db)
    if as_json:
        click.echo(json.dumps([asdict(check) for check in checks], indent=2))
    else:
        click.echo(
            table(("check", "status", "found"), [(each.name, each.status, each.detail) for each in checks])
        )
        for check in checks:
            if check.remedy:
                click.echo(f"{check.name}: {check.remedy}", err=True)
    needed = {"extension", "torch"}
    if any(check.status != "ok" for check in checks if check.name in needed):
        raise AutotuneError("nothing can run here; see what is missing above")
    broken = [check.name for check in checks if check.status == "broken"]
    if broken:
        raise AutotuneError(f"{' and '.join(broken)}: broken, see above")


def _extension() -> Check:
    try:
        module = importlib.import_module("autotune._C")
    except ImportError as error:
        return _missing(
            "extension", str(error), "build it: pip install . in the checkout, or pip install autotune-int4"
        )
    return _ok("extension", str(module.__file__))


def _devices() -> Iterator[Check]:
    from autotune import _C
    from autotune.bench.monitor import unwatched
    from autotune.values.device import cpu_device, cuda_devices

    cpu = cpu_device()
    yield _ok("cpu", f"{cpu.name}, {cpu.arch}, {_size(cpu.memory_bytes)}, last cache {_size(cpu.l2_bytes)}")
    gpus = cuda_devices()
    if not gpus:
        yield _missing(
            "gpu",
            _C.cuda_unavailable_reason(),
            "only the CPU kernel runs here; for CUDA install NVIDIA's driver",
        )
        return
    for gpu in gpus:
        detail = f"{gpu.name}, {gpu.arch}, {_size(gpu.memory_bytes)}, L2 {_size(gpu.l2_bytes)}"
        if int(gpu.arch.removeprefix("sm_")) < _OLDEST_ARCH:
            yield _missing(gpu.torch_name, detail, f"the CUDA kernels need sm_{_OLDEST_ARCH} or later")
        else:
            yield _ok(gpu.torch_name, detail)
            reason = unwatched(gpu)
            if reason is not None:
                yield _missing(f"watch on {gpu.torch_name}", reason, "tune when nobody else computes there")
    yield _ok("driver", f"CUDA {_C.cuda_driver_version()}")


def _compiler() -> Iterator[Check]:
    from autotune.jit import compiler
    from autotune.values.errors import CompileError
    from autotune.values.paths import cubin_cache

    try:
        yield _ok("compiler", compiler.compiler_version())
    except CompileError as error:
        yield _missing("compiler", "no NVRTC and no nvcc", f"only a sweep on a GPU needs it: {error}")
    cache = cubin_cache()
    kernels = list(cache.glob("*")) if cache.is_dir() else []
    size = sum(path.stat().st_size for path in kernels)
    yield _ok("kernel cache", f"{cache}, {counted(len(kernels), 'kernel')}, {_size(size)}")


def _torch() -> Iterator[Check]:
    """What torch was built for, read from its files: importing it takes seconds."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        yield _missing("torch", "not installed", "pip install torch")
        return
    from autotune import _C

    build = runpy.run_path(str(Path(spec.origin).with_name("version.py")))
    cuda = f"CUDA {build['cuda']}" if build["cuda"] else "no CUDA"
    yield _ok("torch", f"{build['__version__']}, {cuda}")
    driver = _C.cuda_driver_version()
    if driver is not None and (not build["cuda"] or _major(build["cuda"]) > _major(driver)):
        yield _missing(
            "torch on the GPU",
            f"built for {cuda}, the driver runs CUDA {driver}",
            f"install a build of torch for CUDA {_major(driver)}",
        )


def _major(version: str) -> int:
    return int(version.partition(".")[0])


def _shipped() -> Iterator[Check]:
    from autotune.families.registry import is_current
    from autotune.store.reading import shipped_files
    from autotune.store.text import read_text
    from autotune.values.device import find_device

    device = find_device()
    records: list[Record] = []
    bad: list[str] = []
    for path in shipped_files():
        try:
            found = read_text(path, device.arch, bad)[1]
        except DatabaseError as error:
            bad.append(str(error))
            continue
        records += found
        if any(after.problem < before.problem for before, after in pairwise(found)):
            bad.append(f"{path}: its lines are not sorted, and look-up misses some")
    if bad:
        yield _broken(
            "shipped records",
            f"{counted(len(bad), 'damaged line')}; the first: {bad[0]}",
            "reinstall autotune",
        )
        return
    current = [record for record in records if is_current(record, device)]
    mine = sum(record.device == device.name for record in current)
    detail = f"{mine} for {device.name}, {len(current)} for {device.arch}"
    if len(current) < len(records):
        detail += f", {len(records) - len(current)} stale"
    yield (
        _ok("shipped records", detail)
        if mine
        else _missing("shipped records", detail, "tune this device: autotune sweep --shapes llama7b")
    )


_LOOKS: tuple[Callable[[], Iterator[Check]], ...] = (_devices, _compiler, _torch, _shipped)


def _database(db: str | None) -> Iterator[Check]:
    from autotune.store.database import Database
    from autotune.store.store import Store
    from autotune.store.trouble import known_revisions

    # A schema of another autotune, a lock or a server that is away damages nothing.
    harmless = True
    try:
        database = Database(db)
        harmless = database.path is None
        revision = database.revision()
        if revision is None:
            remedy = "the first sweep creates it: autotune sweep --shapes llama7b"
            yield _missing("database", f"{database.name} is not there", remedy)
            return
        harmless = harmless or revision != known_revisions()[-1]
        database.check_pages()
        with Store.open(db) as store:
            count = len(store.records())
            stale, pulled = list(_stale(store)), list(_pulled(store))
    except AutotuneError as error:
        sound = harmless or "locked by another process" in str(error)
        remedy = "until then models load with shipped records and default configs"
        if "older than" in str(error):
            remedy = "until then models read it as it is"
        yield (_missing if sound else _broken)("database", str(error), remedy)
        return
    yield _ok("database", f"{database.name}, schema revision {revision}, {counted(count, 'record')}")
    yield from pulled
    yield from stale


def _pulled(store: Store) -> Iterator[Check]:
    from autotune.store.pulled import count_in_force, sets

    newest = next((each for each in sets(store) if not each.rolled_back), None)
    if newest is not None:
        count = counted(count_in_force(store), "record")
        yield _ok("pulled", f"set {newest.name}, {count}, the last from {newest.origin}")


def _stale(store: Store) -> Iterator[Check]:
    from autotune.families.registry import families
    from autotune.search.stale import stale_problems
    from autotune.values.device import cpu_device, cuda_devices

    models = {device.name: device for device in (*reversed(cuda_devices()), cpu_device())}
    for device in models.values():
        count = len(stale_problems(store, device, families()))
        if count:
            remedy = f"tune them again: autotune sweep --stale --device {device.torch_name}"
            detail = f"{counted(count, 'problem')} of {device.name}, with records of other kernels only"
            yield Check("stale records", "stale", detail, remedy)


def _size(count: int) -> str:
    for unit, scale in (("GiB", 1 << 30), ("MiB", 1 << 20)):
        if count >= scale:
            return f"{count / scale:.3g} {unit}"
    return f"{count / (1 << 10):.3g} KiB"
