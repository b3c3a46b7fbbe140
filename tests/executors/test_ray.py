"""Sweeps on a real Ray cluster, whose nodes are all on this machine."""

from __future__ import annotations

import collections
import json
import os
import signal
import subprocess

import counted
import daemons
import pytest
from command_line import PROGRAM
from places import SUPPORT

import autotune
from autotune.families import registry
from autotune.search.sweep import sweep
from autotune.store.store import Store
from autotune.values import counts
from autotune.values.device import cpu_device
from autotune.values.errors import DeviceError
from autotune.values.layer import Layer, Problem

ray = pytest.importorskip("ray")
from ray.cluster_utils import Cluster  # noqa: E402

from autotune.executors.ray import ray_executors  # noqa: E402

PROBLEMS = [Problem(Layer(n=n, k=256, group_size=64), m) for n in (64, 128) for m in (1, 2, 4)]

MANY = sorted(Problem(each.layer, m) for each in PROBLEMS for m in (each.m, 8 * each.m))
"""So many that some are left when the loss of a node is noticed."""


CPUS = cpu_device().cores
"""Of a node: Ray limits its actors to so many threads, and fewer threads are another device."""

SOON = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 100}
"""A head that looks every 100 ms whether its nodes live; one that is only slow has as long as ever."""


@pytest.fixture(scope="module")
def cluster():
    """A node with CPUs, which a test may double, and one that says it has a GPU."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join((str(SUPPORT / "everywhere"), str(SUPPORT))))
        started = Cluster(initialize_head=True, head_node_args={"num_cpus": CPUS, "_system_config": SOON})
        started.add_node(num_cpus=0, num_gpus=1, resources={"accelerator_type:H200": 1})
        yield started
        ray.shutdown()
        started.shutdown()


@pytest.fixture
def executors(cluster):
    """Makes the cluster's executors, and closes them."""
    made = []

    def make(device="cpu"):
        made.extend(ray_executors(cluster.address, device, allow_busy=True))
        return made

    yield make
    for each in made:
        each.close()


def test_the_problems_of_a_node_that_is_killed_are_tuned_elsewhere(cluster, executors, tmp_path, caplog):
    lost = cluster.add_node(num_cpus=CPUS)
    two = executors()
    assert [each.device for each in two] == [cpu_device()] * 2
    with Store.open(str(tmp_path / "ray.db")) as store:
        running = sweep(MANY, store, two, budget_s=600.0)
        outcomes = [next(running)]
        cluster.remove_node(lost, allow_graceful=False)
        outcomes.extend(running)
        assert sorted(outcome.problem for outcome in outcomes) == MANY
        assert [record.problem for record in store.records(cpu_device())] == MANY
        for problem in MANY:
            times = collections.Counter(trial.config for trial in store.trials(problem, cpu_device()))
            assert set(times) == set(registry.space(problem, cpu_device()))
            assert set(times.values()) == {1}
    assert "the others go on without it" in caplog.text


def notice_lost_nodes(left):
    """Wait until the head misses the nodes that were killed."""
    while ray.is_initialized() and sum(node["Alive"] for node in ray.nodes()) > left:
        pass


def test_a_node_that_returns_is_used_again(cluster, executors, monkeypatch):
    notice_lost_nodes(2)
    node = cluster.add_node(num_cpus=CPUS)
    two = executors()
    assert len(two) == 2
    candidates = registry.space(PROBLEMS[0], cpu_device())[:2]
    cluster.remove_node(node, allow_graceful=False)
    notice_lost_nodes(2)
    lost = []
    for each in two:
        try:
            each.tune(PROBLEMS[0], candidates, {}, 1.0)
        except DeviceError:
            lost.append(each)
    monkeypatch.setattr("autotune.executors.ray._PLACE_LIMIT_S", 1.0)
    with pytest.raises(DeviceError, match=r"^node .*: it was not free within"):
        lost[0].tune(PROBLEMS[0], candidates, {}, 1.0)
    monkeypatch.undo()
    another = cluster.add_node(num_cpus=CPUS)
    assert another.node_id != node.node_id
    assert lost[0].tune(PROBLEMS[0], candidates, {}, 1.0).record is not None
    cluster.remove_node(another)


