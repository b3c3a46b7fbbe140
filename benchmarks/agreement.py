"""Do two sweeps of one device agree? Reads their databases.

    python benchmarks/agreement.py first.db second.db

For each problem that both have: what the first sweep's winner took in the second sweep, over the best of the
second. With a second sweep of a larger space this is the regret of the first one's pruning.
"""

from __future__ import annotations

import argparse
import json

from autotune.layer import Problem
from autotune.store.store import Store


def regrets(first: str, second: str) -> dict[Problem, float]:
    """The first sweep's winners in the second sweep, over the best there."""
    with Store.open(first) as one, Store.open(second) as two:
        (device,) = one.devices()
        found = {}
        for record in one.records(device):
            times = {
                trial.config: trial.median_us
                for trial in two.trials(record.problem, device)
                if trial.median_us is not None
            }
            if record.config in times:
                raced = [
                    trial.median_us
                    for trial in two.trials(record.problem, device)
                    if trial.status == "ok" and trial.median_us is not None
                ]
                found[record.problem] = times[record.config] / min(raced)
        return found


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
