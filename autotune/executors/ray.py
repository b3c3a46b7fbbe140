"""Tunes on the devices of a Ray cluster: one actor for each, which has a crash-isolated worker of its own."""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any
from urllib.parse import urlsplit

import autotune
from autotune.executors.local import LocalExecutor
from autotune.executors.process import unsent
from autotune.families import registry
from autotune.jit import compiler
from autotune.search.executor import At
from autotune.search.tune import Cubins, Tuned
from autotune.values.config import Config
from autotune.values.device import Device, find_device
from autotune.values.errors import AutotuneError, DeviceError
from autotune.values.extra import TIMES_ONLY, Extra
from autotune.values.layer import Problem
from autotune.values.record import DEFAULT_MODE, Environment, Mode

try:
    import ray
    from ray.exceptions import GetTimeoutError, RayError, RayTaskError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
except ImportError as error:
    raise DeviceError(f"Ray does not import ({error}); pip install 'autotune-int4[ray]'") from None

_LOG = logging.getLogger(__name__)
_CONNECT_LIMIT_S = 10.0
_PLACE_LIMIT_S = 60.0
_NOT_FREE = f"it was not free within {_PLACE_LIMIT_S:g} s"
_TYPE = "accelerator_type:"


class _Actor:
    """What runs on the node: a local executor, and every cubin that was sent."""

    _executor: LocalExecutor

    def __init__(self) -> None:
        self._cubins: Cubins = {}

    def open(self, device: str, allow_busy: bool) -> tuple[dict[str, Any], dict[str, Any]]:
        """Device and environment as plain values, which every version of autotune can read."""
        self._executor = LocalExecutor(find_device(device), allow_busy=allow_busy)
        return asdict(self._executor.device), asdict(self._executor.environment)

    def start(self) -> None:
        self._executor.start()

    def tune(
        self,
        problem: Problem,
        candidates: Sequence[Config],
        keys: Sequence[str],
        more: Cubins,
        budget_s: float | None,
        mode: Mode,
        extra: Extra,
    ) -> Tuned:
        """`keys` are those of the candidates' cubins, `more` the cubins that it lacks."""
        self._cubins |= more
        cubins = {key: self._cubins[key] for key in keys}
        return self._executor.tune(problem, candidates, cubins, budget_s, mode, extra)


@dataclass(frozen=True, slots=True)
class _Place:
    """Where an actor is to run, with what, and what `find_device` is to look for there."""

    name: str
    node_id: str
    device: str
    resources: dict[str, Any]
    allow_busy: bool

    def begin(self, again: bool = False) -> tuple[Any, Any]:
        """A new actor, and the answer of its `open` that is to come.

        A node that was lost returns by another id. So `again` may be on any node while there is none of this
        id, and no answer comes while none has what it needs.
        """
        strategy = NodeAffinitySchedulingStrategy(self.node_id, soft=again)
        actor = ray.remote(_Actor).options(scheduling_strategy=strategy, **self.resources).remote()
        return actor, actor.open.remote(self.device, self.allow_busy)


