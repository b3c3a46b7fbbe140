"""Do two sweeps of one device agree? Reads their databases.

    python benchmarks/agreement.py first.db second.db

For each problem that both have: what the first sweep's winner took in the second sweep, over the best of the
second. With a second sweep of a larger space this is the regret of the first one's pruning.
"""

from __future__ import annotations

import argparse
import json

from autotune.bench.statistics import ratio_interval
from autotune.store.store import Store
from autotune.values.layer import Problem
from autotune.values.record import Trial


def regrets(first: str, second: str) -> dict[Problem, float]:
    """The first sweep's winners in the second sweep, over the best there."""
    with Store.open(first) as one, Store.open(second) as two:
        (device,) = one.devices()
        found = {}
        for record in one.records(device):
            trials = {trial.config: trial for trial in two.trials(record.problem, device)}
            chosen = trials.get(record.config)
            raced = [trial for trial in trials.values() if trial.samples_us]
            if chosen is not None and raced:
                found[record.problem] = max(over(chosen, other) for other in raced)
        return found


def over(chosen: Trial, other: Trial) -> float:
    """The chosen config's time over the other's: round by round where both raced, else by their medians."""
    common = min(len(chosen.samples_us), len(other.samples_us))
    if common:
        return ratio_interval(chosen.samples_us[:common], other.samples_us[:common]).median
    assert chosen.median_us is not None
    assert other.median_us is not None
    return chosen.median_us / other.median_us


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("first")
    parser.add_argument("second")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    found = regrets(arguments.first, arguments.second)
    ranked = sorted(found.items(), key=lambda item: item[1], reverse=True)
    within = sum(regret <= 1.01 for regret in found.values())
    if arguments.json:
        print(json.dumps({"problems": len(found), "within_1_percent": within, "worst": ranked[0][1]}))
        return
    print(f"{within} of {len(found)} problems within 1 % ({100 * within / len(found):.1f} %); the worst:")
    for problem, regret in ranked[:5]:
        print(f"  {regret:.3f}  {problem}")


if __name__ == "__main__":
    main()
