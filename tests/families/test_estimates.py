"""What families estimate, how that chooses a default and what is timed; judged by the records that ship."""

import json
import math
import statistics

import pytest
from known import GPUS, H200, LLAMA7B

from autotune.families import registry
from autotune.families.estimates import clusters_at_once, overlapped, speed, waves_us
from autotune.store.rows import problem_of
from autotune.values.config import Config
from autotune.values.device import Device
from autotune.values.errors import DeviceError
from autotune.values.layer import Layer, Problem
from autotune.values.paths import shipped

CPU = Device("cpu", 0, "CPU of 8 threads", "x86_64_avx512", 8, 32 << 20, 0, 64 << 30)
ODD = [
    Layer(8, 8, group_size=-1),
    Layer(72, 4104, group_size=-1, dtype="bf16"),
    Layer(4096, 4096, group_size=32, dtype="bf16", zero_point=False),
]
PROBLEM = Problem(Layer(4096, 4096), 16)


@pytest.mark.parametrize("layer", [*LLAMA7B[:2], *ODD], ids=str)
@pytest.mark.parametrize("device", [*GPUS, CPU], ids=lambda device: device.arch)
def test_every_config_has_an_estimate_and_no_family_s_default_a_lower_one_than_the_chosen(layer, device):
    for m in (1, 3, 16, 64, 100, 256, 512, 4096, 9000):
        problem = Problem(layer, m)
        for family in registry.families_of(device):
            estimates = {
                config: family.estimate(config, problem, device) for config in family.space(problem, device)
            }
            assert all(0 < us < math.inf for us in estimates.values())
            default = family.default(problem, device)
            assert default is not None or not estimates
            if default is not None:
                registry.check(default, problem, device)
                assert 0 < family.estimate(default, problem, device) < math.inf
        chosen = registry.default_config(problem, device)
        least = registry.family_of(chosen).estimate(chosen, problem, device)
        others = [(family, family.default(problem, device)) for family in registry.families_of(device)]
        assert all(least <= family.estimate(each, problem, device) for family, each in others if each)


class Family:
    """A family of two configs, of which one is the default, estimated to take so long."""

    kind = "cuda"

    def __init__(self, name, us):
        self.name, self.us = name, us

    def space(self, problem, device):  # noqa: ARG002
        return [Config.of(self.name, tile=tile) for tile in (1, 2)]

    def default(self, problem, device):  # noqa: ARG002
        return None if self.us is None else Config.of(self.name, tile=2)

    def estimate(self, config, problem, device):  # noqa: ARG002
        return self.us


def use(monkeypatch, **estimates):
    families = {name: Family(name, us) for name, us in estimates.items()}
    monkeypatch.setattr(registry, "families", lambda: families)


@pytest.mark.parametrize(
    ("estimates", "family"),
    [
        ({"a": 2.0, "b": 1.0, "c": 3.0}, "b"),
        ({"a": None, "b": 5.0, "c": 4.9}, "c"),
        ({"a": 3.0, "b": 1.0, "c": 1.0}, "b"),
    ],
)
def test_the_lowest_estimate_is_the_default_and_the_first_of_equal_ones(monkeypatch, estimates, family):
    use(monkeypatch, **estimates)
    assert registry.default_config(PROBLEM, H200) == Config.of(family, tile=2)


def test_without_a_family_that_can_there_is_no_default(monkeypatch):
    use(monkeypatch, a=None)
    with pytest.raises(DeviceError, match="can do m=16"):
        registry.default_config(PROBLEM, H200)
    assert registry.space(PROBLEM, H200) == []


def test_what_is_estimated_to_be_far_slower_is_not_timed(monkeypatch):
    use(monkeypatch, a=1.2, b=1.0, c=1.6, d=2.5, e=None)
    timed = [str(config) for config in registry.space(PROBLEM, H200)]
    assert timed == ["a:tile=1", "a:tile=2", "b:tile=1", "b:tile=2", "c:tile=2"]
    assert [str(config) for config in registry.space(PROBLEM, H200, ("d",))] == ["d:tile=1", "d:tile=2"]


