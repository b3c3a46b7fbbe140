"""Compile units to cubins with NVRTC, or with nvcc where NVRTC is absent, and cache them on disk.

A cached file is the SHA-256 of the cubin followed by the cubin; its name is a hash of the unit, the
compiler's version and the flags.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import re
import shutil
import subprocess
import tempfile
import threading
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from autotune.jit.sources import source_folder
from autotune.jit.unit import Unit
from autotune.values.errors import CompileError
from autotune.values.paths import cubin_cache

_LOG = logging.getLogger(__name__)
_EXACT_VERSION = re.compile(r"\bV(\d+\.\d+\.\d+)")
_EXPORTED = re.compile(r"\.global \.align 4 \.u32 exported_(\w+)(?: = (\d+))?;")
_CHECKSUM_BYTES = hashlib.sha256().digest_size
_TOOLKIT = "/usr/local/cuda"
_REMEDY = "run pip install 'autotune-int4[cuda]' beside a CUDA build of torch, or install a CUDA toolkit"


class SourceError(CompileError):
    """A kernel source that the compiler refused; `log` is all that the compiler said."""

    def __init__(self, message: str, log: str = "") -> None:
        super().__init__(message)
        self.log = log


@dataclass(frozen=True, slots=True)
class Resources:
    """What ptxas reports of a unit: registers, stack and static shared memory are those of its greediest
    kernel; spills are the bytes stored to and loaded from the stack, summed over its functions.
    """

    registers: int
    spill_bytes: int
    local_bytes: int
    shared_bytes: int


class _RefusedError(Exception):
    """The compiler ended with an error; the argument is its log."""


class _AbsentError(Exception):
    """A compiler that is not here; the argument says what was looked for."""


class _Compiler(Protocol):
    version: str
    flags: tuple[str, ...]
    """What every unit is compiled with; both compilers take the same sources."""

    def compile(self, source: Path, options: list[str], to: str = "cubin") -> tuple[bytes, str]:
        """The cubin, or what else `to` says ("ptx"), and the log; or _RefusedError."""


class _Nvrtc:
    """NVRTC through cuda-bindings, which finds the library of a wheel, of conda or of a toolkit."""

    kind = "nvrtc"
    flags: tuple[str, ...] = ("--std=c++17", "-default-device")

    def __init__(self) -> None:
        try:
            from cuda.bindings import nvrtc
        except ImportError as error:
            raise _AbsentError(f"NVRTC: cuda-bindings does not import ({error})") from None
        self._nvrtc: Any = nvrtc
        try:
            # NVRTC tells its patch level only in what it compiles.
            ptx = self._run(b"", "empty.cu", ["--gpu-architecture=compute_80"], "PTX")[0].decode()
        except (_RefusedError, RuntimeError) as error:
            raise _AbsentError(f"NVRTC: {str(error).splitlines()[0]}") from None
        exact = _EXACT_VERSION.search(ptx)
        self.version = f"{self.kind} {exact[1]}" if exact else "nvrtc {1}.{2}".format(*nvrtc.nvrtcVersion())

    def compile(self, source: Path, options: list[str], to: str = "cubin") -> tuple[bytes, str]:
        return self._run(source.read_bytes(), str(source), options, to.upper())

    def _run(self, text: bytes, name: str, options: list[str], kind: str) -> tuple[bytes, str]:
        created, program = self._nvrtc.nvrtcCreateProgram(text, name.encode(), 0, [], [])
        self._check(created)
        try:
            encoded = [option.encode() for option in options]
            (compiled,) = self._nvrtc.nvrtcCompileProgram(program, len(encoded), encoded)
            log = self._get(program, "ProgramLog").rstrip(b"\0").decode(errors="replace").strip()
            if compiled != self._nvrtc.nvrtcResult.NVRTC_SUCCESS:
                raise _RefusedError(log or compiled.name)
            return self._get(program, kind), log
        finally:
            self._nvrtc.nvrtcDestroyProgram(program)

    def _get(self, program: Any, what: str) -> bytes:
        measured, size = getattr(self._nvrtc, f"nvrtcGet{what}Size")(program)
        self._check(measured)
        content = bytes(size)  # the binding writes into the bytes that it is given
        self._check(*getattr(self._nvrtc, f"nvrtcGet{what}")(program, content))
        return content

    def _check(self, result: Any) -> None:
        if result != self._nvrtc.nvrtcResult.NVRTC_SUCCESS:
            raise _RefusedError(f"NVRTC failed with {result.name}")


class _Nvcc:
    """nvcc of a CUDA toolkit, found on PATH, in CUDA_HOME or in /usr/local/cuda."""

    kind = "nvcc"
    flags: tuple[str, ...] = ("--std=c++17", "--expt-relaxed-constexpr")

    def __init__(self) -> None:
        toolkits = filter(None, (os.environ.get("CUDA_HOME"), _TOOLKIT))
        folders = os.pathsep.join(f"{toolkit}/bin" for toolkit in toolkits)
        found = shutil.which("nvcc") or shutil.which("nvcc", path=folders)
        if found is None:
            raise _AbsentError(f"nvcc: not on PATH nor in {folders}")
        self._nvcc = found
        exact = _EXACT_VERSION.search(self._run("--version"))
        if exact is None:
            raise _AbsentError(f"nvcc: {found} --version tells no version")
        self.version = f"{self.kind} {exact[1]}"

    def compile(self, source: Path, options: list[str], to: str = "cubin") -> tuple[bytes, str]:
        with tempfile.TemporaryDirectory(prefix="autotune-") as folder:
            target = Path(folder) / "unit"
            log = self._run(f"-{to}", "-x", "cu", *options, "-o", str(target), str(source))
            return target.read_bytes(), log

    def _run(self, *arguments: str) -> str:
        try:
            ended = subprocess.run(
                [self._nvcc, *arguments], capture_output=True, text=True, errors="replace", check=False
            )
        except OSError as error:
            raise _RefusedError(f"{self._nvcc}: {error.strerror}") from None
        log = (ended.stdout + ended.stderr).strip()
        if ended.returncode:
            raise _RefusedError(log or f"{self._nvcc} ended with {ended.returncode}")
        return log


@functools.cache
def _compiler() -> _Compiler:
    missing = []
    for make in (_Nvrtc, _Nvcc):
        try:
            return make()
        except (_AbsentError, _RefusedError) as reason:
            missing.append(str(reason))
    raise CompileError(f"no CUDA compiler ({'; '.join(missing)}); {_REMEDY}")


def compiler_version() -> str:
    """The compiler in force, as `nvrtc 13.0.88` or `nvcc 13.0.88`.

    Raises:
        CompileError: there is none.
    """
    return _compiler().version


def find_compiler() -> str | None:
    """The compiler in force, or None when there is none."""
    try:
        return compiler_version()
    except CompileError:
        return None


def build(unit: Unit) -> bytes:
    """The cubin of a unit, from the cache when it is there.

    Raises:
        CompileError: there is no compiler, or no such source.
        SourceError: the compiler refused the source; the message has its first error.
    """
    cubin = cached(unit)
    if cubin is None:
        cubin, _ = _compile(unit)
        _save(_cached_file(unit), cubin)
    return cubin


def cached(unit: Unit) -> bytes | None:
    """The cubin of a unit, if the cache has it.

    Raises:
        CompileError: there is no compiler.
    """
    return _load(_cached_file(unit))


def cached_by(version: str, unit_key: str) -> bytes | None:
    """The cubin that the compiler of this version made of the unit, if the cache has it.

    No compiler is loaded: NVRTC takes 30 ms and more to say which it is.
    """
    kind = version.partition(" ")[0]
    flags = next((made.flags for made in (_Nvrtc, _Nvcc) if made.kind == kind), ())
    return _load(_file_of(unit_key, version, flags))


def resources(unit: Unit) -> Resources:
    """Compile the unit, past the cache, for ptxas' report on it.

    Raises:
        CompileError: the unit does not build, or holds no kernel.
    """
    _, log = _compile(unit, "--ptxas-options=-v")
    stacks = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", log)
    kernels = re.findall(r"Used (\d+) registers(.*)", log)
    if not kernels:
        raise CompileError(f"{unit.source} for {unit.arch} holds no kernel that ptxas reports on")
    shared = (re.search(r"(\d+) bytes smem", rest) for _, rest in kernels)
    return Resources(
        registers=max(int(count) for count, _ in kernels),
        spill_bytes=sum(int(stores) + int(loads) for _, stores, loads in stacks),
        local_bytes=max((int(frame) for frame, _, _ in stacks), default=0),
        shared_bytes=max(int(match[1]) if match else 0 for match in shared),
    )


def exported(unit: Unit) -> dict[str, int]:
    """The numbers that the source exports as `exported_NAME`, by name.

    Raises:
        CompileError: the unit does not build.
    """
    virtual = replace(unit, arch=unit.arch.replace("sm_", "compute_"))
    ptx, _ = _compile(virtual, to="ptx")
    return {name: int(value or 0) for name, value in _EXPORTED.findall(ptx.decode())}


def _compile(unit: Unit, *more: str, to: str = "cubin") -> tuple[bytes, str]:
    folder = source_folder()
    defines = [f"-D{name}={value}" for name, value in unit.defines]
    compiler = _compiler()
    options = [
        f"--gpu-architecture={unit.arch}",
        *compiler.flags,
        f"--include-path={folder}",
        *defines,
        *more,
    ]
    try:
        return compiler.compile(folder / unit.source, options, to)
    except OSError as error:
        raise CompileError(f"cannot compile {unit.source}: {error.filename}: {error.strerror}") from None
    except _RefusedError as refused:
        log = str(refused)
        lines = [line.strip() for line in log.splitlines() if line.strip()]
        first = next((line for line in lines if "error" in line), lines[0])
        defined = " ".join(f"{name}={value}" for name, value in unit.defines) or "nothing"
        raise SourceError(f"{first} ({unit.source} for {unit.arch} with {defined})", log) from None


def _cached_file(unit: Unit) -> Path:
    compiler = _compiler()
    return _file_of(unit.key, compiler.version, compiler.flags)


def _file_of(unit_key: str, version: str, flags: tuple[str, ...]) -> Path:
    text = repr((unit_key, version, flags))
    return cubin_cache() / f"{hashlib.sha256(text.encode()).hexdigest()[:40]}.cubin"


def _load(path: Path) -> bytes | None:
    try:
        content = path.read_bytes()
    except OSError:
        return None
    cubin = content[_CHECKSUM_BYTES:]
    return cubin if hashlib.sha256(cubin).digest() == content[:_CHECKSUM_BYTES] else None


def _save(path: Path, cubin: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".new-", dir=path.parent) as folder:
            whole = Path(folder) / path.name
            whole.write_bytes(hashlib.sha256(cubin).digest() + cubin)
            os.replace(whole, path)
    except OSError as error:
        _warn_unusable(path.parent, error.strerror or str(error))


_warned: set[Path] = set()
_warning = threading.Lock()


def _warn_unusable(folder: Path, reason: str) -> None:
    with _warning:
        if folder not in _warned:
            _warned.add(folder)
            _LOG.warning("cubin cache %s cannot be written (%s): kernels are compiled again", folder, reason)
