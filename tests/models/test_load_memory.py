"""The memory that loading takes, by torch's own count of allocations; files are mapped and do not count."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from checkpoints import KINDS, Kind, one_thread, quantize, tiny, write
from torch.profiler import ProfilerActivity, profile

import autotune
from autotune.runtime.linear import Int4Linear

pytestmark = [
    pytest.mark.usefixtures(one_thread.__name__),
    pytest.mark.filterwarnings("ignore:no config was measured"),
]


def folder_of(kind: Kind, folder: Path) -> Path:
    """Blocks as many as those of a 7B model, so that a linear is as small a part; all have equal weights."""
    numbers = {"hidden_size": 256, "intermediate_size": 512, "head_dim": 64}
    one, model = tiny(num_hidden_layers=1, **numbers), tiny(num_hidden_layers=32, **numbers)
    tensors = {
        name: found.half() if found.is_floating_point() else found
        for name, found in quantize(one, kind).items()
    }
    copies = {
        name.replace("layers.0.", f"layers.{block}."): found.clone()
        for name, found in tensors.items()
        for block in range(32)
    }
    return write(folder, model, copies, kind.config, dtype="float16")


def packed_bytes(model: torch.nn.Module) -> int:
    linears = [module for module in model.modules() if isinstance(module, Int4Linear)]
    return sum(buffer.nbytes for linear in linears for buffer in linear.buffers())


def peak_bytes(trace: Path) -> int:
    """The most that was allocated at once of what was allocated while the trace was taken."""
    events = [event for event in json.loads(trace.read_text())["traceEvents"] if event["name"] == "[memory]"]
    held: dict[int, int] = {}
    peak = 0
    for memory in (event["args"] for event in sorted(events, key=lambda event: event["ts"])):
        if memory["Bytes"] < 0:
            held.pop(memory["Addr"], None)
        # A mapped file is told as reserved, which nothing that is allocated on the CPU is.
        elif memory["Total Reserved"] == 0:
            held[memory["Addr"]] = memory["Bytes"]
            peak = max(peak, sum(held.values()))
    return peak


@pytest.mark.parametrize(("kind", "fuse"), [*((kind, True) for kind in KINDS), ("awq", False)])
def test_one_linear_at_a_time_is_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, fuse: bool
) -> None:
    folder = folder_of(KINDS[kind], tmp_path / "model")
    # The profiler counts in its own thread only.
    monkeypatch.setenv("HF_DEACTIVATE_ASYNC_LOAD", "1")
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=False) as profiler:
        model = autotune.load(folder, "cpu", fuse=fuse)
    trace = tmp_path / "trace.json"
    profiler.export_chrome_trace(str(trace))
    packed, peak = packed_bytes(model), peak_bytes(trace)
    assert packed <= peak <= 1.15 * packed
