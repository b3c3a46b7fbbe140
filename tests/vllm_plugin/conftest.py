"""Releases of vLLM that were built for GPUs are told here that they run on a CPU."""

import importlib.util

if importlib.util.find_spec("vllm"):
    from vllm import platforms

    if platforms.current_platform.is_unspecified():
        from vllm.platforms.cpu import CpuPlatform

        platforms._current_platform = CpuPlatform()
