"""Processes of `serving.py`: the environment that a variant has, and a run of one with a log and a limit."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from serving_setup import VARIANTS


def environment(variant: str, device: str, cache: Path, db: str | None) -> dict[str, str]:
    """That of a variant's process: its own cache of compiled graphs, its database, and no network."""
    ours = {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CACHE_ROOT": str(cache / variant),
    }
    if device == "cpu":
        ours["VLLM_CPU_KVCACHE_SPACE"] = "1"
    if variant == "untuned":
        ours["AUTOTUNE_DB"] = str(cache / "no-records.db")
    elif db:
        ours["AUTOTUNE_DB"] = str(Path(db).resolve())
    return {**os.environ, **ours, **VARIANTS[variant].environment}


def run(script: str, arguments: list[str], environ: dict[str, str], log: Path, stop_at: float) -> str | None:
    """Run a script beside this one until it ends or the wall clock says `stop_at`; why it failed, or None."""
    command = [sys.executable, str(Path(__file__).with_name(script)), *arguments]
    log.parent.mkdir(parents=True, exist_ok=True)
    started = time.time()
    with open(log, "w", encoding="utf-8") as file:
        process = subprocess.Popen(command, env=environ, stdout=file, stderr=subprocess.STDOUT)
        try:
            code: int | None = process.wait(timeout=min(max(stop_at - time.time(), 0), 1e6))
        except subprocess.TimeoutExpired:
            code = None
        finally:
            process.kill()
            process.wait()
    last = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
    trouble = f"exit status {code}: {''.join(last)} (more in {log})" if code else None
    state = trouble or ("time is up" if code is None else "done")
    print(f"{log.stem}: {state}, {time.time() - started:.0f} s", file=sys.stderr)
    return trouble