ARGUMENTS = (
    "sweep", "--shapes", "n=64,k=256;n=128,k=256", "--m", "1,2,4,8", "--executor", "ray", "--device", "cpu",
    "--budget", "60s", "--db", "here.db", "--json",
)  # fmt: skip


def test_an_interrupted_sweep_on_a_cluster_goes_on_where_it_stopped(cluster, tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    with subprocess.Popen(
        (*PROGRAM, *ARGUMENTS), cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as running:
        first = json.loads(running.stdout.readline())
        running.send_signal(signal.SIGINT)
        rest, errors = running.communicate()
    assert running.returncode == 130, errors
    done = [first, *map(json.loads, rest.splitlines())]
    assert errors.splitlines()[-1] == f"interrupted: {counts.counted(len(done), 'problem')} stored"
    assert "Traceback" not in errors
    finished = subprocess.run((*PROGRAM, *ARGUMENTS), cwd=tmp_path, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    outcomes = list(map(json.loads, finished.stdout.splitlines()))
    assert sorted((each["n"], each["m"]) for each in outcomes) == [
        (n, m) for n in (64, 128) for m in (1, 2, 4, 8)
    ]
    resumed = {(each["n"], each["m"]): each["config"] for each in outcomes if each["resumed"]}
    assert resumed == {(each["n"], each["m"]): each["config"] for each in done}


def test_a_node_whose_device_cannot_be_used_is_left_out(executors, caplog):
    with pytest.raises(
        DeviceError, match=r"nothing of the Ray cluster can be used; node .*: no NVIDIA GPU here"
    ):
        executors("NVIDIA H200")
    assert "left out: node" in caplog.text


def test_a_model_that_the_cluster_does_not_have(executors):
    with pytest.raises(DeviceError, match="no GPU of the Ray cluster is 'B200'; there are: H200"):
        executors("B200")


def test_a_node_with_another_autotune_is_left_out(executors, monkeypatch):
    monkeypatch.setattr(autotune, "__version__", "9.9")
    with pytest.raises(DeviceError, match=r"it has autotune .*, here is 9.9; install the same on every node"):
        executors()


def test_a_node_with_other_kernels_is_left_out(executors, monkeypatch):
    monkeypatch.setattr(registry, "families", counted.families)
    with pytest.raises(DeviceError, match=r"its kernel sources differ from those here \(counted, other\)"):
        executors()


def test_who_is_cancelled_raises_until_it_is_closed(executors):
    (one,) = executors()
    candidates = registry.space(PROBLEMS[0], cpu_device())[:2]
    assert one.tune(PROBLEMS[0], candidates, {}, 1.0).record is not None
    one.cancel()
    with pytest.raises(DeviceError, match=r"^node [0-9.]+: tuning was cancelled"):
        one.tune(PROBLEMS[0], candidates, {})
    one.close()
    assert one.tune(PROBLEMS[1], candidates, {}, 1.0).record is not None


def test_a_daemon_works_the_queue_on_the_cluster(cluster, tmp_path):
    daemons.add(tmp_path / "here.db", *PROBLEMS[:2])
    ray_address = ("--executor", "ray", "--address", cluster.address, "--allow-busy", "--once")
    with daemons.command_line(tmp_path, *ray_address) as daemon:
        assert daemon.end() == 0, daemon.lines
    with Store.open(str(tmp_path / "here.db")) as store:
        assert [record.problem for record in store.records()] == PROBLEMS[:2]


@pytest.mark.parametrize("address", ["127.0.0.1:1", "nonsense", "ray://127.0.0.1:1"])
def test_a_cluster_that_is_not_there(address, tmp_path):
    command = (*PROGRAM, *ARGUMENTS, "--address", address)
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert ended.returncode == 1
    (line,) = ended.stderr.splitlines()
    assert line.startswith(f"error: no Ray cluster answers at {address} (")


def test_an_address_is_a_cluster_s(tmp_path):
    command = (*PROGRAM, "sweep", "--shapes", "llama7b", "--address", "127.0.0.1:1")
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert ended.returncode == 2
    assert "give it with --executor ray" in ended.stderr
