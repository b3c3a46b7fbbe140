"""The SGLang plugin where it has nothing to do: switched off, switched wrongly, and without an SGLang."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator

import pytest

from autotune.serving import sglang as plugin


@pytest.fixture(autouse=True)
def _no_sglang(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    monkeypatch.delenv(plugin.SWITCH, raising=False)
    # None stands for a package that does not import.
    monkeypatch.setitem(sys.modules, "sglang", None)
    caplog.set_level(logging.INFO, plugin.__name__)
    plugin._register_once.cache_clear()
    yield
    plugin._register_once.cache_clear()


@pytest.mark.parametrize("mode", [None, "0"])
def test_off_imports_nothing_and_says_how_to_switch_it_on(
    mode: str | None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    if mode is not None:
        monkeypatch.setenv(plugin.SWITCH, mode)
    plugin.register()
    assert caplog.messages == [
        "autotune can serve int4 linears of SGLang: switch it on with AUTOTUNE_SGLANG=1"
    ]


def test_another_value_is_off_and_named(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(plugin.SWITCH, "on")
    plugin.register()
    assert caplog.messages == ["AUTOTUNE_SGLANG='on' is not 0 or 1; SGLang's own kernels serve"]


def test_an_sglang_that_does_not_import_is_one_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(plugin.SWITCH, "1")
    plugin.register()
    plugin.register()
    (line,) = caplog.messages
    assert line.startswith("autotune does not know this SGLang, whose own kernels serve: ")