class RayExecutor:
    """Tunes on a device of a Ray cluster; use it as a context manager.

    What was closed, or lost with its node, asks the cluster for such a device again when there is something
    to do, and waits for it for a minute.
    """

    def __init__(self, actor: Any, place: _Place, device: Device, environment: Environment) -> None:
        self._actor, self._place, self._device, self._environment = actor, place, device, environment
        self._opened: Any = None  # the answer to come of an actor that is not known to be like the first one
        self._sent: set[str] = set()
        self._at: At | None = None
        self._cancelled = False
        self._guard = threading.Lock()

    def __enter__(self) -> RayExecutor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def device(self) -> Device:
        """The device that it tunes on, as its node calls it."""
        return self._device

    @property
    def environment(self) -> Environment:
        """What else its measurements depend on: the node's versions, and the compiler of this process."""
        return self._environment

    @property
    def at(self) -> At | None:
        """What `tune` is at; how far, only the node knows."""
        return self._at

    def start(self) -> None:
        """Begin to start the worker on the node; do not wait for it."""
        self._running_actor().start.remote()

    def tune(
        self,
        problem: Problem,
        candidates: Sequence[Config],
        cubins: Cubins,
        budget_s: float | None = None,
        mode: Mode = DEFAULT_MODE,
        extra: Extra = TIMES_ONLY,
    ) -> Tuned:
        """Measure the candidates, the first of which is the default config, and choose the winner.

        Raises:
            DeviceError: the node or the device is lost, or it was cancelled.
        """
        actor = self._running_actor()
        self._at = At(problem, None, len(candidates))
        try:
            self._check_opened()
            more = unsent(cubins, self._sent)
            tuned: Tuned = ray.get(
                actor.tune.remote(problem, candidates, tuple(cubins), more, budget_s, mode, extra)
            )
        except (RayError, DeviceError) as error:
            self._end_actor()  # another one has no cubins, and may be where this one is lost
            raise DeviceError(f"{self._place.name}: {_reason(error)}") from None
        finally:
            self._at = None
        return tuned

    def cancel(self) -> None:
        """End the actor and its worker at once, from any thread: `tune` raises, now and until `close`."""
        self._cancelled = True
        self._end_actor()

    def close(self) -> None:
        """End the actor and its worker at once."""
        self._end_actor()
        self._cancelled = False

    def _running_actor(self) -> Any:
        with self._guard:
            if self._cancelled:
                raise DeviceError(f"{self._place.name}: tuning was cancelled")
            if self._actor is None:
                self._sent.clear()
                self._actor, self._opened = self._place.begin(again=True)
            return self._actor

    def _check_opened(self) -> None:
        """Wait for an actor that was begun anew, and check that its device and software are as they were.

        Raises:
            RayError, DeviceError: it is not, or there is no place for it.
        """
        if self._opened is None:
            return
        now = _software(*_same_here(*_answer(self._opened)))
        before = _software(self._device, self._environment)
        if now != before:
            raise DeviceError(f"it came back as {now}, it was {before}; start autotune anew")
        self._opened = None

    def _end_actor(self) -> None:
        with self._guard:
            actor, self._actor = self._actor, None
        if actor is not None and ray.is_initialized():
            ray.kill(actor)


def ray_executors(
    address: str | None = None, device: str = "auto", allow_busy: bool = False
) -> list[RayExecutor]:
    """One executor for each GPU of a Ray cluster, or for each node's CPU.

    `address` is RAY_ADDRESS by default, or else the cluster that runs on this machine. `device` is `all`
    (every GPU), `auto` (these, or CPUs where there is none), `cpu`, or a model by Ray's name, as `H200`.
    What others use is waited for a minute, then left out, and so is a node with another autotune.

    Raises:
        DeviceError: there is no cluster, or nothing of it can be used.
    """
    _connect(address)
    asked: dict[Any, tuple[Any, _Place]] = {}
    for place in _places(device, allow_busy):
        actor, answer = place.begin()
        asked[answer] = actor, place
    if not asked:
        raise DeviceError("the Ray cluster has neither GPUs nor CPUs")
    answered, _ = ray.wait(list(asked), num_returns=len(asked), timeout=_PLACE_LIMIT_S)
    found, trouble = [], ""
    for answer, (actor, place) in asked.items():
        try:
            if answer not in answered:
                raise DeviceError(_NOT_FREE)
            found.append(RayExecutor(actor, place, *_same_here(*ray.get(answer))))
        except (RayError, DeviceError) as error:
            ray.kill(actor)
            trouble = f"{place.name}: {_reason(error)}"
            _LOG.warning("left out: %s", trouble)
    if not found:
        raise DeviceError(f"nothing of the Ray cluster can be used; {trouble}")
    return found


