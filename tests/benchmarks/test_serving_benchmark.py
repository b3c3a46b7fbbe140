"""What `benchmarks/serving.py` concludes from what its processes measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from places import BENCHMARKS

PACE = (("tuned", 1.0), ("machete", 2.0))


@pytest.fixture(autouse=True)
def _benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)


def row(kind: str, variant: str, turn: int, run: str = "a", **values: Any) -> dict[str, Any]:
    return {"run": run, "turn": turn, "variant": variant, "kind": kind, **values}


def decode(variant: str, turn: int, step_ms: float, run: str = "a") -> dict[str, Any]:
    # The median of the samples is step_ms, their mean is not.
    samples = [step_ms, 100 * step_ms, step_ms / 2]
    return row("decode", variant, turn, run, cell=8, step_ms=samples)


def test_ratios_are_of_one_turn_and_values_of_all() -> None:
    from serving_report import summary

    # Each turn is as slow as it likes; ours is always twice as fast.
    slowness = [1.0, 3.0, 7.0]
    rows = [decode(name, turn, took * slow) for turn, slow in enumerate(slowness) for name, took in PACE]
    (table,) = summary(rows)
    assert table["values"]["machete"] == pytest.approx([8e3 / (2 * 3), 8e3 / (2 * 7), 8e3 / 2])
    assert table["compared"] == {"tuned / machete": pytest.approx([2.0, 2.0, 2.0])}


def test_a_variant_that_missed_a_turn_is_compared_in_the_others() -> None:
    from serving_report import summary

    rows = [
        decode("tuned", 0, 1.0),
        decode("tuned", 1, 1.0),
        decode("fp16", 1, 4.0),
        decode("fp16", 1, 9.0, "b"),
    ]
    (table,) = summary(rows)
    assert table["compared"] == {"tuned / fp16": pytest.approx([4.0, 4.0, 4.0])}


def test_starts_are_compared_by_the_difference() -> None:
    from serving_report import summary

    rows = [
        row("start", name, 0, cell="again", start_s=start_s, process_s=start_s + 10)
        for name, start_s in (("untuned", 31.5), ("marlin", 30.0))
    ]
    assert [each["compared"] for each in summary(rows)] == [{"untuned - marlin": [1.5, 1.5, 1.5]}] * 2


def test_a_line_that_was_cut_off_is_left_out(tmp_path: Path) -> None:
    from serving_report import read

    file = tmp_path / "measurements.jsonl"
    whole = json.dumps(decode("tuned", 0, 1.0))
    file.write_text(f"{whole}\n{whole[:40]}")
    assert read([file]) == [json.loads(whole)]


def test_the_report_has_every_variant_and_a_dash_where_one_has_nothing() -> None:
    from serving_report import markdown

    rows = [decode("tuned", 0, 1.0), {**decode("fp16", 0, 2.0), "cell": 16}]
    text = markdown(rows)
    assert "| 8 | 8000 | - |" in text
    assert "| 16 | - | 8000 |" in text


@pytest.mark.parametrize(
    ("variant", "kernels", "complaint"),
    [
        ("tuned", {"AutotuneLinearKernel": 8}, None),
        (
            "tuned",
            {"AutotuneLinearKernel": 7, "MarlinLinearKernel": 1},
            "8 int4 linears by AutotuneLinearKernel",
        ),
        ("tuned", {"AutotuneLinearKernel": 7}, "8 int4 linears"),
        ("machete", {"MarlinLinearKernel": 8}, "by MacheteLinearKernel"),
        ("vllm", {"HummingLinearKernel": 8}, None),
        ("vllm", {"AutotuneLinearKernel": 8}, "by vLLM"),
        ("fp16", {}, None),
        ("fp16", {"MarlinLinearKernel": 8}, "0 int4 linears"),
    ],
)
def test_a_process_complains_of_kernels_that_are_not_its_variants(
    variant: str, kernels: dict[str, int], complaint: str | None
) -> None:
    from serving_setup import VARIANTS

    said = VARIANTS[variant].complaint(kernels, 8)
    assert (said is None) if complaint is None else (complaint in str(said))


def written(tokens: list[int], logprobs: list[dict[int, float]]) -> dict[str, Any]:
    tops = [{str(token): value for token, value in top.items()} for top in logprobs]
    return {"batch": 1, "tokens": tokens, "top": tops}


def test_text_differs_only_where_the_other_saw_no_near_tie() -> None:
    from serving_text import compare

    theirs = written([5, 6, 7], [{5: -0.1, 9: -3.0}, {6: -0.70, 8: -0.73}, {7: -0.2, 1: -2.0}])
    near = written([5, 8, 1], [{5: -0.12}, {8: -0.7}, {1: -0.1}])
    far = written([5, 6, 1], [{5: -0.1}, {6: -0.7}, {1: -0.1}])
    unheard = written([4, 6, 7], [{4: -0.1}, {6: -0.7}, {7: -0.2}])
    count = {name: compare([each], [theirs], 0.05)[0] for name, each in (("near", near), ("far", far))}
    assert count["near"] == {
        "batch": 1,
        "same": 1,
        "near ties": 1,
        "different": 0,
        "largest": pytest.approx(0.02),
    }
    assert (count["far"]["same"], count["far"]["near ties"], count["far"]["different"]) == (2, 0, 1)
    assert compare([unheard], [theirs], 0.05)[0]["different"] == 1


def test_percentiles_are_samples_that_so_many_do_not_exceed() -> None:
    from serving_report import percentile

    samples = [float(each) for each in range(200, 0, -1)]
    assert [percentile(samples, percent) for percent in (50, 99, 100)] == [100, 198, 200]
    assert percentile([3.0], 99) == 3.0
