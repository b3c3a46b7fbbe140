"""vLLM plugin, entry point `vllm.general_plugins`: tuned kernels for the int4 linears of vLLM's own models.

vLLM calls `register` in every process that it starts, most of which run no model. So it imports nothing of
vLLM: the plugin enters when vLLM itself has imported its list of kernels.
"""

from __future__ import annotations

import logging
import multiprocessing
from importlib.util import find_spec
from pathlib import Path

from autotune.serving.decide import Mode, mode_of
from autotune.serving.imports import after_import
from autotune.serving.sets import hand_on_set

VARIABLE = "AUTOTUNE_VLLM"
"""The environment variable that says which layers autotune takes; see autotune.serving.decide.Mode."""
DOOR = "vllm.model_executor.kernels.linear"
"""vLLM's module with the list of kernels, from 0.20 on."""

_LOG = logging.getLogger("vllm.autotune")
_done = False


def register() -> None:
    """Have autotune's kernel in vLLM's list, unless AUTOTUNE_VLLM=0; once, and without raising."""
    global _done
    if _done:
        return
    _done = True
    try:
        mode = mode_of(VARIABLE)
        if mode == "0":
            return
        hand_on_set()
        if not _is_there(DOOR):
            raise ImportError(f"this vLLM is not known, it has no {DOOR}")
        after_import(DOOR, lambda: _enter(mode))
    except Exception as error:
        _warn(f"autotune: {error}; vLLM's own kernels serve")
        return
    _show_metrics()


def _warn(message: str) -> None:
    """Say it once for all processes of an engine."""
    if multiprocessing.parent_process() is None:
        _LOG.warning(message)


def _show_metrics() -> None:
    try:
        from autotune.serving.vllm.metrics import show

        show()
    except Exception as error:
        _warn(f"vLLM's metrics lack those of autotune: {error}")


def _is_there(module: str) -> bool:
    """Whether vLLM's folder has the module, found without an import."""
    package, *parts = module.split(".")
    spec = find_spec(package)
    folders = () if spec is None else spec.submodule_search_locations or ()
    places = [Path(folder, *parts) for folder in folders]
    return any(place.is_dir() or place.with_suffix(".py").is_file() for place in places)


def _enter(mode: Mode) -> None:
    try:
        from autotune.serving.vllm.door import enter

        enter(mode)
    except Exception as error:
        # Said wherever it happens: a process that runs no model does not come here.
        _LOG.warning(
            "autotune does not know this vLLM, whose own kernels serve: %s: %s", type(error).__name__, error
        )
