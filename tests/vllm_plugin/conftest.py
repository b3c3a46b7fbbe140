"""Tests as an engine's first process; releases of vLLM that were built for GPUs run on the CPU here."""

import importlib.util
import tempfile
from pathlib import Path

import pytest

if importlib.util.find_spec("vllm"):
    from prometheus_client import CollectorRegistry
    from vllm import platforms

    from autotune.serving.vllm import metrics

    if platforms.current_platform.is_unspecified():
        from vllm.platforms.cpu import CpuPlatform

        platforms._current_platform = CpuPlatform()

    @pytest.fixture(autouse=True)
    def own_metrics(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        """Each test begins with none, and leaves none."""
        monkeypatch.setattr(metrics, "REGISTRY", CollectorRegistry())
        monkeypatch.setenv("AUTOTUNE_VLLM_REPORT", str(tmp_path / "of another engine"))
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
