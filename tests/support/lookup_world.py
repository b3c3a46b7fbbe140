"""What the tests of look-up share: two small families, a user's database and a folder of shipped records."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

import pytest
from store_samples import (
    A100,
    ENVIRONMENT,
    H100,
    H200,
    LAYER,
    SOURCES,
    config,
    trials,
)

from autotune.families import registry
from autotune.records import sources as module
from autotune.records.exchange import write_text
from autotune.records.lookup import Lookup
from autotune.store.store import Store
from autotune.values.config import Config
from autotune.values.device import Device, cpu_device
from autotune.values.layer import Layer, Problem

DEFAULT = config(tile_m=64)
PROBLEM = Problem(LAYER, 1)


class SmallFamily:
    """A family as look-up sees it; split_k must divide k, and it cannot do n below 64."""

    kind = "cuda"
    deterministic = False

    def __init__(self, name: str) -> None:
        self.name = name

    def source_hash(self) -> str:
        return SOURCES[self.name]

    def unknown(self, config: Config) -> str | None:
        return None if {*config} == {"tile_m", "split_k"} else "its tunables are tile_m, split_k"

    def reject(self, config: Config, problem: Problem, device: Device) -> str | None:  # noqa: ARG002
        split_k = config["split_k"]
        return f"split_k={split_k} does not divide k" if problem.layer.k % split_k else None

    def unit(self, config: Config, layer: Layer, device: Device) -> None:  # noqa: ARG002
        return None

    def default(self, problem: Problem, device: Device) -> Config | None:  # noqa: ARG002
        return DEFAULT if problem.layer.n >= 64 else None

    def ordered(self, problem: Problem, device: Device) -> tuple[Config, ...]:  # noqa: ARG002
        return ()

    def estimate(self, config: Config, problem: Problem, device: Device) -> float:  # noqa: ARG002
        return 1.0


def make_small_world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two small families, no shipped records, no warnings given yet; the path of the only database."""
    families = {name: SmallFamily(name) for name in SOURCES}
    monkeypatch.setattr(registry, "families", lambda: families)
    monkeypatch.setattr("autotune.store.reading.shipped", lambda _: tmp_path / "shipped")
    monkeypatch.setattr("autotune.prediction.files.shipped", lambda _: tmp_path / "shipped")
    monkeypatch.setattr(module, "_warned", set())
    monkeypatch.setenv("AUTOTUNE_DB", str(tmp_path / "user.db"))
    (tmp_path / "shipped").mkdir()
    return tmp_path / "user.db"


def store(database: Path, *records, cubin=None) -> None:
    devices = {device.name: device for device in (H200, H100, A100, cpu_device())}
    with Store.open(str(database)) as opened:
        for each in records:
            sweep = opened.begin_sweep(devices[each.device], ENVIRONMENT, {})
            opened.add_result(sweep, trials(each), each, cubin)


def ship(tmp_path: Path, *records, compiled_by: str = ENVIRONMENT.compiler) -> None:
    name = records[0].device.lower().replace(" ", "-")
    environment = replace(ENVIRONMENT, compiler=compiled_by)
    write_text(records, environment, tmp_path / "shipped" / f"{name}.jsonl")


def ask(m: int = 1, layer: Layer = LAYER, device: Device = H200, db: str | None = None):
    """The answer, where no warning is due."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return Lookup(device, db).answer(Problem(layer, m))
