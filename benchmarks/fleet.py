"""How much faster is a sweep on all devices of this machine than on one?

    python benchmarks/fleet.py                      # every GPU against the first one
    python benchmarks/fleet.py --devices cpu --m 1  # the CPU alone, to see that it runs

Each sweep is `autotune sweep --shapes llama7b` in a process and with a database of its own; first with no
compiled kernels, then again with all of them, which takes the compiler out of the ratio.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from autotune.executors.local import local_executors


def sweep(devices: str, cache: Path, arguments: list[str]) -> float:
    """Seconds of a sweep into a new database, from start to end of its process."""
    with tempfile.TemporaryDirectory() as folder:
        database = str(Path(folder) / "fleet.db")
        command = [sys.executable, "-m", "autotune", "sweep", "--device", devices, "--db", database, "--json"]
        environment = os.environ | {"AUTOTUNE_CACHE": str(cache)}
        begin = time.perf_counter()
        ended = subprocess.run(
            [*command, *arguments], env=environment, stdout=subprocess.PIPE, text=True, check=True
        )
        seconds = time.perf_counter() - begin
    outcomes = [json.loads(line) for line in ended.stdout.splitlines()]
    problems = Counter((each["n"], each["k"], each["m"]) for each in outcomes)
    assert set(problems.values()) == {1}
    assert all(each["config"] for each in outcomes)
    trials, busy_s = sum(each["trials"] for each in outcomes), sum(each["elapsed_s"] for each in outcomes)
    print(
        f"{devices}: {seconds:.1f} s, of which a device tuned {busy_s / len(devices.split(',')):.1f} s on "
        f"average; {len(problems)} problems, {trials} configs",
        flush=True,
    )
    return seconds


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the sweep under way ends too
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--devices", default="all", help="as for autotune sweep --device")
    parser.add_argument("--shapes", default="llama7b")
    parser.add_argument("--m", help="as for autotune sweep")
    options = parser.parse_args()
    arguments = ["--shapes", options.shapes, *(["--m", options.m] if options.m else [])]
    names = [executor.device.torch_name for executor in local_executors(options.devices)]
    seconds = []
    for devices in (names[0], ",".join(names)):
        with tempfile.TemporaryDirectory() as cache:
            seconds.append([sweep(devices, Path(cache), arguments) for _ in range(2)])
    for kernels, one, every in zip(("no", "all"), *seconds, strict=True):
        print(f"{kernels} kernels compiled before: {len(names)} devices take {every / one:.3f} of one's time")


if __name__ == "__main__":
    main()
