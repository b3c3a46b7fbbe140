"""Releases of vLLM that were built for GPUs are told here that they run on a CPU."""

import importlib.util
from pathlib import Path

import pytest

if importlib.util.find_spec("vllm"):
    from vllm import platforms

    if platforms.current_platform.is_unspecified():
        from vllm.platforms.cpu import CpuPlatform

        platforms._current_platform = CpuPlatform()


@pytest.fixture(autouse=True)
def in_a_worker(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The process of a test is no engine's first, which would show metrics from then on."""
    monkeypatch.setenv("AUTOTUNE_VLLM_REPORT", str(tmp_path))
