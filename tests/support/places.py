"""Where things are in a checkout."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BENCHMARKS = ROOT / "benchmarks"
SUPPORT = ROOT / "tests" / "support"
FROZEN = ROOT / "tests" / "frozen"