def _connect(address: str | None) -> None:
    if ray.is_initialized():
        return
    wanted = address or os.environ.get("RAY_ADDRESS") or "auto"
    try:
        if wanted != "auto":
            parts = urlsplit(wanted if "://" in wanted else f"//{wanted}")
            # Ray itself tries for minutes, and then ends the process.
            socket.create_connection((parts.hostname, parts.port or 0), _CONNECT_LIMIT_S).close()
        ray.init(address=wanted, logging_level="WARNING", log_to_driver=False)
        # Ray prints what it has to say of lost nodes on stdout, which is for results, and has no option.
        ray._private.worker._worker_logs_enabled = False
    except (OSError, ValueError) as error:
        where = "runs on this machine" if wanted == "auto" else f"answers at {wanted}"
        reason = "" if wanted == "auto" else f" ({error})"
        raise DeviceError(
            f"no Ray cluster {where}{reason}; start one with `ray start --head`, or give --address HOST:PORT"
        ) from None


def _places(device: str, allow_busy: bool) -> Iterator[_Place]:
    nodes = [node for node in ray.nodes() if node["Alive"]]
    gpus = [node for node in nodes if node["Resources"].get("GPU", 0) >= 1]
    if device == "all" and not gpus:
        raise DeviceError("device 'all': no GPU in the Ray cluster; use --device cpu")
    if device == "cpu" or (device == "auto" and not gpus):
        for node in nodes:
            cores = node["Resources"].get("CPU", 0)
            if cores >= 1:
                resources = {"num_cpus": int(cores)}
                yield _Place(_name(node), node["NodeID"], "cpu", resources, allow_busy)
        return
    types = {node["NodeID"]: _accelerators(node) for node in gpus}
    wanted = device.removeprefix("NVIDIA ")
    if device not in ("auto", "all") and not any(wanted in found for found in types.values()):
        known = sorted({each for found in types.values() for each in found})
        raise DeviceError(f"no GPU of the Ray cluster is {device!r}; there are: {', '.join(known) or 'none'}")
    for node in gpus:
        more = {}
        if device not in ("auto", "all"):
            if wanted not in types[node["NodeID"]]:
                continue
            more = {"accelerator_type": wanted}
        for _ in range(int(node["Resources"]["GPU"])):
            resources = {"num_gpus": 1, "num_cpus": 0}
            yield _Place(_name(node), node["NodeID"], "cuda", resources | more, allow_busy)


def _accelerators(node: dict[str, Any]) -> list[str]:
    return [name.removeprefix(_TYPE) for name in node["Resources"] if name.startswith(_TYPE)]


def _name(node: dict[str, Any]) -> str:
    return f"node {node['NodeManagerAddress']}"


def _answer(opened: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    try:
        answer: tuple[dict[str, Any], dict[str, Any]] = ray.get(opened, timeout=_PLACE_LIMIT_S)
    except GetTimeoutError:
        raise DeviceError(_NOT_FREE) from None
    return answer


def _same_here(
    device_fields: dict[str, Any], environment_fields: dict[str, Any]
) -> tuple[Device, Environment]:
    """Device and environment of an actor that runs the same autotune as this process.

    Raises:
        DeviceError: it runs another one.
    """
    theirs, here = environment_fields["version"], autotune.__version__
    if theirs != here:
        raise DeviceError(f"it has autotune {theirs}, here is {here}; install the same on every node")
    device, environment = Device(**device_fields), Environment(**environment_fields)
    ours = {family.name: family.source_hash() for family in registry.families_of(device)}
    different = sorted(name for name in ours if environment.sources.get(name) != ours[name])
    if different:
        names = ", ".join(different)
        raise DeviceError(
            f"its kernel sources differ from those here ({names}); install the same on every node"
        )
    if device.kind == "cuda":
        environment = replace(environment, compiler=compiler.compiler_version())
    return device, environment


def _software(device: Device, environment: Environment) -> str:
    return f"{device.name} ({device.arch}) with {environment.driver} and torch {environment.torch}"


def _reason(error: Exception) -> str:
    """Why a call failed, in one line: our own error as it was raised on the node, else Ray's.

    Ray puts the error of a node's Python in the last line, and why a node was lost in the first.
    """
    if isinstance(error, RayTaskError) and isinstance(error.cause, AutotuneError):
        error = error.cause
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return lines[-1] if "Error: " in lines[-1] else lines[0]