@pytest.mark.parametrize(
    ("resident", "known"),
    [
        (1, {1: 132, 2: 66, 3: 39, 4: 30, 5: 22, 6: 17, 7: 15, 8: 15}),
        (2, {1: 264, 2: 132, 3: 79, 4: 62, 5: 47, 6: 39, 7: 32, 8: 30}),
        (3, {1: 396, 2: 198, 3: 124, 4: 92, 5: 69, 6: 62, 7: 47, 8: 45}),
    ],
)
def test_as_many_clusters_run_at_once_as_an_h200_s_driver_says(resident, known):
    assert {of: clusters_at_once(of, resident, 132) for of in known} == known


@pytest.mark.parametrize(
    ("clusters", "of", "resident", "cores", "rounds"),
    [
        (4, 1, 1, 4, [(1, 4)]),  # one block each
        (5, 1, 1, 4, [(1, 4), (1, 1)]),  # a second wave of one
        (10, 1, 2, 4, [(2, 8), (1, 2)]),
        (9, 1, 4, 4, [(3, 9)]),  # two have two, one has three
        (16, 2, 1, 32, [(1, 16)]),
        (9, 4, 1, 40, [(1, 9)]),  # nine clusters of four leave four multiprocessors unused
        (10, 4, 1, 40, [(1, 9), (1, 1)]),
        (17, 6, 2, 132, [(1, 17)]),
        (19, 6, 2, 132, [(2, 19)]),  # 114 blocks, but only 17 clusters fit with a block on each
        (80, 6, 5, 132, [(5, 80)]),
    ],
)
def test_blocks_come_in_waves(clusters, of, resident, cores, rounds):
    def round_us(blocks, share):
        return 1 + 10.0**blocks + 100.0 * share

    expected = sum(round_us(blocks, part / clusters) for blocks, part in rounds)
    assert waves_us(clusters, of, resident, cores, round_us) == pytest.approx(expected)


def test_parts_that_overlap_take_at_least_the_longest_and_at_most_their_sum():
    assert 4.0 < overlapped(3.0, 4.0) < 7.0


def test_the_speed_of_a_device_is_known_by_its_arch():
    h100 = Device("cuda", 0, "NVIDIA H100 80GB HBM3", "sm_90", 132, 50 << 20, 232448, 80 << 30)
    newer = Device("cuda", 0, "NVIDIA GB300", "sm_103", 160, 126 << 20, 232448, 280 << 30)
    geforce, workstation = (
        Device("cuda", 0, name, "sm_89", 100, 64 << 20, 101376, 24 << 30)
        for name in ("NVIDIA GeForce RTX 4080", "NVIDIA RTX 6000 Ada Generation")
    )
    assert speed(h100).read_bytes == pytest.approx(3.0e6, rel=0.02)  # as the roofline of peers.py reads it
    assert speed(H200).read_bytes == pytest.approx(4.4e6, rel=0.05)
    assert speed(newer).read_bytes > speed(H200).read_bytes
    assert speed(geforce).mma_operations == speed(workstation).mma_operations / 2


@pytest.fixture(scope="module")
def records():
    """Those of an H200 that ship, with their problems."""
    text = shipped("db").joinpath("nvidia-h200.jsonl").read_text()
    rows = [json.loads(line) for line in text.splitlines()[1:]]
    return [row for row in rows if "config" in row]


def test_estimates_are_near_what_the_records_took(records):
    ratios = []
    for row in records:
        config = Config.parse(row["config"])
        if registry.family_of(config).reject(config, problem_of(row), H200) is None:
            us = registry.family_of(config).estimate(config, problem_of(row), H200)
            ratios.append(math.log(us / row["median_us"]))
    assert len(ratios) > 200
    assert abs(statistics.fmean(ratios)) < 0.04
    assert statistics.fmean(map(abs, ratios)) < 0.08
    assert max(map(abs, ratios)) < 0.35


def test_defaults_lose_little_against_the_records(records):
    losses = {"few": [], "many": []}
    for row in records:
        known = {row["config"]: row["median_us"], row["default_config"]: row["default_us"]}
        known |= dict(row["evidence"].get("runners_up", []))
        took = known.get(str(registry.default_config(problem_of(row), H200)))
        if took is not None:
            losses["many" if row["m"] > 32 else "few"].append(took / row["median_us"] - 1)
    assert min(map(len, losses.values())) > 80
    assert max(map(statistics.fmean, losses.values())) < 0.03
