"""What `lookup --explain` shows of an answer, as JSON and as lines."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from autotune.values.counts import counted

if TYPE_CHECKING:
    from autotune.records.explanation import Explanation
    from autotune.records.lookup import Answer
    from autotune.values.record import ConfigJoules, Environment, Evidence, Record


def fields(answer: Answer, explanation: Explanation | None) -> dict[str, Any]:
    """The evidence as JSON has it; every name is there, with null for what is not known."""
    record = explanation.record if explanation else None
    evidence = record.evidence if record else None
    environment = explanation.environment if explanation else None
    return {
        "reason": answer.reason,
        "median_us": answer.median_us,
        "record_problem": str(record.problem) if record else None,
        "record_device": record.device if record else None,
        "record_us": record.median_us if record else None,
        "low_us": record.low_us if record else None,
        "high_us": record.high_us if record else None,
        "default_config": str(record.default_config) if record else None,
        "record_default_us": record.default_us if record else None,
        "gain": list(explanation.gain) if explanation else None,
        "mode": record.mode if record else None,
        "rounds": evidence.rounds if evidence else None,
        "clock_mhz": evidence.clock_mhz if evidence else None,
        "temperature_c": evidence.temperature_c if evidence else None,
        "power_w": evidence.power_w if evidence else None,
        "ties": list(evidence.ties) if evidence else None,
        "runners_up": [list(each) for each in evidence.runners_up] if evidence else None,
        "peers": [list(each) for each in evidence.peers] if evidence else None,
        "energy": [list(each) for each in evidence.energy] if evidence else None,
        "candidates": evidence.candidates if evidence else None,
        "learned_from": list(evidence.learned_from) if evidence else None,
        "floor_us": evidence.floor_us if evidence else None,
        "roofline": explanation.roofline if explanation else None,
        "deviation": evidence.deviation if evidence else None,
        "created_at": record.created_at if record else None,
        "age_days": explanation.age_days() if explanation else None,
        "source_hash": record.source_hash if record else None,
        "driver": environment.driver if environment else None,
        "compiler": environment.compiler if environment else None,
        "torch": environment.torch if environment else None,
        "version": environment.version if environment else None,
    }


def lines(answer: Answer, explanation: Explanation | None) -> str:
    """The evidence for reading: one line for each thing that is known."""
    shown = [f"source: {answer.source}", f"config: {answer.config}", f"reason: {answer.reason}"]
    if answer.unverified is not None:
        shown.append(f"unverified: {answer.unverified}")
    if explanation is not None:
        if answer.problem != explanation.record.problem:
            shown.append(f"record: {explanation.record.problem} on {explanation.record.device}")
        shown += [*_times(explanation), *_rivals(explanation.record), *_quality(explanation)]
    return "\n  ".join([str(answer.problem), *shown])


def _times(explanation: Explanation) -> list[str]:
    record = explanation.record
    evidence = record.evidence
    timing = f"{record.median_us:.2f} us, 95 % interval {record.low_us:.2f} to {record.high_us:.2f} us"
    if evidence is not None:
        state = ((evidence.clock_mhz, "MHz"), (evidence.temperature_c, "°C"), (evidence.power_w, "W"))
        known = (f"{value} {unit}" for value, unit in state if value is not None)
        timing += ", ".join(("", counted(evidence.rounds, "round"), f"mode {record.mode}", *known))
    gain, low, high = explanation.gain
    interval = "" if low is None or high is None else f", 95 % interval {low:.3f} to {high:.3f}"
    return [
        f"time: {timing}",
        f"default: {record.default_config} {record.default_us:.2f} us",
        f"speed-up: {gain:.3f}x over the default{interval}",
    ]


def _rivals(record: Record) -> list[str]:
    if record.evidence is None:
        return []
    ties = [f"tie: {config}" for config in record.evidence.ties]
    runners_up = [f"runner-up: {config} {time:.2f} us" for config, time in record.evidence.runners_up]
    peers = [f"in the same rounds: {name} {time:.2f} us" for name, time in record.evidence.peers]
    return [*ties, *runners_up, *_candidates(record.evidence), *peers, *map(_taken, record.evidence.energy)]


def _taken(energy: ConfigJoules) -> str:
    config, *joules = energy
    taken, low, high = (f"{1e3 * each:.4g}" for each in joules)
    return f"energy of a call: {config} {taken} mJ, 95 % interval {low} to {high} mJ"


def _candidates(evidence: Evidence) -> list[str]:
    if evidence.candidates is None:
        return []
    learned = ",".join(map(str, evidence.learned_from))
    return [f"candidates: {evidence.candidates}" + (f", what did best at m={learned}" if learned else "")]


def _quality(explanation: Explanation) -> list[str]:
    record, evidence, roofline = explanation.record, explanation.record.evidence, explanation.roofline
    shown = []
    if evidence is not None and roofline is not None:
        shown.append(f"roofline: {100 * roofline:.0f} %, its floor is {evidence.floor_us:.2f} us")
    if evidence is not None and evidence.deviation is not None:
        shown.append(f"error: {evidence.deviation:.3g} of the tolerance against the fp32 reference")
    days = explanation.age_days()
    age = "unknown" if days is None else counted(days, "day")
    shown.append(f"age: {age}, measured {record.created_at}")
    shown.append(f"kernel: {record.source_hash}")
    if explanation.environment is not None:
        shown.append(f"environment: {_environment(explanation.environment)}")
    return shown


def _environment(environment: Environment) -> str:
    versions = (f"torch {environment.torch}", f"autotune {environment.version}")
    return ", ".join((f"driver {environment.driver}", f"compiler {environment.compiler}", *versions))
