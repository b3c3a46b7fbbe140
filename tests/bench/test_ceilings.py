"""What is known of a device's ceilings: never above what it gives, and close to it where records tell."""

from __future__ import annotations

from dataclasses import replace

import pytest
from store_samples import EVIDENCE, LAYER, record

from autotune.bench.ceilings import KnownFloors
from autotune.bench.roofline import Peaks
from autotune.store.reading import shipped_files
from autotune.store.text import device_of_text, read_text
from autotune.values.layer import BUCKETS, Layer, Problem

PEAKS = Peaks(4.4e6, 7e8)
LAYERS = [LAYER, Layer(512, 3584), Layer(28672, 8192), Layer(8192, 28672, group_size=32)]
PROBLEMS = [Problem(layer, m) for layer in LAYERS for m in BUCKETS]


def measured(problem: Problem, peaks: Peaks = PEAKS):
    evidence = replace(EVIDENCE, floor_us=peaks.floor_us(problem))
    return replace(record(), problem=problem, evidence=evidence)


def test_one_record_tells_of_all_problems_and_never_too_much():
    for known in PROBLEMS[::7]:
        floors = KnownFloors("portable", [measured(known)])
        assert floors.floor_us(known) == pytest.approx(PEAKS.floor_us(known))
        for problem in PROBLEMS:
            assert 0 < floors.floor_us(problem) <= PEAKS.floor_us(problem) * (1 + 1e-9)


def test_records_of_few_and_of_many_tokens_tell_the_roofline():
    floors = KnownFloors("portable", [measured(Problem(LAYER, 1)), measured(Problem(LAYERS[2], 4096))])
    for m in BUCKETS:
        assert floors.floor_us(Problem(LAYER, m)) == pytest.approx(PEAKS.floor_us(Problem(LAYER, m)))


def test_a_device_is_as_fast_as_it_ever_was():
    held_down = Peaks(PEAKS.bytes_per_us / 3, PEAKS.operations_per_us / 3)
    both = [measured(problem, peaks) for problem in PROBLEMS for peaks in (held_down, PEAKS)]
    for problem in PROBLEMS:
        assert KnownFloors("portable", both).floor_us(problem) == pytest.approx(PEAKS.floor_us(problem))


def test_a_type_of_which_nothing_is_known_and_an_arch():
    floors = KnownFloors("portable", [measured(PROBLEMS[0])])
    assert floors.floor_us(Problem(Layer(4096, 4096, dtype="bf16"), 1)) == 0
    for arch, bytes_per_us in (("sm_90", 4.9e6), ("sm_121", 1.792e6), ("sm_87", 1.008e6)):
        assert KnownFloors(arch, []).floor_us(PROBLEMS[0]) == PROBLEMS[0].moved_bytes / bytes_per_us
    for arch in ("sm_75", "sm_110", "sm_999", "x86_64_avx2", "sm_", "sm_9٠"):
        assert KnownFloors(arch, []).floor_us(PROBLEMS[0]) == 0


@pytest.mark.parametrize("path", shipped_files(), ids=lambda path: path.stem)
def test_every_record_that_ships_is_possible(path):
    arch, records = device_of_text(path).arch, read_text(path)[1]
    floors, arch_alone = KnownFloors(arch, records), KnownFloors(arch, [])
    for each in records:
        assert each.median_us > 0.85 * floors.floor_us(each.problem)
        assert 0.9 < floors.floor_us(each.problem) / each.evidence.floor_us < 1.001
        assert each.median_us > arch_alone.floor_us(each.problem) > 0
