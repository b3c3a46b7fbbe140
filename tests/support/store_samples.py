"""Values that the tests of the store and of look-up share."""

from __future__ import annotations

import json
import os
import re
import sysconfig
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from unittest import SkipTest

from places import FROZEN

import autotune
from autotune.values.config import Config
from autotune.values.device import Device
from autotune.values.layer import Layer, Problem
from autotune.values.record import Binary, Environment, Evidence, Record, Trial

H200 = Device("cuda", 0, "NVIDIA H200", "sm_90", 132, 50 << 20, 227 << 10, 141 << 30)
H100 = replace(H200, name="NVIDIA H100", memory_bytes=80 << 30)
A100 = replace(H200, name="NVIDIA A100", arch="sm_80", cores=108)
# The frozen databases have these samples too, with the families of their day.
SOURCES: dict[str, str] = json.loads(
    re.findall(r"{[^{}]*0123456789abcdef[^{}]*}", (FROZEN / "0001.sql").read_text())[0]
)
FAMILY, RIVAL = SOURCES
ENVIRONMENT = Environment("CUDA 13.0", "NVRTC 13.0", "2.13.0", "0.1.0", SOURCES)
LAYER = Layer(4096, 4096)
EVIDENCE = Evidence(
    rounds=25,
    gain=(1.5, 1.25, 1.75),
    ties=(f"{FAMILY}:tile_m=8,split_k=4",),
    runners_up=((f"{FAMILY}:tile_m=16,split_k=1", 5.75), (f"{RIVAL}:", 6.5)),
    clock_mhz=1980,
    deviation=0.125,
    floor_us=3.5,
    temperature_c=41,
    power_w=350,
    peers=(("vllm:MacheteLinearKernel", 6.25),),
    candidates=7,
    learned_from=(16, 32),
)


def config(tile_m: int = 8, split_k: int = 1, family: str = FAMILY) -> Config:
    return Config.of(family, tile_m=tile_m, split_k=split_k)


def record(
    m: int = 1, layer: Layer = LAYER, device: Device = H200, best: Config | None = None, at: int = 0
) -> Record:
    best = best or config()
    return Record(
        problem=Problem(layer, m),
        device=device.name,
        arch=device.arch,
        config=best,
        median_us=5.25,
        low_us=5.125,
        high_us=5.5,
        default_config=config(tile_m=64),
        default_us=7.75,
        source_hash=SOURCES[best.family],
        created_at=f"2025-01-01T00:00:{at:02}+00:00",
    )


def trials(of: Record) -> list[Trial]:
    """The record's own trial, a slower one, a failed one."""
    samples = (5.0, 5.25, 5.5)
    return [
        Trial(of.problem, of.default_config, "ok", 7.75, 7.5, 8.0, (7.5, 7.75, 8.0)),
        Trial(of.problem, of.config, "ok", of.median_us, of.low_us, of.high_us, samples),
        Trial(of.problem, config(split_k=2), "failed", error="launch failed: invalid argument"),
    ]


def with_evidence(of: Record) -> Record:
    return replace(of, mode="server", evidence=EVIDENCE)


def evident_trials(of: Record) -> list[Trial]:
    """The record's trials, with all that is known of how they were timed, and the kernel."""
    known = {"mode": "server", "clock_mhz": 1980, "deviation": 0.125, "source_hash": of.source_hash}
    return [replace(each, **known) for each in trials(of)]


def binary(key: str = "unit", cubin: bytes = b"\x7fELF cubin") -> Binary:
    return Binary(key, "sm_90", "NVRTC 13.0", cubin)


@contextmanager
def reachable_folder() -> Iterator[Path]:
    """A folder that an ordinary user reaches, unlike pytest's own."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        try:
            yield folder
        finally:
            for each in (folder, *folder.iterdir()):
                each.chmod(0o755)


@contextmanager
def as_ordinary_user() -> Iterator[None]:
    """Root may write everywhere; permissions hold for what runs in here.

    The test is skipped where others than root may not read what is imported meanwhile.
    """
    if os.geteuid() != 0:
        yield
        return
    imported = (Path(autotune.__file__).parent, *map(sysconfig.get_path, ("stdlib", "purelib")))
    os.seteuid(65534)
    try:
        for folder in imported:
            if not os.access(folder, os.R_OK | os.X_OK, effective_ids=True):
                raise SkipTest(f"only root may read {folder}: run the tests as its owner, or elsewhere")
        yield
    finally:
        os.seteuid(0)
