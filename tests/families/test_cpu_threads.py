"""How many threads a CPU's kernels use where a user limits them, beside the affinity."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from runtime_tools import store_records

from autotune.records.lookup import Lookup
from autotune.values.config import Config
from autotune.values.device import cpu_device
from autotune.values.layer import Layer, Problem

pytestmark = pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads are counted in /proc")

LAYER = Layer(n=4096, k=1024)
COUNT = """
import os, torch
from autotune import Int4Linear, Layer
from autotune.values.device import cpu_device, torch_threads
from autotune.layouts import random_weight

layer = Layer(n=4096, k=1024)
linear = Int4Linear.from_quantized(random_weight(layer, torch.Generator().manual_seed(0)))
x = torch.randn(1, layer.k, generator=torch.Generator().manual_seed(1)).half()

def more_threads():
    before = len(os.listdir("/proc/self/task"))
    out = linear(x)
    return len(os.listdir("/proc/self/task")) - before, out
"""


def ask(code: str, limit: str | None = None) -> str:
    """What a fresh process prints, under OMP_NUM_THREADS if there is a limit."""
    outside = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    environment = outside if limit is None else {**outside, "OMP_NUM_THREADS": limit}
    done = subprocess.run(
        [sys.executable, "-c", COUNT + code], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("limit", [None, "1", " 1 ", "1,4", "0", "-1", "many", ""])
def test_autotune_reads_the_limit_as_torch_does(limit: str | None) -> None:
    assert ask("print(torch_threads() == torch.get_num_threads())", limit) == "True"


def test_a_limited_process_is_a_device_with_fewer_threads() -> None:
    assert ask("print(cpu_device().cores, cpu_device().name.endswith('(1 thread)'))", "1") == "1 True"
    assert ask("print(cpu_device().cores == len(os.sched_getaffinity(0)))") == "True"
    assert ask("print(more_threads()[0])", "1") == "0"


def test_a_limit_that_torch_is_given_later_holds_for_the_calls_that_follow() -> None:
    if ask("print(torch_threads())") == "1":
        pytest.skip("needs two cores")
    code = """
torch.set_num_threads(1)
none, one = more_threads()
torch.set_num_threads(2)
some, two = more_threads()
print(none, some, torch.equal(one, two))
"""
    assert ask(code) == "0 1 True"


def test_a_record_of_more_threads_gives_way(tmp_path: Path) -> None:
    two, one = (replace(cpu_device(), name=f"a CPU ({cores} threads)", cores=cores) for cores in (2, 1))
    path, problem = tmp_path / "records.db", Problem(LAYER, 1)
    store_records(path, two, {problem: Config.parse("cpu:tile_n=32,split_k=1,unpack_m=0,threads=2")})
    assert Lookup(two, str(path)).answer(problem).source == "exact"
    answer = Lookup(one, str(path)).answer(problem)
    assert (answer.source, answer.config["threads"]) == ("default", 1)
