"""How a daemon is watched: metrics, health, systemd, the log, the hour's budget."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request

import crashing
import pytest
from command_line import autotune
from daemons import CRASHING, LIMIT_S, ROOT, add, command_line, special

from autotune.daemon.budget import TuningHours
from autotune.daemon.events import Text
from autotune.daemon.turn import Turn
from autotune.values.device import cpu_device, find_device

HIDDEN = (
    "import sys; sys.modules['prometheus_client'] = None; from autotune.cli import main; sys.exit(main())"
)


@pytest.fixture
def db(tmp_path):
    return tmp_path / "here.db"


def get(address):
    """Status and text of an answer."""
    try:
        with urllib.request.urlopen(address, timeout=LIMIT_S) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as answer:
        return answer.code, answer.read().decode()


def test_metrics_and_health_tell_what_was_done(tmp_path, db):
    add(db, source_hash=CRASHING)
    with special(tmp_path, (crashing.NOTHING,), port=0) as daemon:
        address = daemon.until("start")["http"]
        assert address.startswith("http://127.0.0.1:")
        daemon.until("done")
        status, text = get(f"{address}/metrics")
        values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
        named = f'device="{cpu_device().name}"'
        assert status == 200
        assert values[f'autotune_jobs_total{{{named},outcome="done"}}'] == "1.0"
        assert values[f'autotune_jobs_total{{{named},outcome="parked"}}'] == "0.0"
        assert values['autotune_queue_jobs{state="done"}'] == "1.0"
        assert values[f"autotune_waiting{{{named}}}"] == "0.0"
        assert float(values[f"autotune_tuning_seconds_total{{{named}}}"]) > 0
        assert float(values[f"autotune_last_success_timestamp_seconds{{{named}}}"]) > 0
        status, text = get(f"{address}/healthz")
        assert status == 200
        assert json.loads(text)["ok"] is True
        assert get(f"{address}/else")[0] == 404
        db.rename(tmp_path / "elsewhere.db")
        daemon.until("database away")
        status, text = get(f"{address}/healthz")
        assert status == 503
        assert json.loads(text)["wrong"] == [f"database {db} is gone; put it back"]
        status, text = get(f"{address}/metrics")
        assert status == 200
        assert "autotune_jobs_total" in text
        assert "autotune_queue_jobs" not in text
        assert daemon.stop() == 0


def test_a_port_that_is_taken(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ended = autotune("daemon", "--device", "cpu", "--db", "here.db", "--port", str(port), cwd=tmp_path)
    assert ended.returncode == 1
    assert f"port {port} of 127.0.0.1 cannot be had" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("asked", [False, True])
def test_without_prometheus_client_it_runs_unless_metrics_are_asked_for(tmp_path, asked):
    command = (sys.executable, "-c", HIDDEN, "daemon", "--device", "cpu", "--db", "here.db", "--once")
    ended = subprocess.run(
        (*command, *(("--port", "0") if asked else ())),
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == (1 if asked else 0)
    assert "pip install 'autotune-int4[daemon]'" in ended.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="systemd is of Linux")
def test_systemd_is_told(tmp_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
        told.bind(str(tmp_path / "notify"))
        told.settimeout(LIMIT_S)
        env = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "100000"}
        with command_line(tmp_path, "--port", "0", env=env) as daemon:
            assert told.recv(4096) == b"READY=1"
            watchdog, status = told.recv(4096).decode().splitlines()
            assert watchdog == "WATCHDOG=1"
            assert status == f"STATUS={cpu_device().name}: idle, 0 done"
            daemon.process.send_signal(signal.SIGTERM)
            while not told.recv(4096).startswith(b"STOPPING=1\nSTATUS="):
                pass
            assert daemon.end() == 0


def test_a_line_for_people():
    record = logging.makeLogRecord({"msg": "done", "fields": {"job": 1, "config": "tiled:tile_n=16"}})
    assert Text().format(record)[9:] == "done      job=1  config=tiled:tile_n=16"


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


def test_a_budget_holds_for_any_hour(clock):
    budget = TuningHours(600.0, clock)
    assert budget.wait_s() == 0
    for begin in (0.0, 1000.0):  # two jobs of 400 s each: the second one goes beyond
        clock.now = begin + 400
        assert budget.spend(begin) == 400
    # An hour that ends at t has tuned 400 - (t - 3600) + 400 seconds: 600 at t = 3800.
    assert budget.wait_s() == pytest.approx(3800 - clock.now)
    clock.now += budget.wait_s() - 1
    assert budget.wait_s() == pytest.approx(1)
    clock.now += 2
    assert budget.wait_s() == 0


def test_a_job_longer_than_the_budget_is_paid_back(clock):
    budget = TuningHours(60.0, clock)
    clock.now = 7200.0
    budget.spend(0.0)
    assert budget.wait_s() == pytest.approx(3600 - 60)


def test_no_budget_is_no_limit(clock):
    budget = TuningHours(None, clock)
    clock.now = 1e6
    budget.spend(0.0)
    assert budget.wait_s() == 0


@pytest.mark.gpu
def test_a_gpu_that_another_process_holds_is_left_alone():
    turn = Turn(find_device("cuda"))
    hold = "import torch; a = torch.zeros(1, device='cuda'); print('ready', flush=True); input()"
    command = (sys.executable, "-c", hold)
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "ready\n"
        assert "is held by 1 other process" in turn.take(warm=False)
        other.communicate("\n")
    while turn.take(warm=False) is not None:
        pass
    turn.end()
