"""Coverage: what answers a model's traffic, by bucket, and what is no histogram."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from command_line import autotune
from runtime_tools import AwqLinear, store_records, weight_of

from autotune import record_traffic
from autotune.families import registry
from autotune.models.apply import apply
from autotune.records.coverage import coverage, read_traffic
from autotune.records.lookup import Lookup
from autotune.values.device import cpu_device
from autotune.values.errors import AutotuneError, LayerError
from autotune.values.layer import Layer, Problem

TUNED, OTHER = Layer(n=256, k=256, group_size=32), Layer(n=128, k=256, group_size=32)


@pytest.fixture
def database(tmp_path: Path) -> Path:
    """Records of one of two layers, for 1 and 64 tokens."""
    path, device = tmp_path / "some.db", cpu_device()
    problems = [Problem(TUNED, m) for m in (1, 64)]
    store_records(path, device, {each: registry.default_config(each, device) for each in problems})
    return path


def test_traffic_weighs_what_answers(database: Path) -> None:
    """33 and 64 tokens have the record of 64, which is of one layer of two; 7 tokens have none."""
    found = coverage(Lookup(cpu_device(), database), [TUNED, OTHER], {1: 60, 33: 20, 64: 10, 7: 10, 12: 0})
    assert {each.m: (each.traffic, each.sources["exact"]) for each in found.buckets} == {
        1: (pytest.approx(0.6), pytest.approx(0.5)),
        8: (pytest.approx(0.1), 0.0),
        40: (pytest.approx(0.2), pytest.approx(0.5)),
        64: (pytest.approx(0.1), pytest.approx(0.5)),
    }
    assert found.exact == pytest.approx(0.45)
    assert found.share("default") == pytest.approx(0.55)


def test_the_command_requires_a_share(database: Path, tmp_path: Path) -> None:
    (tmp_path / "tokens.json").write_text('{"1": 19, "7": 1}')
    asked = ("coverage", str(TUNED), "--tokens", "tokens.json", "--device", "cpu", "--db", str(database))
    met = autotune(*asked, "--require", "95%", "--json", cwd=tmp_path)
    assert met.returncode == 0, met.stderr
    assert json.loads(met.stdout)["exact"] == pytest.approx(0.95)
    unmet = autotune(*asked, "--require", "96%", cwd=tmp_path)
    assert unmet.returncode == 3
    assert unmet.stderr == "calls with a record: 95.0%, fewer than 96.0%\n"
    assert unmet.stdout.splitlines()[-1].split() == ["all", "100.0%", "95.0%", "0.0%", "5.0%"]
    for wrong in ("95", "101%", "most"):
        assert autotune(*asked, "--require", wrong, cwd=tmp_path).returncode == 2


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "does not read"),
        ("[1, 2]", "is no object of calls by number of tokens"),
        ('{"0": 5}', "'0' is not a number of tokens"),
        ('{"-1": 5}', "'-1' is not a number of tokens"),
        ('{"x": 5}', "'x' is not a number of tokens"),
        ('{"1": -5}', "m=1 has -5 calls"),
        ('{"1": "5"}', "m=1 has '5' calls"),
        ('{"1": true}', "m=1 has True calls"),
        ('{"1": NaN}', "m=1 has nan calls"),
        ('{"1": 0, "33": 0}', "has no calls"),
        ("{}", "has no calls"),
    ],
)
def test_what_is_no_histogram(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "tokens.json").write_text(text)
    with pytest.raises(LayerError, match=words):
        read_traffic(tmp_path / "tokens.json")
    with pytest.raises(LayerError, match=r"none\.json does not read: No such file"):
        read_traffic(tmp_path / "none.json")


def test_odd_tokens_and_zero_counts_are_read(tmp_path: Path) -> None:
    (tmp_path / "tokens.json").write_text('{"1": 3, "33": 0.5, "5000": 2, "7": 0}')
    assert read_traffic(tmp_path / "tokens.json") == {1: 3, 33: 0.5, 5000: 2, 7: 0}


def test_a_server_records_what_it_called(tmp_path: Path) -> None:
    """By the bucket that answered: those of a CPU without records are the powers of two."""
    model = torch.nn.Sequential(AwqLinear(weight_of(TUNED)))
    with pytest.warns(UserWarning, match="no config was measured"):
        apply(model, db=str(tmp_path / "none.db"))
    for m in (1, 1, 1, 3, 4, 9):
        model(torch.randn(m, TUNED.k, dtype=torch.float16))
    expected = {1: 3, 4: 2, 16: 1}
    assert record_traffic(tmp_path / "tokens.json", model) == expected
    assert read_traffic(tmp_path / "tokens.json") == expected
    everything = record_traffic(tmp_path / "all.json")
    assert all(everything[m] >= calls for m, calls in expected.items())
    with pytest.raises(AutotuneError, match="cannot be written: No such file"):
        record_traffic(tmp_path / "none" / "tokens.json", model)
