"""The door of vLLM, as it is before the plugin has entered."""

import importlib.util
import logging
from collections.abc import Iterator
from typing import Any

import pytest

if importlib.util.find_spec("vllm"):
    from vllm import envs
    from vllm.model_executor.kernels import linear as kernels
    from vllm.platforms import PlatformEnum
    from worlds import engine_of_one

    from autotune.serving import vllm as plugin
    from autotune.serving.vllm import engine, report
    from autotune.serving.vllm.kernel import AutotuneLinearKernel

    @pytest.fixture(scope="module")
    def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
        with engine_of_one(tmp_path_factory.mktemp("store") / "file") as config:
            yield config

    @pytest.fixture(autouse=True)
    def as_new(running: Any, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: ARG001
        """No plugin yet, and nothing decided."""
        for platform in (PlatformEnum.CUDA, PlatformEnum.CPU):
            own = [
                kernel for kernel in kernels._POSSIBLE_KERNELS[platform] if kernel is not AutotuneLinearKernel
            ]
            monkeypatch.setitem(kernels._POSSIBLE_KERNELS, platform, own)
        monkeypatch.setattr(AutotuneLinearKernel, "mode", "auto")
        monkeypatch.setattr(plugin, "_done", False)
        monkeypatch.setattr(engine, "asker", lambda: "auto_awq")
        monkeypatch.setattr(report, "decisions", {})
        monkeypatch.setattr(report, "_left", set())
        monkeypatch.delenv(plugin.VARIABLE, raising=False)
        factors = {name: get for name, get in envs.environment_variables.items() if name != plugin.VARIABLE}
        monkeypatch.setattr(envs, "environment_variables", factors)

    @pytest.fixture
    def said() -> Iterator[list[str]]:
        """What the plugin has logged; vLLM's loggers do not pass it on."""
        lines: list[str] = []

        class Keep(logging.Handler):
            def emit(self, entry: logging.LogRecord) -> None:
                lines.append(entry.getMessage())

        keeper, logger = Keep(), logging.getLogger("vllm.autotune")
        logger.addHandler(keeper)
        logger.setLevel(logging.INFO)
        yield lines
        logger.setLevel(logging.NOTSET)
        logger.removeHandler(keeper)
