"""vLLM plugin, entry point `vllm.general_plugins`: tuned kernels for the int4 linears of vLLM's own models.

vLLM calls `register` in every process that it starts. Nothing of vLLM is imported before that.
"""

from __future__ import annotations

import logging

from autotune.serving.decide import mode_of

VARIABLE = "AUTOTUNE_VLLM"
"""The environment variable that says which layers autotune takes; see autotune.serving.decide.Mode."""

_LOG = logging.getLogger("vllm.autotune")
_done = False


def register() -> None:
    """Put autotune's kernel first in vLLM's list, unless AUTOTUNE_VLLM=0; once, and without raising."""
    global _done
    if _done:
        return
    _done = True
    try:
        mode = mode_of(VARIABLE)
    except ValueError as error:
        _LOG.warning("autotune: %s; vLLM's own kernels serve", error)
        return
    if mode == "0":
        return
    try:
        from autotune.serving.vllm.door import enter

        enter(mode)
    except Exception as error:
        _LOG.warning(
            "autotune does not know this vLLM, whose own kernels serve: %s: %s", type(error).__name__, error
        )
