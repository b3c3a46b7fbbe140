"""The records that ship: each is of a kernel of today, and its configs can run."""

from __future__ import annotations

from pathlib import Path

import pytest
from places import ROOT

from autotune.families import registry
from autotune.store.text import device_of_text, read_text
from autotune.values.layer import BUCKETS


@pytest.mark.parametrize("path", sorted((ROOT / "db").glob("*.jsonl")), ids=lambda path: path.stem)
def test_every_shipped_record_answers_a_bucket_with_a_kernel_of_today(path: Path) -> None:
    device = device_of_text(path)
    _, records = read_text(path)
    assert records
    for record in records:
        assert record.problem.m in BUCKETS
        assert registry.why_stale(record, device) is None
        for config in (record.config, record.default_config):
            registry.check(config, record.problem, device)
