"""A kernel of others beside the candidates of a race: timed in the same rounds, never a winner."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from autotune.bench.operands import Activation, Operands
from autotune.bench.race import Runner
from autotune.bench.timer import Timer, timer_for
from autotune.bench.verify import Verifier
from autotune.families.protocol import Plan
from autotune.values.record import Mode

_HOST_PAUSE_S = 0.01


@dataclass(frozen=True, slots=True)
class Peer:
    """What another engine runs for a layer.

    `operands` are the same weight in its layout. Its kernel may return a new tensor instead of writing `out`:
    `checked` writes `out`, for the verifier, and `timed` is the call as its engine makes it, with no copy.
    """

    name: str
    operands: Operands
    checked: Plan
    timed: Plan


MakePeer = Callable[[], Peer]


class _Rested:
    """A timer of a kernel whose threads spin for some milliseconds, on cores that the next sample needs."""

    def __init__(self, timer: Timer) -> None:
        self._timer = timer

    def lead(self) -> None:
        self._timer.lead()

    def start(self) -> None:
        self._timer.start()

    def sample_us(self) -> float:
        time.sleep(_HOST_PAUSE_S)
        sample = self._timer.sample_us()
        time.sleep(_HOST_PAUSE_S)
        return sample

    def disturbed(self) -> bool:
        return self._timer.disturbed()


@dataclass(frozen=True, slots=True)
class Beside:
    """The peer's place in a race; or none, and `note` says why."""

    name: str = ""
    runner: Runner | None = None
    note: str = ""

    @property
    def times(self) -> tuple[tuple[str, float], ...]:
        """Its name and its median in microseconds, once it was timed."""
        if self.runner is None or not self.runner.samples_us:
            return ()
        return ((self.name, self.runner.median_us),)


def examine_peer(
    make: MakePeer, verifiers: Sequence[Verifier], activations: Sequence[Activation], mode: Mode
) -> Beside:
    """The peer, verified as the candidates were and ready to be timed. Whatever goes wrong is a note."""
    name = "the other engine's kernel"
    try:
        peer = make()
        name = peer.name
        for verifier in verifiers:
            wrong = verifier.with_layout(peer.operands).error(peer.checked)
            if wrong is not None:
                return Beside(note=f"{name} is wrong: {wrong}")
        timer = timer_for(peer.timed, peer.operands, activations, mode)
    except (BrokenPipeError, ConnectionResetError):
        raise
    except Exception as error:  # code of others raises what it likes
        return Beside(note=f"{name} is not timed: {_in_a_line(error)}")
    return Beside(name, Runner(timer if peer.operands.device.kind == "cuda" else _Rested(timer)))


def _in_a_line(error: Exception) -> str:
    """The error's kind and the first line of what it says, at most some 200 characters."""
    return f"{type(error).__name__}: {error}".partition("\n")[0][:200]
